//! The instruction sets that execute operations: names, detection at run time.

use std::fmt;
use std::str::FromStr;

use crate::Invalid;

/// The instructions that execute an operation. All compute the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// AVX-512F on x86-64.
    Avx512,
    /// AVX2 and FMA on x86-64.
    Avx2,
    /// NEON on AArch64.
    Neon,
    /// WebAssembly's 128-bit vectors with relaxed multiply-add.
    Simd128,
    /// Portable code.
    Scalar,
}

impl Backend {
    /// All backends, the fastest ones first.
    pub const ALL: [Self; 5] = [Self::Avx512, Self::Avx2, Self::Neon, Self::Simd128, Self::Scalar];

    /// The fastest backend of this processor.
    pub fn fastest() -> Self {
        Self::available().next().unwrap_or(Self::Scalar)
    }

    /// The backends of this processor, the fastest ones first; the last one is [`Self::Scalar`].
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|backend| backend.is_available())
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f") && Self::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Self::Simd128 => true,
            Self::Scalar => true,
            _ => false,
        }
    }

    /// The name in configurations and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Simd128 => "simd128",
            Self::Scalar => "scalar",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or(Invalid("the backend is not one of avx512, avx2, neon, simd128 and scalar"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_has_a_name_that_parses() {
        for backend in Backend::ALL {
            assert_eq!(backend.name().parse(), Ok(backend));
        }
        assert!("avx".parse::<Backend>().is_err());
    }

    #[test]
    fn fastest_backend_is_available() {
        assert!(Backend::fastest().is_available());
        assert_eq!(Backend::available().last(), Some(Backend::Scalar));
    }
}
