//! Tensors of requests are written as responses and read again, for tests and the fuzzer.

use axum::body::Bytes;

use super::answer::{self, OutputForms};
use super::request::{self, Layout};
use crate::edge::error::ApiError;
use guesthouse_model::{Tensor, VersionId};

/// Write tensors as outputs and read them as inputs.
///
/// # Errors
/// They have no form in JSON.
///
/// # Panics
/// They have changed.
fn round_trip(tensors: &[Tensor], binary: bool) -> Result<(), ApiError> {
    let version = "1.0.0".parse().expect("a version");
    let version = VersionId { name: "model".parse().expect("a name"), version };
    let body = answer::write(&version, None, tensors, &OutputForms::new(binary, &[])?)?;
    let (json, raw) = body.bytes.split_at(body.json_length.unwrap_or(body.bytes.len()));
    let json = str::from_utf8(json).expect("JSON is a text");
    serde_json::from_str::<serde_json::Value>(json).expect("JSON for others as well");
    let json = json.replacen("\"outputs\":", "\"inputs\":", 1);
    let sent = Bytes::from([json.as_bytes(), raw].concat());
    let read = request::parse(&sent, Layout::JsonThenTensors(json.len()));
    let read = read.expect("an answer is as a request has to be").request.inputs;
    assert_eq!(read, tensors, "{json}");
    Ok(())
}

/// Read a body, and check that its tensors survive a round trip.
pub(in crate::edge) fn read(body: &[u8], layout: Layout) {
    let body = Bytes::copy_from_slice(body);
    let Ok(request) = request::parse(&body, layout) else { return };
    assert_eq!(request::parse(&body, layout).ok().as_ref(), Some(&request));
    let mut tensors = request.request.inputs;
    tensors.retain(|tensor| tensor.check().is_ok());
    assert!(round_trip(&tensors, true).is_ok(), "every tensor has a binary form");
    // Some tensors have no form in JSON.
    let _ = round_trip(&tensors, false);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::elements::tests::tensors;
    use super::*;

    proptest! {
        #[test]
        fn raw_tensors_round_trip_bit_for_bit(
            tensors in prop::collection::vec(tensors(false), 0..4),
        ) {
            prop_assert!(round_trip(&tensors, true).is_ok());
        }

        #[test]
        fn json_tensors_round_trip_bit_for_bit(
            tensors in prop::collection::vec(tensors(true), 0..4),
        ) {
            prop_assert!(round_trip(&tensors, false).is_ok());
        }

        /// No body causes a panic.
        #[test]
        fn any_bytes_are_read_or_rejected(
            body in prop::collection::vec(any::<u8>(), 0..64),
            length in 0..80_usize,
        ) {
            read(&body, Layout::Json);
            read(&body, Layout::JsonThenTensors(length));
        }

        /// The datatype may come before or after the data.
        #[test]
        fn fields_are_accepted_in_any_order(
            tensor in tensors(true),
            order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
        ) {
            let mut data = Vec::new();
            super::super::elements::write(&tensor, &mut data).unwrap();
            let fields = [
                format!("\"name\": \"{}\"", tensor.name),
                format!("\"datatype\": \"{}\"", tensor.datatype.as_str()),
                format!("\"shape\": {:?}", tensor.shape),
                format!("\"data\": {}", String::from_utf8(data).unwrap()),
            ];
            let fields: Vec<_> = order.iter().map(|place| fields[*place].as_str()).collect();
            let json = format!("{{\"inputs\": [{{{}}}]}}", fields.join(", "));
            let read = request::parse(&json.into(), Layout::Json).unwrap();
            prop_assert_eq!(read.request.inputs, [tensor]);
        }
    }
}
