//! Dot products and what decoding needs beside them: one row at a time, no slab.

use super::simd::{Simd, vectorized};

