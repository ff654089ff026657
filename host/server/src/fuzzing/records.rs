//! Targets for the conversions between JSON and tensors.

use semver::Version;
use serde_json::{Map, Value};

use super::bytes::Bytes;
use crate::edge::fuzzing::{self as edge, Parsed};
use guesthouse_model::contract::{self, SignatureSnapshot};
use guesthouse_model::record::{self, RecordError};
use guesthouse_model::{Constraint, Signature, Tensor, VersionId};

/// The longest input that cannot exceed the limit of values: an empty object costs as much as six
/// values and takes three bytes.
const SURELY_WITHIN_LIMITS: usize = edge::MAX_VALUES / 6;

/// Read a body of the Open Inference Protocol, after a line with the length of its JSON part, or an
/// empty line.
pub(super) fn tensors(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (line, body) = (&bytes[..end], &bytes[end + 1..]);
    let length = str::from_utf8(line).ok().and_then(|length| length.parse().ok());
    edge::tensors(body, length);
}

/// Read arbitrary JSON, with and without a limit of rows.
pub(super) fn json(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let most = bytes.below(8);
    let json = bytes.rest();
    let plain = serde_json::from_slice::<Value>(json);
    match edge::value(json, None) {
        Parsed::Value(value) => {
            let text = value.to_string();
            assert_eq!(plain.ok().as_ref(), Some(&value), "it is read as serde reads it");
            let Parsed::Value(again) = edge::value(text.as_bytes(), None) else {
                panic!("what was read and written can be read");
            };
            assert_eq!(again, value);
        }
        Parsed::Syntax => assert!(plain.is_err(), "what serde reads is JSON"),
        Parsed::TooManyValues => assert!(json.len() > SURELY_WITHIN_LIMITS),
        Parsed::TooManyRows => panic!("no limit was asked for"),
        Parsed::RepeatedKey => assert!(json.iter().filter(|byte| **byte == b':').count() > 1),
    }
    let is_over = |value: &Value| value.as_array().is_some_and(|rows| rows.len() > most);
    match edge::value(json, Some(most)) {
        Parsed::Value(Value::Object(fields)) => assert!(!fields.values().any(is_over)),
        // Reading stops at the limit, so the rest is not checked.
        Parsed::TooManyRows => assert!(json.len() > most),
        Parsed::TooManyValues => assert!(json.len() > SURELY_WITHIN_LIMITS),
        Parsed::Value(_) | Parsed::Syntax | Parsed::RepeatedKey => {}
    }
}

/// Read a body against a signature, both from the input.
pub(super) fn record(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let is_batch = bytes.byte() % 2 == 1;
    let Some(signature) = bytes.signature() else { return };
    let Some(rows) = edge::rows(bytes.rest(), is_batch, &signature) else { return };
    let records: Vec<_> = rows.iter().collect();
    match record::decode(&signature, &records) {
        Ok(tensors) => decoded(&signature, rows.len(), &tensors),
        Err(error) => {
            let (RecordError::Malformed(issues) | RecordError::Unacceptable(issues)) = &error;
            assert!((1..=20).contains(&issues.len()));
            assert!(issues.is_sorted_by_key(|issue| issue.row));
            assert!(issues.iter().all(|issue| issue.row < rows.len() && !issue.reason.is_empty()));
        }
    }
}

