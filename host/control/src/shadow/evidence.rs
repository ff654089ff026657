//! The record of a disagreement: enough to find its input again, and no more than the operator wants. The
//! input is identified by a hash. Values of the input, and texts of outputs, are only kept if the operator
//! has enabled it for the model, except labels that the signature lists.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::compare::{Difference, DifferenceKind};
use guesthouse_model::record;
use guesthouse_model::{Constraint, Datatype, Field, Signature, Tensor, bytes_elements};
use guesthouse_runtime::clock;

/// The longest part of a record that is kept, in bytes: about a screenful.
const MAX_RECORD_BYTES: usize = 4 << 10;

/// Serialise a time as RFC 3339 with milliseconds.
pub(super) fn serialize_rfc3339<S: Serializer>(
    time: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// One disagreement of two versions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Disagreement {
    /// When it was found.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub time: SystemTime,
    /// The id of the request, as in the access log.
    pub request_id: String,
    /// SHA-256 of the inputs of the row, or of the whole batch if there is no row, in hexadecimal. See
    /// [`hash_inputs`] for the bytes that are hashed.
    pub input_sha256: String,
    /// The index of the row in the request, from 0; none if the disagreement concerns a whole batch.
    pub row: Option<usize>,
    /// The name of the output; none if the candidate gave no outputs.
    pub output: Option<String>,
    /// How the outputs differ.
    pub kind: DifferenceKind,
    /// The kind of the fault, if the candidate gave no outputs.
    pub fault: Option<&'static str>,
    /// The distance of two numbers.
    pub difference: Option<f64>,
    /// The two labels, if labels differ.
    pub labels: Option<Labels>,
    /// The records, if the operator has enabled capturing for the model.
    pub captured: Option<CapturedRecords>,
}

/// Two labels. A text that the signature of its version does not list is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// The label of the version that answered.
    pub primary: Option<String>,
    /// The label of the candidate.
    pub candidate: Option<String>,
}

/// The input and the outputs as records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapturedRecords {
    /// The input.
    pub input: Excerpt,
    /// The outputs of the version that answered.
    pub primary: Excerpt,
    /// The outputs of the candidate, if it gave any.
    pub candidate: Option<Excerpt>,
}

/// A JSON value, or its beginning as a string if it is longer than 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt(String);

impl Serialize for Excerpt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<Value>(&self.0) {
            Ok(value) => value.serialize(serializer),
            Err(_cut) => serializer.serialize_str(&self.0),
        }
    }
}

/// Fields of a signature with the tensors that belong to them.
#[derive(Clone, Copy)]
pub(super) struct NamedTensors<'a> {
    pub(super) fields: &'a [Field],
    pub(super) tensors: &'a [Tensor],
}

impl<'a> NamedTensors<'a> {
    pub(super) fn inputs(signature: &'a Signature, tensors: &'a [Tensor]) -> Self {
        Self { fields: &signature.inputs, tensors }
    }

    pub(super) fn outputs(signature: &'a Signature, tensors: &'a [Tensor]) -> Self {
        Self { fields: &signature.outputs, tensors }
    }

    fn find(&self, name: &str) -> Option<(&'a Field, &'a Tensor)> {
        let mut named_tensors = self.fields.iter().zip(self.tensors);
        named_tensors.find(|(field, _)| field.name == name)
    }

    fn row(&self, row: Option<usize>) -> Vec<Tensor> {
        match row {
            Some(row) => self.tensors.iter().map(|tensor| tensor.slice_rows(row, 1)).collect(),
            None => self.tensors.to_vec(),
        }
    }
}

/// A batch with the outputs of both versions, from which disagreements are recorded.
pub(super) struct Evidence<'a> {
    pub(super) request_id: &'a str,
    /// The index of its first row in the request.
    pub(super) first_row: usize,
    pub(super) capture: bool,
    /// The inputs as they were validated against the signature of the primary.
    pub(super) inputs: NamedTensors<'a>,
    pub(super) primary: NamedTensors<'a>,
    /// None before the candidate has given outputs.
    pub(super) candidate: Option<NamedTensors<'a>>,
}

