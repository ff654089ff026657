//! The fields that callers send: what a manifest says about them, on top of what takes them.

use guesthouse_guest::tract_onnx::prelude::f16;
use guesthouse_guest::{Datatype, Error, Field};
use guesthouse_onnx_manifest::{Input, Value};

/// What the graph or a step of preprocessing needs of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) datatype: Datatype,
    /// Byte strings are texts.
    pub(crate) is_text: bool,
    pub(crate) row_shape: Vec<Option<u32>>,
    /// The texts that are understood.
    pub(crate) one_of: Option<Vec<String>>,
    /// The value if a caller sends none, unless the manifest has another one.
    pub(crate) default: Option<Value>,
    /// Used if the manifest has none.
    pub(crate) description: String,
}

impl Wanted {
    /// One element a row.
    pub(crate) fn element(datatype: Datatype, description: &str) -> Self {
        Self {
            datatype,
            is_text: false,
            row_shape: Vec::new(),
            one_of: None,
            default: None,
            description: description.to_owned(),
        }
    }
}

/// A description with its unit.
pub(crate) fn described(
    given: Option<&str>,
    unit: Option<&str>,
    otherwise: impl Fn() -> String,
) -> String {
    let description = given.map_or_else(otherwise, str::to_owned);
    match unit {
        Some(unit) => format!("{description}, in {unit}"),
        None => description,
    }
}

/// The field of a signature.
pub(crate) fn field(input: &Input, wanted: &Wanted) -> Result<Field, Error> {
    let wrong = |what: String| Error::new(format!("input {:?}: {what}", input.name));
    let only = |is_fit: bool, key: &str, of: &str| {
        if is_fit { Ok(()) } else { Err(wrong(format!("`{key}` is for {of}: remove it"))) }
    };
    let is_bytes = wanted.datatype == Datatype::Bytes;
    let description = described(input.description.as_deref(), input.unit.as_deref(), || {
        wanted.description.clone()
    });
    let mut field = match wanted.is_text {
        true => Field::text(&input.name, &description),
        false => Field::new(&input.name, &description, wanted.datatype),
    };
    field = field.row_shape(wanted.row_shape.iter().copied());
    if input.stripped {
        only(wanted.is_text, "stripped", "texts")?;
        field = field.stripped();
    }
    if let Some([least, greatest]) = input.length {
        only(is_bytes, "length", "texts and files")?;
        field = field.length(least, greatest);
    }
    let labels = input.one_of.as_ref().map(|labels| labels.texts().to_vec());
    if let Some(labels) = labels.or_else(|| wanted.one_of.clone()) {
        only(wanted.is_text, "one_of", "texts")?;
        field = field.one_of(labels);
    }
    if input.minimum.is_some() || input.maximum.is_some() {
        let is_number = !is_bytes && wanted.datatype != Datatype::Bool;
        only(is_number, "minimum` and `maximum", "numbers")?;
        field = field.bounds(input.minimum, input.maximum);
    }
    if let Some(value) = input.default.as_ref().or(wanted.default.as_ref()) {
        let sizes: Option<Vec<usize>> =
            wanted.row_shape.iter().map(|size| size.map(|size| size as usize)).collect();
        let sizes = sizes
            .ok_or_else(|| wrong("`default` is for rows of a fixed size: remove it".to_owned()))?;
        let element =
            encode(value, wanted.datatype).map_err(|what| wrong(format!("`default`: {what}")))?;
        field = field.default_row(element.repeat(sizes.iter().product()));
    }
    if let Some(number) = input.padding {
        let element = encode(&Value::Number(number), wanted.datatype);
        field = field.padded(element.map_err(|what| wrong(format!("`padding`: {what}")))?);
    }
    Ok(field)
}

