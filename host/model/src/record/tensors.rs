//! Validates tensors that a caller has sent, for protocols that carry tensors instead of records.
//! Guests see the same values as for equivalent JSON.

use super::decode::{Issue, Issues, append, check_length, check_text, malformed, unacceptable};
use super::{RecordError, RowIssue};
use crate::{Constraint, Datatype, Field, Signature, Tensor, TensorError, bytes_elements};

/// The most characters of a caller's input that an error message quotes.
const MAX_SHOWN: usize = 64;

/// Tensors that do not match a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorInputError {
    /// An input is missing, unknown or repeated, or has another datatype, shape or length.
    #[error("{0}")]
    Malformed(String),
    /// A value is invalid or violates a constraint.
    #[error(transparent)]
    Values(#[from] RecordError),
}

fn malformed_input<T>(name: &str, what: impl std::fmt::Display) -> Result<T, TensorInputError> {
    let name: String = name.chars().take(MAX_SHOWN).collect();
    Err(TensorInputError::Malformed(format!("input `{name}` {what}")))
}

/// Validate tensors and return one for each input of the signature, in its order, all with the same
/// number of rows, which is at least 1. Omitted inputs get their defaults. An input without a row
/// shape may have a last dimension of 1, as several clients send it.
///
/// # Errors
/// [`TensorInputError`]. Wrong types are reported before violated constraints.
pub fn validate_tensors(
    signature: &Signature,
    mut given: Vec<Tensor>,
) -> Result<Vec<Tensor>, TensorInputError> {
    let mut rows = None;
    for (index, tensor) in given.iter_mut().enumerate() {
        let Some(field) = signature.inputs.iter().find(|field| field.name == tensor.name) else {
            return malformed_input(&tensor.name, "is not an input of this model");
        };
        shape(field, tensor)?;
        match (tensor.rows(), *rows.get_or_insert(tensor.rows())) {
            (0, _) => return malformed_input(&field.name, "has no rows"),
            (rows, first) if rows == first => {}
            (rows, first) => {
                let what = format!("has {rows} rows, and the inputs before it have {first}");
                return malformed_input(&field.name, what);
            }
        }
        if signature.inputs.len() <= index {
            // With this many tensors, one must be repeated.
            return malformed_input(&field.name, "is there twice, or another is");
        }
    }
    let rows = rows.unwrap_or(1);
    let mut inputs = Vec::with_capacity(signature.inputs.len());
    for field in &signature.inputs {
        let input = match given.iter().position(|tensor| tensor.name == field.name) {
            Some(place) => given.swap_remove(place),
            None => default(field, rows)?,
        };
        inputs.push(input);
    }
    if let Some(second) = given.first() {
        return malformed_input(&second.name, "is there twice");
    }
    let mut issues = Issues::default();
    for (field, input) in signature.inputs.iter().zip(&mut inputs) {
        values(field, input, &mut issues);
    }
    issues.check()?;
    Ok(inputs)
}

fn shape(field: &Field, tensor: &mut Tensor) -> Result<(), TensorInputError> {
    if tensor.datatype != field.datatype {
        let (is, wanted) = (tensor.datatype.as_str(), field.datatype.as_str());
        return malformed_input(&field.name, format!("is {is}, and the model takes {wanted}"));
    }
    if field.row_shape.is_empty() && tensor.shape.len() == 2 && tensor.shape[1] == 1 {
        tensor.shape.truncate(1);
    }
    if !field.fits(tensor) {
        let mut wanted = "[-1".to_owned();
        for size in &field.row_shape {
            wanted += &size.map_or(", -1".to_owned(), |size| format!(", {size}"));
        }
        let is = &tensor.shape[..tensor.shape.len().min(16)];
        return malformed_input(
            &field.name,
            format!("has the shape {is:?}, and the model takes {wanted}]"),
        );
    }
    tensor.check().or_else(|error| match error {
        TensorError::Length => {
            malformed_input(&field.name, "has more or fewer bytes than its shape")
        }
        TensorError::TooLarge => malformed_input(&field.name, "has a shape that is too large"),
        TensorError::NoBatch => malformed_input(&field.name, "has no batch dimension"),
    })
}

fn default(field: &Field, rows: u64) -> Result<Tensor, TensorInputError> {
    let Some(default) = &field.default else {
        return malformed_input(&field.name, "is missing");
    };
    let count = usize::try_from(rows).unwrap_or(usize::MAX);
    let mut shape = vec![rows];
    // Inputs with a default have a fixed shape.
    shape.extend(field.row_shape.iter().flatten().map(|size| u64::from(*size)));
    let (name, data) = (field.name.clone(), default.repeat(count).into());
    Ok(Tensor { name, datatype: field.datatype, shape, data })
}

