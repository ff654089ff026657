//! Encodes tensors as records.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use half::{bf16, f16};
use serde_json::{Map, Value};

use crate::{Datatype, Field, Signature, Tensor, bytes_elements};

/// The most JSON values in the records of one call: 64 rows of 4096 numbers. A value takes some 70
/// bytes during encoding.
const MAX_VALUES: u64 = 1 << 18;

/// The outputs have more values than a JSON response may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outputs have over {MAX_VALUES} values")]
pub struct TooManyValues;

/// Encode outputs as one record for each row. They must be the signature's outputs, in its order,
/// and valid.
///
/// # Errors
/// [`TooManyValues`]: guests decide the size of their outputs. Empty arrays count as well.
pub fn encode(
    signature: &Signature,
    outputs: &[Tensor],
) -> Result<Vec<Map<String, Value>>, TooManyValues> {
    let values = outputs.iter().map(count_values).fold(0, u64::saturating_add);
    if values > MAX_VALUES {
        return Err(TooManyValues);
    }
    let count = outputs.first().map_or(0, Tensor::rows);
    let mut records: Vec<_> = (0..count).map(|_| Map::new()).collect();
    for (field, tensor) in signature.outputs.iter().zip(outputs) {
        let mut elements = elements(field, tensor);
        for record in &mut records {
            record.insert(field.name.clone(), nest(&tensor.shape[1..], &mut elements));
        }
    }
    Ok(records)
}

/// The number of arrays, at every depth, and elements.
fn count_values(tensor: &Tensor) -> u64 {
    let mut at_this_depth = 1_u64;
    tensor.shape.iter().fold(0, |values, size| {
        at_this_depth = at_this_depth.saturating_mul(*size);
        values.saturating_add(at_this_depth)
    })
}

/// Take the next row of this shape.
fn nest(shape: &[u64], elements: &mut dyn Iterator<Item = Value>) -> Value {
    match shape.split_first() {
        None => elements.next().unwrap_or(Value::Null),
        Some((size, inner)) => (0..*size).map(|_| nest(inner, elements)).collect(),
    }
}

fn elements<'a>(field: &Field, tensor: &'a Tensor) -> Box<dyn Iterator<Item = Value> + 'a> {
    macro_rules! numbers {
        ($type:ty) => {
            Box::new(tensor.data.as_chunks().0.iter().map(|bytes| {
                // A float that is not finite becomes `null`.
                Value::from(<$type>::from_le_bytes(*bytes))
            }))
        };
    }
    match tensor.datatype {
        Datatype::Bytes if field.is_text() => Box::new(
            bytes_elements(&tensor.data)
                .map(|text| Value::String(String::from_utf8_lossy(text).into_owned())),
        ),
        Datatype::Bytes => {
            Box::new(bytes_elements(&tensor.data).map(|bytes| Value::String(BASE64.encode(bytes))))
        }
        Datatype::Bool => Box::new(tensor.data.iter().map(|flag| Value::Bool(*flag != 0))),
        Datatype::Uint8 => numbers!(u8),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp32 => {
            let floats = tensor.data.as_chunks().0.iter();
            Box::new(floats.map(|bytes| single_precision(f32::from_le_bytes(*bytes))))
        }
        Datatype::Fp64 => numbers!(f64),
        Datatype::Fp16 => {
            let floats = tensor.data.as_chunks().0.iter();
            Box::new(floats.map(|bytes| single_precision(f16::from_le_bytes(*bytes).to_f32())))
        }
        Datatype::Bf16 => {
            let floats = tensor.data.as_chunks().0.iter();
            Box::new(floats.map(|bytes| single_precision(bf16::from_le_bytes(*bytes).to_f32())))
        }
    }
}

/// A float with the fewest digits that identify it in single precision: 0.1 instead of
/// 0.10000000149011612.
fn single_precision(float: f32) -> Value {
    float.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decoded_rows_encode_to_the_same_values() {
        let field = |name: &str, datatype, row_shape| Field {
            name: name.to_owned(),
            description: String::new(),
            datatype,
            row_shape,
            constraints: vec![],
            default: None,
        };
        let outputs = vec![
            field("id", Datatype::Int64, vec![]),
            field("point", Datatype::Fp32, vec![Some(2)]),
            field("file", Datatype::Bytes, vec![]),
            field("half", Datatype::Fp16, vec![]),
            field("brain", Datatype::Bf16, vec![]),
        ];
        let signature = Signature { inputs: outputs.clone(), outputs, max_batch_size: 8 };
        let rows = [
            json!({"id": i64::MAX, "point": [0.1, -2.5], "file": "AAH/", "half": 0.5, "brain": 0.0078125}),
            json!({"id": -1, "point": [3.0, 1e-30], "file": "", "half": -65504.0, "brain": 0.75}),
        ];
        let records: Vec<_> = rows.iter().map(|row| row.as_object().unwrap()).collect();
        let tensors = super::super::decode(&signature, &records).unwrap();
        let back = encode(&signature, &tensors).unwrap();
        for (record, row) in back.iter().zip(rows) {
            assert_eq!(record["id"], row["id"]);
            assert_eq!(record["file"], row["file"]);
            assert_eq!(record["point"], row["point"]);
        }
    }

    #[test]
    fn non_finite_values_are_null() {
        let data = [f32::NAN, f32::INFINITY, 1.0].map(f32::to_le_bytes).concat();
        let name = "y".to_owned();
        let tensor = Tensor { name, datatype: Datatype::Fp32, shape: vec![3], data: data.into() };
        let field = Field {
            name: "y".to_owned(),
            description: String::new(),
            datatype: Datatype::Fp32,
            row_shape: vec![],
            constraints: vec![],
            default: None,
        };
        let signature = Signature { inputs: vec![], outputs: vec![field], max_batch_size: 8 };
        let values: Vec<_> = encode(&signature, &[tensor])
            .unwrap()
            .into_iter()
            .map(|row| row["y"].clone())
            .collect();
        assert_eq!(values, [json!(null), json!(null), json!(1.0)]);
    }

    #[test]
    fn a_huge_shape_without_elements_is_rejected() {
        let tensor = |shape: &[u64]| Tensor {
            name: "y".to_owned(),
            datatype: Datatype::Fp32,
            shape: shape.to_vec(),
            data: vec![].into(),
        };
        let signature = Signature { inputs: vec![], outputs: vec![], max_batch_size: 8 };
        assert!(encode(&signature, &[tensor(&[1, 0, 4_000_000_000])]).is_ok());
        assert_eq!(encode(&signature, &[tensor(&[1, 4_000_000_000, 0])]), Err(TooManyValues));
        assert_eq!(encode(&signature, &[tensor(&[u64::MAX, u64::MAX, 0])]), Err(TooManyValues));
    }
}