/// Check the tensors that were decoded from this number of rows.
fn decoded(signature: &Signature, rows: usize, tensors: &[Tensor]) {
    assert_eq!(tensors.len(), signature.inputs.len());
    for (field, tensor) in signature.inputs.iter().zip(tensors) {
        assert_eq!(tensor.check(), Ok(()));
        assert!(field.fits(tensor) && tensor.name == field.name, "{field:?} {tensor:?}");
        assert_eq!(tensor.rows(), rows as u64);
        assert!(tensor.is_finite());
        for middle in [0, rows / 2, rows] {
            let (one, other) =
                (tensor.slice_rows(0, middle), tensor.slice_rows(middle, rows - middle));
            assert_eq!((one.check(), other.check()), (Ok(()), Ok(())));
            assert_eq!([one.data, other.data].concat(), tensor.data, "no row is lost");
        }
    }
    // Encoding the tensors as outputs and decoding them again must not change them.
    let mut outputs = signature.inputs.clone();
    for field in &mut outputs {
        // A default may violate the constraints for callers.
        field.constraints.retain(|constraint| *constraint == Constraint::Text);
    }
    let echo = Signature { inputs: outputs.clone(), outputs, ..*signature };
    let Ok(records) = record::encode(&echo, tensors) else { return };
    let records: Vec<_> = records.iter().collect();
    let again = record::decode(&echo, &records);
    assert_eq!(again.as_deref(), Ok(tensors), "{records:?}");
}

/// Encode outputs: a tensor of arbitrary shape for each output of a signature.
pub(super) fn output(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let Some(signature) = bytes.signature() else { return };
    let rows = u64::from(bytes.byte() % 8);
    let outputs = signature.outputs.iter().map(|field| {
        let mut shape = vec![rows];
        shape.extend((0..bytes.below(4)).map(|_| match bytes.byte() {
            // The product of the dimensions may overflow.
            255 => u64::MAX,
            254 => 1 << 33,
            size => u64::from(size % 16),
        }));
        let length = usize::from(bytes.byte());
        let data = (0..length).map(|_| bytes.byte()).collect();
        Tensor { name: field.name.clone(), datatype: field.datatype, shape, data }
    });
    let outputs: Vec<_> = outputs.collect();
    let fits = signature
        .outputs
        .iter()
        .zip(&outputs)
        .all(|(field, tensor)| tensor.check().is_ok() && field.fits(tensor));
    if !fits {
        return;
    }
    let Ok(records) = record::encode(&signature, &outputs) else { return };
    assert_eq!(records.len() as u64, rows);
    let names: Vec<_> = signature.outputs.iter().map(|field| field.name.as_str()).collect();
    for record in &records {
        assert!(record.keys().eq(names.iter()));
        assert_eq!(record::compare_golden(record, record, &[].into()), None);
        let read: Map<String, Value> =
            serde_json::from_str(&Value::from(record.clone()).to_string()).expect("it is JSON");
        assert_eq!(read, *record);
    }
}

/// Read signatures: as JSON, and built from the input.
pub(super) fn signature(bytes: &[u8]) {
    let read = serde_json::from_slice::<Signature>(bytes).ok();
    let read = read.filter(|signature| signature.check().is_ok());
    let mut bytes = Bytes(bytes);
    let made = (bytes.signature(), bytes.signature());
    for signature in [&read, &made.0, &made.1].into_iter().flatten() {
        let json = serde_json::to_string(signature).expect("a signature is JSON");
        let again: Signature = serde_json::from_str(&json).expect("what was written can be read");
        assert_eq!(again, *signature);
        assert_eq!(contract::changes(signature, &again), []);
        let id = VersionId { name: "m".parse().expect("a name"), version: Version::new(1, 0, 0) };
        let snapshot = SignatureSnapshot::new(&id, signature).canonical();
        let again = SignatureSnapshot::parse(snapshot.as_bytes()).expect("a snapshot can be read");
        assert_eq!(again.canonical(), snapshot);
        assert!(
            contract::required_bump(&contract::changes(signature, &again.signature))
                == contract::Bump::Patch
        );
        // A row of defaults, if no input is required.
        if let Ok(tensors) = record::decode(signature, &[&Map::new()]) {
            decoded(signature, 1, &tensors);
        }
    }
    if let (Some(one), Some(other)) = &made {
        let there = contract::changes(one, other);
        let back = contract::changes(other, one);
        assert_eq!(there.is_empty(), back.is_empty());
    }
}