/// Validate every element, if the datatype or the constraints exclude any value.
fn values(field: &Field, tensor: &mut Tensor, issues: &mut Issues) {
    let per_row = tensor.shape[1..].iter().product::<u64>().max(1);
    let per_row = usize::try_from(per_row).unwrap_or(usize::MAX);
    let mut add = |element: usize, outcome: Result<(), Issue>| {
        if let Err(issue) = outcome {
            issues.add(element / per_row, field.name.clone(), issue);
        }
    };
    match tensor.datatype {
        Datatype::Bool => {
            for (element, flag) in tensor.data.iter().enumerate().filter(|(_, flag)| **flag > 1) {
                add(element, malformed(format!("is {flag}, neither 0 nor 1")));
            }
        }
        Datatype::Bytes if field.constraints.is_empty() => {}
        Datatype::Bytes => {
            let mut data = Vec::with_capacity(tensor.data.len());
            for (element, bytes) in bytes_elements(&tensor.data).enumerate() {
                add(element, byte_string(field, bytes, &mut data));
            }
            tensor.data = data.into();
        }
        _ => {
            let ranges = field.constraints.iter().filter_map(|constraint| match constraint {
                Constraint::Range { minimum, maximum } => Some((*minimum, *maximum)),
                _ => None,
            });
            for (minimum, maximum) in ranges {
                let is_good = |value: f64| {
                    value.is_finite()
                        && minimum.is_none_or(|minimum| value >= minimum)
                        && maximum.is_none_or(|maximum| value <= maximum)
                };
                for (element, value) in tensor.numbers().enumerate() {
                    if !is_good(value) {
                        add(element, unacceptable("is out of range"));
                    }
                }
            }
        }
    }
}

/// Append the element in the form that the guest receives.
fn byte_string(field: &Field, bytes: &[u8], data: &mut Vec<u8>) -> Result<(), Issue> {
    if field.is_text() {
        let Ok(text) = str::from_utf8(bytes) else {
            return malformed("must be UTF-8");
        };
        return append(data, check_text(field, text)?.as_bytes());
    }
    for constraint in &field.constraints {
        if let Constraint::Length { minimum, maximum } = constraint {
            check_length(bytes.len(), "bytes", *minimum, *maximum)?;
        }
    }
    append(data, bytes)
}

