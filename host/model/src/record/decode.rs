//! Decodes records into tensors and validates them against the signature.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use half::{bf16, f16};
use serde_json::{Map, Number, Value};

use crate::{Constraint, Datatype, Field, Signature, Tensor};

/// The most issues that are reported for one request.
const MAX_ISSUES: usize = 20;

/// The issue of a row whose arrays have other sizes than those of the first row.
pub(super) const OTHER_SHAPE: &str = "has another shape than the rows before it";

/// A problem of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowIssue {
    /// The index of the record in the request, from 0.
    pub row: usize,
    /// The name of the input.
    pub field: String,
    /// The problem, as a fragment that continues the input's name; shown to the caller.
    pub reason: String,
}

/// Records that do not match a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// Inputs are missing or unknown, or values have the wrong type.
    Malformed(Vec<RowIssue>),
    /// Values have the right types, but violate constraints.
    Unacceptable(Vec<RowIssue>),
}

impl RecordError {
    /// The issues: at least one, at most [`MAX_ISSUES`].
    pub fn issues(&self) -> &[RowIssue] {
        match self {
            Self::Malformed(issues) | Self::Unacceptable(issues) => issues,
        }
    }
}

impl RecordError {
    /// The same issues with this row number.
    pub(super) fn with_row(mut self, row: usize) -> Self {
        let (Self::Malformed(issues) | Self::Unacceptable(issues)) = &mut self;
        for issue in issues {
            issue.row = row;
        }
        self
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.issues().first() else {
            return Ok(());
        };
        write!(formatter, "row {}: `{}` {}", first.row, first.field, first.reason)
    }
}

impl std::error::Error for RecordError {}

/// The problem of a value: of its type, or of its content.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Issue {
    Malformed(String),
    Unacceptable(String),
}

pub(super) fn malformed<T>(reason: impl Into<String>) -> Result<T, Issue> {
    Err(Issue::Malformed(reason.into()))
}

pub(super) fn unacceptable<T>(reason: impl Into<String>) -> Result<T, Issue> {
    Err(Issue::Unacceptable(reason.into()))
}

/// The value of an input in a row.
#[derive(Debug, Clone, Copy)]
pub enum InputValue<'a> {
    /// A JSON value.
    Json(&'a Value),
    /// A byte string as it is, for an input of byte strings without a row shape.
    Raw(&'a [u8]),
}

/// A row of values by input.
pub trait InputRow {
    /// The names of all inputs that have a value.
    fn names(&self) -> impl Iterator<Item = &str>;

    /// The value of an input.
    fn value(&self, name: &str) -> Option<InputValue<'_>>;
}

impl InputRow for Map<String, Value> {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.keys().map(String::as_str)
    }

    fn value(&self, name: &str) -> Option<InputValue<'_>> {
        self.get(name).map(InputValue::Json)
    }
}

impl<R: InputRow> InputRow for &R {
    fn names(&self) -> impl Iterator<Item = &str> {
        (*self).names()
    }

    fn value(&self, name: &str) -> Option<InputValue<'_>> {
        (*self).value(name)
    }
}

/// Decode rows into one tensor for each input of the signature, in its order.
///
/// # Errors
/// [`RecordError`] with all invalid values. Wrong types are reported before violated constraints.
pub fn decode(signature: &Signature, rows: &[impl InputRow]) -> Result<Vec<Tensor>, RecordError> {
    let mut issues = Issues::default();
    for (row, record) in rows.iter().enumerate() {
        let known = |name: &str| signature.inputs.iter().any(|field| field.name == name);
        for name in record.names().filter(|name| !known(name)) {
            let shown = name.chars().take(64).collect();
            issues.add(row, shown, Issue::Malformed("is not an input of this model".to_owned()));
        }
    }
    let columns = signature.inputs.iter().map(|field| column(field, rows, &mut issues));
    let columns: Vec<Tensor> = columns.collect();
    issues.check()?;
    Ok(columns)
}

#[derive(Default)]
pub(super) struct Issues {
    malformed: Vec<RowIssue>,
    unacceptable: Vec<RowIssue>,
}

