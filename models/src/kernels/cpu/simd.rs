//! Which vector instructions this processor has, asked once.

use std::sync::OnceLock;

/// Instruction sets that kernels are written for, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Simd {
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// aarch64 with NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Whatever the compiler makes of plain loops.
    Portable,
}

impl Simd {
    /// The best set of this processor.
    pub(crate) fn detect() -> Self {
        static DETECTED: OnceLock<Simd> = OnceLock::new();
        *DETECTED.get_or_init(|| Self::available()[0])
    }

    /// Every set that this processor has, best first; the portable one is always last.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                sets.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Self::Neon);
        }
        sets.push(Self::Portable);
        sets
    }
}

/// Compiles one plain loop for every instruction set, and picks at the call.
///
/// `vectorized!(pub(crate) fn name(a: A, b: B) -> R = body);` makes `name(simd, a, b)` out of the `#[inline(always)]` function
/// `body(a, b)`; the compiler vectorizes each copy for its set.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        $vis fn $name(simd: $crate::kernels::cpu::simd::Simd, $($arg: $ty),*) $(-> $ret)? {
            use $crate::kernels::cpu::simd::Simd;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Simd` names a set only after it was detected.
                Simd::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Simd::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // The compiler takes NEON for granted on aarch64.
                Simd::Neon => $body($($arg),*),
                Simd::Portable => $body($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;
