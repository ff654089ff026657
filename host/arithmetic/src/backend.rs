//! Which backends the processor has.

use crate::Backend;

impl Backend {
    /// All backends, the fastest of each processor first.
    pub const ALL: [Self; 5] = [Self::Avx512, Self::Avx2, Self::Neon, Self::Simd128, Self::Scalar];

    /// The identifier in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Simd128 => "simd128",
            Self::Scalar => "scalar",
        }
    }

    /// Whether this processor has the backend's instructions.
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
            // Part of the base architecture.
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Simd128 => {
                cfg!(all(target_arch = "wasm32", target_feature = "simd128"))
            }
            Self::Scalar => true,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
        }
    }

    /// The fastest backend of this processor.
    pub fn fastest() -> Self {
        Self::ALL.into_iter().find(|backend| backend.is_available()).unwrap_or(Self::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_backend_is_available() {
        assert!(Backend::fastest().is_available());
        assert!(Backend::Scalar.is_available());
        let natives = [Backend::Avx512, Backend::Neon, Backend::Simd128];
        assert!(natives.into_iter().filter(|backend| backend.is_available()).count() <= 1);
    }
}
