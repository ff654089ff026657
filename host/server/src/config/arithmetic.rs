//! `[arithmetic]`: operations of neural networks that the host executes for guests.

use schemars::JsonSchema;
use serde::Deserialize;

use super::ConfigError;
use guesthouse_runtime::guest::Backend;

/// The operations of neural networks that the host executes for guests which import them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArithmeticSection {
    /// Whether models are granted the operations whose section does not say. Guests without them
    /// compute the same, and take longer.
    pub granted: Option<bool>,
    /// The instructions that execute them. All compute the same; `auto` chooses the fastest of the
    /// processor. A processor without the instructions is an error.
    pub backend: Option<BackendChoice>,
    /// Whether a large operation is computed on several cores while there are cores on which no guest
    /// runs, within the version's share of the inference threads. It shortens the latency of large
    /// models under little load; the results are the same.
    pub use_idle_cores: Option<bool>,
}

/// The instructions that execute operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The fastest of the processor.
    #[default]
    Auto,
    /// AVX-512F on x86-64.
    Avx512,
    /// AVX2 and FMA on x86-64.
    Avx2,
    /// NEON on AArch64.
    Neon,
    /// Portable code.
    Scalar,
}

/// The validated form of [`ArithmeticSection`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArithmeticSettings {
    /// Whether models are granted the operations whose section does not say.
    pub granted: bool,
    /// The instructions that execute them.
    pub backend: Backend,
    /// Whether a large operation uses cores on which no guest runs.
    pub use_idle_cores: bool,
}

impl ArithmeticSection {
    pub(super) fn validate(&self) -> Result<ArithmeticSettings, ConfigError> {
        let backend = match self.backend.unwrap_or_default() {
            BackendChoice::Auto => Backend::fastest(),
            BackendChoice::Avx512 => Backend::Avx512,
            BackendChoice::Avx2 => Backend::Avx2,
            BackendChoice::Neon => Backend::Neon,
            BackendChoice::Scalar => Backend::Scalar,
        };
        if !backend.is_available() {
            let reason = format!(
                "this processor does not have the instructions of {:?}; its fastest are {:?}",
                backend.name(),
                Backend::fastest().name()
            );
            return Err(ConfigError::Value { key: "arithmetic.backend".to_owned(), reason });
        }
        Ok(ArithmeticSettings {
            granted: self.granted.unwrap_or(true),
            backend,
            use_idle_cores: self.use_idle_cores.unwrap_or(true),
        })
    }
}

impl ArithmeticSettings {
    /// The instructions for models whose section does not say whether they are granted operations.
    pub(super) fn default_grant(self) -> Option<Backend> {
        self.granted.then_some(self.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(backend: BackendChoice) -> Result<ArithmeticSettings, ConfigError> {
        ArithmeticSection { backend: Some(backend), ..ArithmeticSection::default() }.validate()
    }

    #[test]
    fn a_backend_that_the_processor_lacks_is_rejected() {
        let absent =
            if cfg!(target_arch = "x86_64") { BackendChoice::Neon } else { BackendChoice::Avx2 };
        let error = validate(absent).unwrap_err();
        assert!(matches!(&error, ConfigError::Value { key, .. } if key == "arithmetic.backend"));
        assert!(error.to_string().contains(Backend::fastest().name()), "{error}");
    }

    #[test]
    fn the_fastest_backend_is_chosen_by_default() {
        let settings = ArithmeticSection::default().validate().unwrap();
        let backend = Backend::fastest();
        let fastest = ArithmeticSettings { granted: true, backend, use_idle_cores: true };
        assert_eq!(settings, fastest);
        assert_eq!(validate(BackendChoice::Auto).unwrap(), fastest);
        assert_eq!(validate(BackendChoice::Scalar).unwrap().backend, Backend::Scalar);
    }
}