impl Issues {
    pub(super) fn add(&mut self, row: usize, field: String, issue: Issue) {
        let (issues, reason) = match issue {
            Issue::Malformed(reason) => (&mut self.malformed, reason),
            Issue::Unacceptable(reason) => (&mut self.unacceptable, reason),
        };
        if issues.len() < MAX_ISSUES {
            issues.push(RowIssue { row, field, reason });
        }
    }

    pub(super) fn check(mut self) -> Result<(), RecordError> {
        let by_row = |issues: &mut Vec<RowIssue>| issues.sort_by_key(|issue| issue.row);
        if !self.malformed.is_empty() {
            by_row(&mut self.malformed);
            return Err(RecordError::Malformed(self.malformed));
        }
        if !self.unacceptable.is_empty() {
            by_row(&mut self.unacceptable);
            return Err(RecordError::Unacceptable(self.unacceptable));
        }
        Ok(())
    }
}

fn column(field: &Field, rows: &[impl InputRow], issues: &mut Issues) -> Tensor {
    let mut column = Column { field, data: Vec::new(), dimensions: None };
    for (row, record) in rows.iter().enumerate() {
        if let Err(issue) = column.add(record.value(&field.name)) {
            issues.add(row, field.name.clone(), issue);
        }
    }
    let mut shape = vec![rows.len() as u64];
    shape.extend(column.dimensions.unwrap_or_default());
    Tensor { name: field.name.clone(), datatype: field.datatype, shape, data: column.data.into() }
}

/// The tensor of one input, built row by row.
struct Column<'a> {
    field: &'a Field,
    data: Vec<u8>,
    /// The dimensions of the first row, which all other rows must have.
    dimensions: Option<Vec<u64>>,
}

impl Column<'_> {
    fn add(&mut self, value: Option<InputValue<'_>>) -> Result<(), Issue> {
        let Some(value) = value else {
            let Some(default) = &self.field.default else {
                return malformed("is missing");
            };
            self.data.extend_from_slice(default);
            let fixed = self.field.row_shape.iter().flatten();
            return self.agree(fixed.map(|size| u64::from(*size)).collect());
        };
        let mut dimensions = Vec::with_capacity(self.field.row_shape.len());
        match value {
            InputValue::Json(value) => self.add_nested(value, 0, &mut dimensions)?,
            InputValue::Raw(bytes) => self.add_raw(bytes)?,
        }
        // An empty array leaves the dimensions below it open.
        let below = self.field.row_shape.iter().skip(dimensions.len());
        dimensions.extend(below.map(|size| size.map_or(0, u64::from)));
        self.agree(dimensions)
    }

    fn add_raw(&mut self, bytes: &[u8]) -> Result<(), Issue> {
        if self.field.datatype != Datatype::Bytes || !self.field.row_shape.is_empty() {
            return malformed("is no byte string");
        }
        if !self.field.is_text() {
            return add_byte_string(self.field, bytes, &mut self.data);
        }
        match str::from_utf8(bytes) {
            Ok(text) => append(&mut self.data, check_text(self.field, text)?.as_bytes()),
            Err(_) => malformed("must be UTF-8"),
        }
    }

    fn agree(&mut self, dimensions: Vec<u64>) -> Result<(), Issue> {
        if *self.dimensions.get_or_insert_with(|| dimensions.clone()) == dimensions {
            Ok(())
        } else {
            unacceptable(OTHER_SHAPE)
        }
    }

    fn add_nested(
        &mut self,
        value: &Value,
        depth: usize,
        dimensions: &mut Vec<u64>,
    ) -> Result<(), Issue> {
        let Some(wanted) = self.field.row_shape.get(depth) else {
            return add_element(self.field, value, &mut self.data);
        };
        let Value::Array(elements) = value else {
            return malformed("must be an array");
        };
        let size = elements.len() as u64;
        if wanted.is_some_and(|wanted| u64::from(wanted) != size) {
            return unacceptable(format!("has {size} elements in dimension {}", depth + 1));
        }
        match dimensions.get(depth) {
            None => dimensions.push(size),
            Some(before) if *before == size => {}
            Some(_) => return malformed("is a ragged array"),
        }
        elements.iter().try_for_each(|element| self.add_nested(element, depth + 1, dimensions))
    }
}

