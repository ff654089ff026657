//! Derives protobuf names from the names of models and fields.

use std::collections::BTreeSet;

use super::{CompatibleRange, Scalar};
use guesthouse_model::ModelName;

/// The package of all models.
const ROOT: &str = "guesthouse";

pub(super) const REQUEST: &str = "PredictRequest";
pub(super) const RESPONSE: &str = "PredictResponse";
pub(super) const STREAM_RESPONSE: &str = "PredictStreamResponse";
pub(super) const ERROR: &str = "PredictError";
pub(super) const BATCH_REQUEST: &str = "BatchPredictRequest";
pub(super) const BATCH_RESPONSE: &str = "BatchPredictResponse";

/// The messages of every package, besides [`Scalar::shaped`].
const MESSAGES: [&str; 6] =
    [REQUEST, RESPONSE, STREAM_RESPONSE, ERROR, BATCH_REQUEST, BATCH_RESPONSE];

/// The package of a model, which contains those of its version ranges.
pub fn package_root(model: &ModelName) -> String {
    format!("{ROOT}.{}", segment(model))
}

/// The segment of the package with the model's name.
pub(super) fn segment(model: &ModelName) -> String {
    model.as_str().replace('-', "_")
}

pub(super) fn package(model: &ModelName, class: CompatibleRange) -> String {
    format!("{}.{}", package_root(model), class.segment())
}

/// The model's name in camel case.
pub(super) fn service(model: &ModelName) -> String {
    let mut name = String::with_capacity(model.as_str().len());
    for word in model.as_str().split(['-', '_']) {
        let mut letters = word.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(letters.as_str());
    }
    let mut taken = Scalar::ALL.iter().map(|scalar| scalar.shaped()).chain(MESSAGES);
    if taken.any(|taken| taken == name) {
        name.push_str("Model");
    }
    name
}

/// The part of a name that must be unique: tools derive identifiers that contain at least this.
fn derived(name: &str) -> String {
    name.chars().filter(|letter| *letter != '_').map(|letter| letter.to_ascii_lowercase()).collect()
}

/// The names of fields in protobuf: the names in the signature, except that a name that collides
/// with an earlier one gets its number appended. So a name only depends on the fields before it.
pub(super) fn fields<'a>(names: impl Iterator<Item = &'a str>, own: &[&str]) -> Vec<String> {
    let mut taken: BTreeSet<_> = own.iter().map(|name| derived(name)).collect();
    let mut given = Vec::new();
    for (name, number) in names.zip(1..) {
        let mut name = name.to_owned();
        if taken.contains(&derived(&name)) {
            name = format!("{name}_{number}");
        }
        while !taken.insert(derived(&name)) {
            name.push('x');
        }
        given.push(name);
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_become_packages_and_services() {
        let class = CompatibleRange::from_version(&semver::Version::new(1, 0, 0));
        for (model, package_name, service_name) in [
            ("toxicity", "guesthouse.toxicity.v1", "Toxicity"),
            ("text-direction", "guesthouse.text_direction.v1", "TextDirection"),
            ("resnet-50_v2", "guesthouse.resnet_50_v2.v1", "Resnet50V2"),
            ("a--b-", "guesthouse.a__b_.v1", "AB"),
            ("predict-request", "guesthouse.predict_request.v1", "PredictRequestModel"),
            ("float-tensor", "guesthouse.float_tensor.v1", "FloatTensorModel"),
        ] {
            let model = model.parse().unwrap();
            assert_eq!(package(&model, class), package_name);
            assert_eq!(service(&model), service_name);
        }
    }

    #[test]
    fn colliding_names_get_their_number() {
        let names = |all: &[&str]| fields(all.iter().copied(), &["model_version"]);
        assert_eq!(names(&["text", "INPUT0", "message"]), ["text", "INPUT0", "message"]);
        assert_eq!(names(&["a_1", "a1", "A__1"]), ["a_1", "a1_2", "A__1_3"]);
        assert_eq!(names(&["modelVersion"]), ["modelVersion_1"]);
        assert_eq!(names(&["a", "a2_2", "a2", "a_22"]), ["a", "a2_2", "a2", "a_22_4"]);
        assert_eq!(names(&["ab3", "a3", "ab_3"]), ["ab3", "a3", "ab_3_3"]);
        // The name with its number may be taken as well.
        assert_eq!(names(&["a_1", "a_13", "a1"]), ["a_1", "a_13", "a1_3x"]);
        // Earlier names do not depend on later ones.
        assert_eq!(names(&["a_1", "a1", "b"])[..2], names(&["a_1", "a1"]));
    }
}