impl Evidence<'_> {
    /// The disagreement of a candidate that ended with a fault.
    pub(super) fn fault(&self, fault: &'static str, row: Option<usize>) -> Disagreement {
        let disagreement = self.disagreement(DifferenceKind::Error, row);
        Disagreement { fault: Some(fault), ..disagreement }
    }

    /// The disagreement in the primary's output of this index.
    pub(super) fn difference(&self, output: usize, difference: &Difference) -> Disagreement {
        let name = &self.primary.fields[output].name;
        let labels = (difference.kind == DifferenceKind::Label).then(|| {
            let label = |named_tensors: &NamedTensors<'_>| {
                let (field, tensor) = named_tensors.find(name)?;
                listed_label(field, tensor, difference.element)
            };
            let candidate = self.candidate.as_ref().and_then(label);
            Labels { primary: label(&self.primary), candidate }
        });
        Disagreement {
            output: Some(name.clone()),
            difference: (difference.kind == DifferenceKind::Score).then_some(difference.distance),
            labels,
            ..self.disagreement(difference.kind, difference.row)
        }
    }

    fn disagreement(&self, kind: DifferenceKind, row: Option<usize>) -> Disagreement {
        let captured = self.capture.then(|| CapturedRecords {
            input: excerpt(self.inputs, row),
            primary: excerpt(self.primary, row),
            candidate: self.candidate.map(|candidate| excerpt(candidate, row)),
        });
        Disagreement {
            time: clock::now(),
            request_id: self.request_id.to_owned(),
            input_sha256: hash_inputs(&self.inputs.row(row)),
            row: row.map(|row| self.first_row + row),
            output: None,
            kind,
            fault: None,
            difference: None,
            labels: None,
            captured,
        }
    }
}

/// SHA-256 over, for each tensor: the length of its name, the name, the number of dimensions, the
/// dimensions, the length of its data, the data. Numbers have eight bytes, little-endian.
pub(super) fn hash_inputs(tensors: &[Tensor]) -> String {
    let mut hash = Sha256::new();
    for tensor in tensors {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(&tensor.name);
        hash.update((tensor.shape.len() as u64).to_le_bytes());
        tensor.shape.iter().for_each(|dimension| hash.update(dimension.to_le_bytes()));
        hash.update((tensor.data.len() as u64).to_le_bytes());
        hash.update(&tensor.data);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written to");
        text
    })
}

/// The element as a text, if it is a boolean or one of the labels that the field lists.
fn listed_label(field: &Field, tensor: &Tensor, element: usize) -> Option<String> {
    match tensor.datatype {
        Datatype::Bool => tensor.data.get(element).map(|flag| (*flag != 0).to_string()),
        Datatype::Bytes => {
            let label = str::from_utf8(bytes_elements(&tensor.data).nth(element)?).ok()?;
            let lists = |constraint: &Constraint| match constraint {
                Constraint::OneOf(labels) => labels.iter().any(|listed| listed == label),
                _ => false,
            };
            field.constraints.iter().any(lists).then(|| label.to_owned())
        }
        _ => None,
    }
}

