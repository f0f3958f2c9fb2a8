//! A quantized model file becomes logits.