fn add_element(field: &Field, value: &Value, data: &mut Vec<u8>) -> Result<(), Issue> {
    match field.datatype {
        Datatype::Bytes => add_bytes(field, value, data),
        Datatype::Bool => {
            let Value::Bool(flag) = value else {
                return malformed("must be true or false");
            };
            data.push(u8::from(*flag));
            Ok(())
        }
        _ => {
            let Value::Number(number) = value else {
                return malformed("must be a number");
            };
            add_number(field, number, data)
        }
    }
}

fn add_bytes(field: &Field, value: &Value, data: &mut Vec<u8>) -> Result<(), Issue> {
    let Value::String(string) = value else {
        return malformed("must be a string");
    };
    if field.is_text() {
        let text = check_text(field, string)?;
        return append(data, text.as_bytes());
    }
    let Ok(bytes) = BASE64.decode(string) else {
        return malformed("must be base64");
    };
    add_byte_string(field, &bytes, data)
}

fn add_byte_string(field: &Field, bytes: &[u8], data: &mut Vec<u8>) -> Result<(), Issue> {
    for constraint in &field.constraints {
        if let Constraint::Length { minimum, maximum } = constraint {
            check_length(bytes.len(), "bytes", *minimum, *maximum)?;
        }
    }
    append(data, bytes)
}

pub(super) fn check_text<'a>(field: &Field, text: &'a str) -> Result<&'a str, Issue> {
    let stripped = field.constraints.contains(&Constraint::Stripped);
    let text = if stripped { text.trim() } else { text };
    for constraint in &field.constraints {
        match constraint {
            Constraint::Length { minimum, maximum } => {
                check_length(text.chars().count(), "characters", *minimum, *maximum)?;
            }
            Constraint::OneOf(labels) if !labels.iter().any(|label| label == text) => {
                return unacceptable("is not one of the values that the model knows");
            }
            Constraint::OneOf(_)
            | Constraint::Text
            | Constraint::Stripped
            | Constraint::Range { .. }
            | Constraint::Padded(_) => {}
        }
    }
    Ok(text)
}

pub(super) fn check_length(
    length: usize,
    unit: &str,
    minimum: u32,
    maximum: u32,
) -> Result<(), Issue> {
    if length < minimum as usize || length > maximum as usize {
        return unacceptable(format!("has {length} {unit}, not {minimum} to {maximum}"));
    }
    Ok(())
}

pub(super) fn append(data: &mut Vec<u8>, element: &[u8]) -> Result<(), Issue> {
    let Ok(length) = u32::try_from(element.len()) else {
        return unacceptable("is too long");
    };
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
    Ok(())
}

fn add_number(field: &Field, number: &Number, data: &mut Vec<u8>) -> Result<(), Issue> {
    let Some(approximate) = number.as_f64() else {
        return unacceptable("is out of range");
    };
    for constraint in &field.constraints {
        if let Constraint::Range { minimum, maximum } = constraint {
            let low = minimum.is_some_and(|minimum| approximate < minimum);
            let high = maximum.is_some_and(|maximum| approximate > maximum);
            if low || high {
                return unacceptable("is out of range");
            }
        }
    }
    macro_rules! integer {
        ($type:ty) => {
            match <$type>::try_from(whole(number)?) {
                Ok(value) => data.extend_from_slice(&value.to_le_bytes()),
                Err(_) => return unacceptable("is out of range"),
            }
        };
    }
    match field.datatype {
        Datatype::Int8 => integer!(i8),
        Datatype::Int16 => integer!(i16),
        Datatype::Int32 => integer!(i32),
        Datatype::Int64 => integer!(i64),
        Datatype::Uint8 => integer!(u8),
        Datatype::Uint16 => integer!(u16),
        Datatype::Uint32 => integer!(u32),
        Datatype::Uint64 => integer!(u64),
        Datatype::Fp64 => data.extend_from_slice(&approximate.to_le_bytes()),
        Datatype::Fp32 => {
            #[expect(clippy::cast_possible_truncation, reason = "rounding is what FP32 means")]
            let single = approximate as f32;
            if single.is_infinite() {
                return unacceptable("is out of range");
            }
            data.extend_from_slice(&single.to_le_bytes());
        }
        Datatype::Fp16 => {
            let half = f16::from_f32(round_to_odd(approximate));
            if half.is_infinite() {
                return unacceptable("is out of range");
            }
            data.extend_from_slice(&half.to_le_bytes());
        }
        Datatype::Bf16 => {
            let half = bf16::from_f32(round_to_odd(approximate));
            if half.is_infinite() {
                return unacceptable("is out of range");
            }
            data.extend_from_slice(&half.to_le_bytes());
        }
        Datatype::Bool | Datatype::Bytes => {
            return malformed("must not be a number");
        }
    }
    Ok(())
}

