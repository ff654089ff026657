//! Which paths belong to the Open Inference Protocol, whose clients expect errors in another form.

/// Whether responses at this path have the protocol's form. `/v2/predict` has not: it predicts with the
/// second major version of the default model.
pub(super) fn is_oip(path: &str) -> bool {
    let rest = path.strip_prefix("/v2");
    rest.is_some_and(|rest| {
        (rest.is_empty() || rest.starts_with('/'))
            && !["/predict", "/batch_predict"].contains(&rest)
    })
}

/// Whether this is the pattern of an endpoint that responds with tensors.
pub(super) fn is_inference(pattern: &str) -> bool {
    pattern.starts_with("/v2/") && pattern.ends_with("/infer")
}
