//! Stub.
use crate::model::ModelName;
/// Stub.
#[derive(Default)]
pub struct Shadows;
impl Shadows {
    /// Stub.
    pub fn report(&self, _model: &ModelName) -> Vec<String> {
        Vec::new()
    }
}