impl TensorInputError {
    /// The issues of single rows, if that is the problem.
    pub fn issues(&self) -> &[RowIssue] {
        match self {
            Self::Malformed(_) => &[],
            Self::Values(error) => error.issues(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::super::decode;
    use super::*;

    fn field(name: &str, datatype: Datatype, row_shape: Vec<Option<u32>>) -> Field {
        let (description, constraints) = (String::new(), Vec::new());
        Field {
            name: name.to_owned(),
            description,
            datatype,
            row_shape,
            constraints,
            default: None,
        }
    }

    fn signature(inputs: Vec<Field>) -> Signature {
        let outputs = vec![field("y", Datatype::Fp32, vec![])];
        Signature { inputs, outputs, max_batch_size: 8 }
    }

    fn tensor(name: &str, datatype: Datatype, shape: &[u64], data: &[u8]) -> Tensor {
        Tensor {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
            data: data.to_vec().into(),
        }
    }

    fn strings(texts: &[&[u8]]) -> Vec<u8> {
        let length = |text: &&[u8]| u32::try_from(text.len()).unwrap().to_le_bytes();
        texts.iter().flat_map(|text| [&length(text), *text].concat()).collect()
    }

    #[test]
    fn tensors_are_ordered_like_the_signature() {
        let mut with_default = field("b", Datatype::Uint8, vec![Some(2)]);
        with_default.default = Some(vec![7, 8]);
        let signature = signature(vec![field("a", Datatype::Int8, vec![]), with_default]);
        let (a, b) = (
            tensor("a", Datatype::Int8, &[2], &[1, 2]),
            tensor("b", Datatype::Uint8, &[2, 2], &[1, 2, 3, 4]),
        );
        let both = vec![a.clone(), b.clone()];
        assert_eq!(validate_tensors(&signature, vec![b.clone(), a.clone()]), Ok(both));
        let filled = tensor("b", Datatype::Uint8, &[2, 2], &[7, 8, 7, 8]);
        assert_eq!(
            validate_tensors(&signature, vec![a.clone()]),
            Ok(vec![a.clone(), filled.clone()])
        );
        let column = tensor("a", Datatype::Int8, &[2, 1], &[1, 2]);
        assert_eq!(validate_tensors(&signature, vec![column]), Ok(vec![a, filled]));
    }

    #[test]
    fn mismatched_tensors_are_rejected() {
        let signature = signature(vec![
            field("a", Datatype::Int8, vec![]),
            field("b", Datatype::Int16, vec![Some(2)]),
        ]);
        let a = || tensor("a", Datatype::Int8, &[1], &[1]);
        let b = || tensor("b", Datatype::Int16, &[1, 2], &[0; 4]);
        assert!(validate_tensors(&signature, vec![a(), b()]).is_ok());
        let bad = [
            vec![a()],
            vec![],
            vec![a(), a()],
            vec![a(), b(), b()],
            vec![a(), b(), tensor("c", Datatype::Int8, &[1], &[1])],
            vec![a(), tensor("b", Datatype::Uint16, &[1, 2], &[0; 4])],
            vec![a(), tensor("b", Datatype::Int16, &[2, 2], &[0; 8])],
            vec![a(), tensor("b", Datatype::Int16, &[2], &[0; 4])],
            vec![a(), tensor("b", Datatype::Int16, &[1, 3], &[0; 6])],
            vec![a(), tensor("b", Datatype::Int16, &[1, 2], &[0; 5])],
            vec![tensor("a", Datatype::Int8, &[], &[1]), b()],
            vec![
                tensor("a", Datatype::Int8, &[0], &[]),
                tensor("b", Datatype::Int16, &[0, 2], &[]),
            ],
            vec![tensor("a", Datatype::Int8, &[u64::MAX], &[1]), b()],
        ];
        for given in bad {
            let outcome = validate_tensors(&signature, given.clone());
            assert!(
                matches!(outcome, Err(TensorInputError::Malformed(_))),
                "{given:?} {outcome:?}"
            );
        }
    }

    #[test]
    fn values_are_checked_and_stripped() {
        let mut text = field("t", Datatype::Bytes, vec![]);
        let length = Constraint::Length { minimum: 1, maximum: 3 };
        text.constraints = vec![Constraint::Text, Constraint::Stripped, length];
        let texts = signature(vec![text]);
        let given = |texts: &[&[u8]]| {
            let rows = texts.len() as u64;
            vec![tensor("t", Datatype::Bytes, &[rows], &strings(texts))]
        };
        let outcome = validate_tensors(&texts, given(&[b" ab ", "äöü".as_bytes()]));
        assert_eq!(outcome, Ok(given(&[b"ab", "äöü".as_bytes()])));
        let rows = |outcome: Result<_, TensorInputError>| {
            let error = outcome.unwrap_err();
            error.issues().iter().map(|issue| issue.row).collect::<Vec<_>>()
        };
        assert_eq!(rows(validate_tensors(&texts, given(&[b"a", b" ", b"abcd"]))), [1, 2]);
        assert_eq!(rows(validate_tensors(&texts, given(&[b"a", b"\xff"]))), [1]);

        let flags = signature(vec![field("f", Datatype::Bool, vec![Some(2)])]);
        let given = vec![tensor("f", Datatype::Bool, &[2, 2], &[0, 1, 1, 2])];
        assert_eq!(rows(validate_tensors(&flags, given)), [1]);

        for (datatype, good, bad) in [
            (Datatype::Fp16, 0x3c00_u16, [0xbc00_u16, 0x7c00, 0x7e00, 0x4001]),
            (Datatype::Bf16, 0x3f80, [0xbf80, 0x7f80, 0x7fc0, 0x4001]),
        ] {
            let mut number = field("n", datatype, vec![]);
            number.constraints = vec![Constraint::Range { minimum: Some(0.0), maximum: Some(2.0) }];
            let numbers = signature(vec![number]);
            let given = |bits: u16| vec![tensor("n", datatype, &[1], &bits.to_le_bytes())];
            assert!(validate_tensors(&numbers, given(good)).is_ok());
            for bits in bad {
                assert_eq!(rows(validate_tensors(&numbers, given(bits))), [0], "{bits:x}");
            }
        }
    }

    proptest! {
        /// Numbers in tensors are validated like numbers in records.
        #[test]
        fn tensors_and_records_are_equivalent(
            values in prop::collection::vec(-2000_i32..2000, 1..20),
            low in -1000_i32..0,
            high in 0_i32..1000,
        ) {
            let mut number = field("n", Datatype::Int32, vec![]);
            let (minimum, maximum) = (Some(f64::from(low)), Some(f64::from(high)));
            number.constraints = vec![Constraint::Range { minimum, maximum }];
            let signature = signature(vec![number]);
            let record = |value: &i32| -> Map<String, Value> {
                json!({"n": value}).as_object().unwrap().clone()
            };
            let records: Vec<_> = values.iter().map(record).collect();
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let tensor = tensor("n", Datatype::Int32, &[values.len() as u64], &data);
            let as_records = decode(&signature, &records).map_err(TensorInputError::Values);
            prop_assert_eq!(validate_tensors(&signature, vec![tensor]), as_records);
        }
    }
}
