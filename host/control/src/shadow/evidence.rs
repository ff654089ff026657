//! What is kept of a disagreement: enough to find its input again, and no more than the operator
//! wants. The input is named by a hash; of what it says, and of texts that were answered, nothing is
//! kept but labels that the signature lists itself, unless the model's operator has asked for it.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::compare::{Difference, Kind};
use super::report::moment;
use guesthouse_model::record;
use guesthouse_model::{Constraint, Datatype, Field, Signature, Tensor, bytes_elements};
use guesthouse_runtime::clock;

/// The most of a record that is kept, in bytes: a screenful.
const MAX_RECORD_BYTES: usize = 4 << 10;

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Disagreement {
    /// When it was found.
    #[serde(serialize_with = "moment")]
    pub time: SystemTime,
    /// Of the request, as it is in the log.
    pub request_id: String,
    /// SHA-256 of the row's inputs, in hexadecimal, or of the whole batch's if it has no row: of
    /// each input the name, the shape and the bytes, as [`hash`] writes them.
    pub input_sha256: String,
    /// Index of the record in the request, from 0; none where it concerns all of a batch.
    pub row: Option<usize>,
    /// The output; none where there is no answer.
    pub output: Option<String>,
    /// How it differs.
    pub kind: Kind,
    /// The kind of the fault, where there is no answer.
    pub fault: Option<&'static str>,
    /// How far two numbers are apart.
    pub difference: Option<f64>,
    /// Where labels differ.
    pub labels: Option<Labels>,
    /// Only where the operator has asked for it.
    pub captured: Option<Captured>,
}

/// Two labels; none in place of a text that the version's signature does not list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// Of the version that answered.
    pub primary: Option<String>,
    /// Of the version that was asked as well.
    pub candidate: Option<String>,
}

/// What was asked and answered, as records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Captured {
    /// What was asked.
    pub input: Excerpt,
    /// What was answered.
    pub primary: Excerpt,
    /// What the candidate would have answered, if anything.
    pub candidate: Option<Excerpt>,
}

/// JSON, as a value; or as a string with the beginning of it, if it is over 4 KiB.
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

/// A version's fields with the tensors that fill them.
#[derive(Clone, Copy)]
pub(super) struct Filled<'a> {
    pub(super) fields: &'a [Field],
    pub(super) tensors: &'a [Tensor],
}

impl<'a> Filled<'a> {
    pub(super) fn inputs(signature: &'a Signature, tensors: &'a [Tensor]) -> Self {
        Self { fields: &signature.inputs, tensors }
    }

    pub(super) fn outputs(signature: &'a Signature, tensors: &'a [Tensor]) -> Self {
        Self { fields: &signature.outputs, tensors }
    }

    fn named(&self, name: &str) -> Option<(&'a Field, &'a Tensor)> {
        let mut filled = self.fields.iter().zip(self.tensors);
        filled.find(|(field, _)| field.name == name)
    }

    fn row(&self, row: Option<usize>) -> Vec<Tensor> {
        match row {
            Some(row) => self.tensors.iter().map(|tensor| tensor.slice_rows(row, 1)).collect(),
            None => self.tensors.to_vec(),
        }
    }
}

/// A batch with its answers, of which there is something to tell.
pub(super) struct Witness<'a> {
    pub(super) request_id: &'a str,
    /// Where the batch begins in its request.
    pub(super) first_row: usize,
    pub(super) capture: bool,
    /// As they were validated for the primary.
    pub(super) inputs: Filled<'a>,
    pub(super) primary: Filled<'a>,
    /// If there are any.
    pub(super) candidate: Option<Filled<'a>>,
}

impl Witness<'_> {
    /// The candidate's fault is the disagreement.
    pub(super) fn of_fault(&self, fault: &'static str, row: Option<usize>) -> Disagreement {
        let disagreement = self.of(Kind::Error, row);
        Disagreement { fault: Some(fault), ..disagreement }
    }

    /// An output of the primary, by its place, is not the candidate's.
    pub(super) fn of_difference(&self, output: usize, difference: &Difference) -> Disagreement {
        let name = &self.primary.fields[output].name;
        let labels = (difference.kind == Kind::Label).then(|| {
            let label = |filled: &Filled<'_>| {
                let (field, tensor) = filled.named(name)?;
                listed_label(field, tensor, difference.element)
            };
            let candidate = self.candidate.as_ref().and_then(label);
            Labels { primary: label(&self.primary), candidate }
        });
        Disagreement {
            output: Some(name.clone()),
            difference: (difference.kind == Kind::Score).then_some(difference.distance),
            labels,
            ..self.of(difference.kind, difference.row)
        }
    }

    fn of(&self, kind: Kind, row: Option<usize>) -> Disagreement {
        let captured = self.capture.then(|| Captured {
            input: excerpt(self.inputs, row),
            primary: excerpt(self.primary, row),
            candidate: self.candidate.map(|candidate| excerpt(candidate, row)),
        });
        Disagreement {
            time: clock::now(),
            request_id: self.request_id.to_owned(),
            input_sha256: hash(&self.inputs.row(row)),
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

/// Of each tensor: the length of its name, the name, the number of dimensions, the dimensions, the
/// length of its data, the data. Numbers are of eight bytes, little-endian.
pub(super) fn hash(tensors: &[Tensor]) -> String {
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

/// The element, if it is a flag or one of the labels that the field lists.
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
fn excerpt(filled: Filled<'_>, row: Option<usize>) -> Excerpt {
    // Records are made of outputs.
    let outputs = filled.fields.to_vec();
    let signature = Signature { inputs: Vec::new(), outputs, max_batch_size: 1 };
    let text = match record::encode(&signature, &filled.row(row)) {
        Ok(mut records) if row.is_some() => serde_json::to_string(&records.pop()),
        Ok(records) => serde_json::to_string(&records),
        Err(too_large) => Ok(format!("({too_large})")),
    };
    let mut text = text.expect("values can be written");
    // The beginning of an object or an array is no JSON, by which it is known for what it is.
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
        Tensor { name: name.to_owned(), datatype: Datatype::Bytes, shape, data }
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
        let witness = Witness {
            request_id: "r",
            first_row: 10,
            capture,
            inputs: Filled::inputs(&signature, &inputs),
            primary: Filled::outputs(&signature, &primary),
            candidate: Some(Filled::outputs(&signature, &candidate)),
        };
        let label = Difference { kind: Kind::Label, row: Some(1), element: 1, distance: 0.0 };
        let mut kept: Vec<_> = (0..2).map(|output| witness.of_difference(output, &label)).collect();
        kept.push(Witness { candidate: None, ..witness }.of_fault("trap", None));
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
        assert_eq!(hash(&[texts("text", &["a"])]), wanted);
        assert_eq!(kept(false, "a")[0].input_sha256, wanted);
        assert_ne!(kept(false, "b")[0].input_sha256, wanted);
        assert_ne!(hash(&[texts("text", &["a", "b"])]), hash(&[texts("text", &["ab"])]));
    }
}