/// The record of the row, or an array of all records.
fn excerpt(named_tensors: NamedTensors<'_>, row: Option<usize>) -> Excerpt {
    // Only outputs can be encoded as records.
    let outputs = named_tensors.fields.to_vec();
    let signature = Signature { inputs: Vec::new(), outputs, max_batch_size: 1 };
    let text = match record::encode(&signature, &named_tensors.row(row)) {
        Ok(mut records) if row.is_some() => serde_json::to_string(&records.pop()),
        Ok(records) => serde_json::to_string(&records),
        Err(too_large) => Ok(format!("({too_large})")),
    };
    let mut text = text.expect("values can be written");
    // A truncated object or array is not valid JSON, so a reader can tell it from a whole one.
    text.truncate(text.floor_char_boundary(MAX_RECORD_BYTES));
    text.shrink_to_fit();
    Excerpt(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "what the caller wrote";

    fn field(name: &str, datatype: Datatype, constraints: Vec<Constraint>) -> Field {
        let (name, description) = (name.to_owned(), String::new());
        Field { name, description, datatype, row_shape: vec![], constraints, default: None }
    }

    fn texts(name: &str, values: &[&str]) -> Tensor {
        let mut data = Vec::new();
        for value in values {
            data.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
            data.extend_from_slice(value.as_bytes());
        }
        let shape = vec![values.len() as u64];
        Tensor { name: name.to_owned(), datatype: Datatype::Bytes, shape, data: data.into() }
    }

    fn signature() -> Signature {
        let text = || vec![Constraint::Text];
        let listed = Constraint::OneOf(vec!["clean".to_owned(), "toxic".to_owned()]);
        let label = field("label", Datatype::Bytes, vec![Constraint::Text, listed]);
        Signature {
            inputs: vec![field("text", Datatype::Bytes, text())],
            outputs: vec![label, field("echo", Datatype::Bytes, text())],
            max_batch_size: 8,
        }
    }

    /// What is kept of two rows, of which the second differs in both outputs, and of a fault.
    fn kept(capture: bool, secret: &str) -> Vec<Disagreement> {
        let signature = signature();
        let inputs = [texts("text", &["a", secret])];
        let primary = [texts("label", &["clean", "clean"]), texts("echo", &["a", secret])];
        let candidate = [texts("label", &["clean", "toxic"]), texts("echo", &["a", "b"])];
        let witness = Evidence {
            request_id: "r",
            first_row: 10,
            capture,
            inputs: NamedTensors::inputs(&signature, &inputs),
            primary: NamedTensors::outputs(&signature, &primary),
            candidate: Some(NamedTensors::outputs(&signature, &candidate)),
        };
        let label =
            Difference { kind: DifferenceKind::Label, row: Some(1), element: 1, distance: 0.0 };
        let mut kept: Vec<_> = (0..2).map(|output| witness.difference(output, &label)).collect();
        kept.push(Evidence { candidate: None, ..witness }.fault("trap", None));
        kept
    }

    #[test]
    fn without_capture_only_listed_labels_are_kept() {
        let kept = kept(false, SECRET);
        let label = |label: &str| Some(label.to_owned());
        let listed = Labels { primary: label("clean"), candidate: label("toxic") };
        assert_eq!(kept[0].labels, Some(listed));
        assert_eq!(kept[1].labels, Some(Labels { primary: None, candidate: None }));
        assert_eq!((kept[0].row, kept[2].row, kept[2].fault), (Some(11), None, Some("trap")));
        for disagreement in &kept {
            assert_eq!(disagreement.captured, None);
            let debug = format!("{disagreement:?}");
            let written = serde_json::to_string(disagreement).unwrap();
            for text in [debug, written] {
                assert!(!text.contains(SECRET), "{text}");
            }
        }
    }

    #[test]
    fn with_capture_rows_are_kept_as_records() {
        let kept = serde_json::to_value(kept(true, SECRET)).unwrap();
        let captured = &kept[0]["captured"];
        assert_eq!(captured["input"], serde_json::json!({"text": SECRET}));
        assert_eq!(captured["primary"], serde_json::json!({"label": "clean", "echo": SECRET}));
        assert_eq!(captured["candidate"], serde_json::json!({"label": "toxic", "echo": "b"}));
        let captured = &kept[2]["captured"];
        assert_eq!(captured["input"], serde_json::json!([{"text": "a"}, {"text": SECRET}]));
        assert_eq!(captured["candidate"], Value::Null);
    }

    #[test]
    fn captured_rows_are_truncated() {
        let long = "ü".repeat(MAX_RECORD_BYTES);
        let kept = kept(true, &long);
        let Excerpt(input) = &kept[0].captured.as_ref().unwrap().input;
        assert!(input.len() <= MAX_RECORD_BYTES && input.len() > MAX_RECORD_BYTES - 4);
        let written = serde_json::to_value(&kept[0]).unwrap();
        assert!(written["captured"]["input"].as_str().unwrap().starts_with("{\"text\":\"ü"));
    }

    #[test]
    fn input_hashes_are_reproducible() {
        // Computed with Python's hashlib and struct.
        let wanted = "1759edebc77930a9ec8a57deb270f3caf9fb212d709ec09a9033070ca03b5b7f";
        assert_eq!(hash_inputs(&[texts("text", &["a"])]), wanted);
        assert_eq!(kept(false, "a")[0].input_sha256, wanted);
        assert_ne!(kept(false, "b")[0].input_sha256, wanted);
        assert_ne!(
            hash_inputs(&[texts("text", &["a", "b"])]),
            hash_inputs(&[texts("text", &["ab"])])
        );
    }
}
