//! The I-LoRA oracle.