/// An element in the encoding of the contract.
fn encode(value: &Value, datatype: Datatype) -> Result<Vec<u8>, String> {
    macro_rules! whole {
        ($kind:ty) => {
            whole(value)
                .and_then(|number| <$kind>::try_from(number).ok())
                .map(|number| number.to_le_bytes().to_vec())
        };
    }
    let encoded = match datatype {
        Datatype::Bool => match value {
            Value::Flag(flag) => Some(vec![u8::from(*flag)]),
            _ => None,
        },
        Datatype::Uint8 => whole!(u8),
        Datatype::Uint16 => whole!(u16),
        Datatype::Uint32 => whole!(u32),
        Datatype::Uint64 => whole!(u64),
        Datatype::Int8 => whole!(i8),
        Datatype::Int16 => whole!(i16),
        Datatype::Int32 => whole!(i32),
        Datatype::Int64 => whole!(i64),
        Datatype::Fp16 => number(value).map(|number| f16::from_f64(number).to_le_bytes().to_vec()),
        #[expect(clippy::cast_possible_truncation, reason = "as precise as the field")]
        Datatype::Fp32 | Datatype::Bf16 => {
            let bytes = number(value).map(|number| (number as f32).to_le_bytes().to_vec());
            bytes.map(|bytes| match datatype {
                Datatype::Bf16 => bytes[2..].to_vec(),
                _ => bytes,
            })
        }
        Datatype::Fp64 => number(value).map(|number| number.to_le_bytes().to_vec()),
        Datatype::Bytes => match value {
            Value::Text(text) => u32::try_from(text.len())
                .ok()
                .map(|length| [&length.to_le_bytes(), text.as_bytes()].concat()),
            _ => None,
        },
    };
    encoded.ok_or_else(|| format!("{value:?} is no value of type {datatype:?}"))
}

/// A value as a whole number.
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        #[expect(clippy::cast_possible_truncation, reason = "compared with what it was")]
        Value::Number(number) if (*number as i64) as f64 == *number => Some(*number as i64),
        _ => None,
    }
}

/// A value as a number.
pub(crate) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Number(number) => Some(*number),
        Value::Flag(_) | Value::Text(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(input: Input, wanted: &Wanted) -> String {
        field(&input, wanted).unwrap_err().to_string()
    }

    #[test]
    fn constraints_that_do_not_fit_the_type_are_rejected() {
        let number = Wanted::element(Datatype::Fp32, "a number");
        let text = Wanted { is_text: true, ..Wanted::element(Datatype::Bytes, "a text") };
        let input = || Input { name: "x".to_owned(), ..Input::default() };
        for (error, expected) in [
            (error(Input { stripped: true, ..input() }, &number), "`stripped` is for texts"),
            (error(Input { length: Some([1, 2]), ..input() }, &number), "`length` is for texts"),
            (error(Input { minimum: Some(1.0), ..input() }, &text), "`maximum` is for numbers"),
            (
                error(Input { default: Some(Value::Text("a".to_owned())), ..input() }, &number),
                "is no value of type",
            ),
        ] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn defaults_fill_all_elements_of_a_row() {
        let wanted =
            Wanted { row_shape: vec![Some(2)], ..Wanted::element(Datatype::Int16, "two numbers") };
        let input =
            Input { name: "x".to_owned(), default: Some(Value::Integer(-2)), ..Input::default() };
        let found = format!("{:?}", field(&input, &wanted).unwrap());
        assert!(found.contains("default: Some([254, 255, 254, 255])"), "{found}");
    }

    #[test]
    fn values_that_a_type_cannot_hold_are_rejected() {
        for (value, datatype) in [
            (Value::Integer(256), Datatype::Uint8),
            (Value::Integer(-1), Datatype::Uint64),
            (Value::Number(0.5), Datatype::Int32),
            (Value::Flag(true), Datatype::Fp32),
            (Value::Integer(1), Datatype::Bool),
        ] {
            assert!(encode(&value, datatype).is_err(), "{value:?} {datatype:?}");
        }
        assert_eq!(encode(&Value::Number(3.0), Datatype::Int8).unwrap(), [3]);
    }
}