/// Round a number to odd in single precision, so that rounding the result to half precision gives
/// the same result as rounding the number directly. Rounding to nearest twice would not.
fn round_to_odd(number: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "what is cut off is looked at")]
    let nearest = number as f32;
    let exact = f64::from(nearest);
    if exact == number || nearest.is_infinite() {
        return nearest;
    }
    let towards_zero =
        if exact.abs() > number.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(towards_zero | 1)
}

/// The value of an integer. `1.0` is an integer, as in JSON Schema.
fn whole(number: &Number) -> Result<i128, Issue> {
    /// The largest magnitude up to which every integer has an exact f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(integer) = number.as_i128() {
        return Ok(integer);
    }
    match number.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
        Some(float) if float.fract() == 0.0 && float.abs() <= EXACT => Ok(float as i128),
        Some(float) if float.fract() == 0.0 => unacceptable("is out of range"),
        _ => malformed("must be an integer"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn signature(field: Field) -> Signature {
        Signature { inputs: vec![field], outputs: vec![], max_batch_size: 8 }
    }

    fn field(datatype: Datatype, constraints: Vec<Constraint>) -> Field {
        let (name, description) = ("x".to_owned(), String::new());
        Field { name, description, datatype, row_shape: vec![], constraints, default: None }
    }

    fn decode_one(field: &Field, record: &Value) -> Result<Tensor, RecordError> {
        let record = record.as_object().unwrap();
        decode(&signature(field.clone()), &[record]).map(|mut tensors| tensors.remove(0))
    }

    fn text() -> Field {
        // White space is stripped first, whatever the order of the constraints.
        let length = Constraint::Length { minimum: 1, maximum: 5 };
        field(Datatype::Bytes, vec![Constraint::Text, length, Constraint::Stripped])
    }

    #[test]
    fn texts_are_stripped_before_their_length_is_checked() {
        let tensor = decode_one(&text(), &json!({"x": "\u{a0} häß ß\n"})).unwrap();
        assert_eq!(tensor.data[4..], *"häß ß".as_bytes());
        for bad in ["", "  \t ", "123456"] {
            let outcome = decode_one(&text(), &json!({"x": bad}));
            assert!(matches!(outcome, Err(RecordError::Unacceptable(_))), "{bad:?}");
        }
    }

    #[test]
    fn wrong_types_are_reported_before_violated_constraints() {
        for bad in [json!({}), json!({"x": 1}), json!({"x": null}), json!({"x": "a", "y": 1})] {
            assert!(matches!(decode_one(&text(), &bad), Err(RecordError::Malformed(_))), "{bad}");
        }
        let (long, wrong) = (json!({"x": "123456"}), json!({"x": 1}));
        let rows = [long.as_object().unwrap(), wrong.as_object().unwrap()];
        let Err(RecordError::Malformed(issues)) = decode(&signature(text()), &rows) else {
            panic!("a wrong type outranks a long text");
        };
        assert_eq!(issues.len(), 1);
        assert_eq!((issues[0].row, issues[0].field.as_str()), (1, "x"));
    }

    #[test]
    fn half_precision_numbers_are_rounded_to_nearest() {
        let bits = |datatype, value: Value| {
            let tensor = decode_one(&field(datatype, vec![]), &json!({ "x": value })).unwrap();
            u16::from_le_bytes(tensor.data[..].try_into().unwrap())
        };
        // Exact values, the largest, the smallest, and ties, which round to even.
        for (value, fp16) in [
            (json!(1), 0x3c00),
            (json!(-0.0), 0x8000),
            (json!(65504), 0x7bff),
            (json!(65519.9), 0x7bff),
            (json!(5.960_464_477_539_063e-8), 0x0001),
            (json!(0.1), 0x2e66),
            (json!(2049), 0x6800),
            (json!(2051), 0x6802),
            // Just above a tie, which rounding twice would lose.
            (json!(2_049.000_000_000_1), 0x6801),
        ] {
            assert_eq!(bits(Datatype::Fp16, value.clone()), fp16, "{value}");
        }
        for (value, bf16) in [
            (json!(1), 0x3f80),
            (json!(0.1), 0x3dcd),
            (json!(257), 0x4380),
            (json!(259), 0x4382),
            (json!(257.000_000_000_1), 0x4381),
            (json!(3.389_531_389_251_535_5e38), 0x7f7f),
        ] {
            assert_eq!(bits(Datatype::Bf16, value.clone()), bf16, "{value}");
        }
    }

    #[test]
    fn integers_are_exact_and_bounded() {
        let good = |datatype, value: Value| {
            Vec::from(decode_one(&field(datatype, vec![]), &json!({ "x": value })).unwrap().data)
        };
        assert_eq!(good(Datatype::Uint64, json!(u64::MAX)), u64::MAX.to_le_bytes());
        assert_eq!(good(Datatype::Int64, json!(i64::MIN)), i64::MIN.to_le_bytes());
        assert_eq!(good(Datatype::Int8, json!(-128.0)), (-128_i8).to_le_bytes());
        let is =
            |datatype, value: Value| decode_one(&field(datatype, vec![]), &json!({"x": value}));
        assert!(matches!(is(Datatype::Int8, json!(128)), Err(RecordError::Unacceptable(_))));
        assert!(matches!(is(Datatype::Uint8, json!(-1)), Err(RecordError::Unacceptable(_))));
        assert!(matches!(is(Datatype::Int64, json!(1e300)), Err(RecordError::Unacceptable(_))));
        assert!(matches!(is(Datatype::Int8, json!(1.5)), Err(RecordError::Malformed(_))));
        assert!(matches!(is(Datatype::Fp32, json!(1e39)), Err(RecordError::Unacceptable(_))));
        for datatype in [Datatype::Fp16, Datatype::Bf16] {
            assert!(matches!(is(datatype, json!(1e39)), Err(RecordError::Unacceptable(_))));
            assert!(matches!(is(datatype, json!("1")), Err(RecordError::Malformed(_))));
        }
        assert!(matches!(is(Datatype::Fp16, json!(65520)), Err(RecordError::Unacceptable(_))));
        let range = Constraint::Range { minimum: Some(0.0), maximum: None };
        let outcome = decode_one(&field(Datatype::Fp32, vec![range]), &json!({"x": -0.1}));
        assert!(matches!(outcome, Err(RecordError::Unacceptable(_))));
    }

    #[test]
    fn arrays_follow_the_row_shape() {
        let mut matrix = field(Datatype::Uint8, vec![]);
        matrix.row_shape = vec![Some(2), None];
        let tensor = decode_one(&matrix, &json!({"x": [[1, 2, 3], [4, 5, 6]]})).unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.check()), (&[1, 2, 3][..], Ok(())));
        let empty = Field { row_shape: vec![None, Some(2)], ..matrix.clone() };
        let tensor = decode_one(&empty, &json!({"x": []})).unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.check()), (&[1, 0, 2][..], Ok(())));
        let malformed = [json!(1), json!([1, 2]), json!([[1], [2, 3]]), json!([[[1]], [[2]]])];
        for bad in malformed {
            let outcome = decode_one(&matrix, &json!({ "x": bad }));
            assert!(matches!(outcome, Err(RecordError::Malformed(_))), "{outcome:?}");
        }
        let outcome = decode_one(&matrix, &json!({"x": [[1]]}));
        assert!(matches!(outcome, Err(RecordError::Unacceptable(_))));
    }

    #[test]
    fn omitted_inputs_get_their_defaults() {
        let mut optional = field(Datatype::Fp32, vec![]);
        optional.default = Some(2.5_f32.to_le_bytes().to_vec());
        assert_eq!(decode_one(&optional, &json!({})).unwrap().data[..], 2.5_f32.to_le_bytes());
    }
}
