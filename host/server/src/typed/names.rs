//! Names in protobuf, from those of models and fields.

use std::collections::BTreeSet;

use super::{CompatibleRange, Scalar};
use guesthouse_model::ModelName;

/// Above all packages of models.
const ROOT: &str = "guesthouse";

pub(super) const REQUEST: &str = "PredictRequest";
pub(super) const RESPONSE: &str = "PredictResponse";
pub(super) const STREAM_RESPONSE: &str = "PredictStreamResponse";
pub(super) const ERROR: &str = "PredictError";
pub(super) const BATCH_REQUEST: &str = "BatchPredictRequest";
pub(super) const BATCH_RESPONSE: &str = "BatchPredictResponse";

/// The messages of every package, beside [`Scalar::shaped`].
const MESSAGES: [&str; 6] =
    [REQUEST, RESPONSE, STREAM_RESPONSE, ERROR, BATCH_REQUEST, BATCH_RESPONSE];

/// The package above those of all versions of a model.
pub fn package_root(model: &ModelName) -> String {
    format!("{ROOT}.{}", segment(model))
}

/// The part of the package that stands for the model.
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

/// What tools derive from a field's name has to be another one for each field: it is this, or less.
fn derived(name: &str) -> String {
    name.chars().filter(|letter| *letter != '_').map(|letter| letter.to_ascii_lowercase()).collect()
}

/// The fields' names as they are, but for one from which tools would derive what they derive from an
/// earlier one: its number is added. So a name depends on the fields before it alone.
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
    fn names_of_models_become_packages_and_services() {
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
    fn names_that_tools_take_for_the_same_get_their_number() {
        let names = |all: &[&str]| fields(all.iter().copied(), &["model_version"]);
        assert_eq!(names(&["text", "INPUT0", "message"]), ["text", "INPUT0", "message"]);
        assert_eq!(names(&["a_1", "a1", "A__1"]), ["a_1", "a1_2", "A__1_3"]);
        assert_eq!(names(&["modelVersion"]), ["modelVersion_1"]);
        assert_eq!(names(&["a", "a2_2", "a2", "a_22"]), ["a", "a2_2", "a2", "a_22_4"]);
        assert_eq!(names(&["ab3", "a3", "ab_3"]), ["ab3", "a3", "ab_3_3"]);
        // What is added may be taken as well.
        assert_eq!(names(&["a_1", "a_13", "a1"]), ["a_1", "a_13", "a1_3x"]);
        // Those before do not depend on those after.
        assert_eq!(names(&["a_1", "a1", "b"])[..2], names(&["a_1", "a1"]));
    }
}
