//! How exactly a model computes on the CPU.

/// How exactly a model computes on the CPU. Both are deterministic: sums run in a fixed order, whatever the number of threads.
///
/// A GPU computes in f32 under both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 on dequantized weights, straight from the model file: for measurements, and what golden numbers are compared with.
    #[default]
    Exact,
    /// Products with weights in bf16, and in 8 bits for up to 16 tokens at a time, where the processor has instructions for that;
    /// else as [`Exact`](Self::Exact). Sums, norms, attention and the adapter stay f32.
    ///
    /// Weights are repacked when a model is loaded, into memory of the file's size; the file's own pages are given back.
    Fast,
}
