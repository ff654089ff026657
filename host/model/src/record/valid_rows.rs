//! Decodes the valid rows of a batch independently of invalid ones.

use super::decode::OTHER_SHAPE;
use super::{InputRow, RecordError, RowIssue, decode};
use crate::{Signature, Tensor};

/// The valid rows of a batch, and the errors of the others.
#[derive(Debug, Default)]
pub struct ValidRows {
    /// The tensors of the valid rows, one for each input; empty if no row is valid.
    pub inputs: Vec<Tensor>,
    /// The indexes of the valid rows, in order.
    pub rows: Vec<usize>,
    /// The indexes and the errors of the invalid rows.
    pub invalid: Vec<(usize, RecordError)>,
}

/// Decode the valid rows of a batch. If valid rows have different shapes, those with the shape of
/// the first one are used.
pub fn decode_valid_rows<R: InputRow>(
    signature: &Signature,
    rows: impl IntoIterator<Item = (usize, R)>,
) -> ValidRows {
    let mut batch = ValidRows::default();
    for (row, record) in rows {
        // Each row separately, so that it does not depend on others.
        match decode(signature, &[record]).and_then(|tensors| batch.append(tensors)) {
            Ok(()) => batch.rows.push(row),
            Err(error) => batch.invalid.push((row, error.with_row(row))),
        }
    }
    batch
}

impl ValidRows {
    /// Append the tensors of a row, if they have the same shape.
    fn append(&mut self, tensors: Vec<Tensor>) -> Result<(), RecordError> {
        if self.inputs.is_empty() {
            self.inputs = tensors;
            return Ok(());
        }
        let other = |(before, tensor): &(&Tensor, &Tensor)| before.shape[1..] != tensor.shape[1..];
        let mut pairs = self.inputs.iter().zip(&tensors);
        if let Some((_, tensor)) = pairs.find(other) {
            let (field, reason) = (tensor.name.clone(), OTHER_SHAPE.to_owned());
            return Err(RecordError::Unacceptable(vec![RowIssue { row: 0, field, reason }]));
        }
        for (before, tensor) in self.inputs.iter_mut().zip(tensors) {
            let is_appended = before.append(&tensor);
            debug_assert!(is_appended, "decoded by the same signature, to the same shape");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::{Constraint, Datatype, Field};

    fn signature() -> Signature {
        let field = |name: &str, datatype, row_shape, constraints| Field {
            name: name.to_owned(),
            description: String::new(),
            datatype,
            row_shape,
            constraints,
            default: None,
        };
        let length = Constraint::Length { minimum: 1, maximum: 5 };
        let mut scale = field("scale", Datatype::Fp32, vec![], vec![]);
        scale.default = Some(1.0_f32.to_le_bytes().to_vec());
        Signature {
            inputs: vec![
                field("text", Datatype::Bytes, vec![], vec![Constraint::Text, length]),
                field("pixels", Datatype::Uint8, vec![None], vec![]),
                scale,
            ],
            outputs: vec![],
            max_batch_size: 8,
        }
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    fn good() -> impl Strategy<Value = Map<String, Value>> {
        ("[a-zß]{1,5}", any::<[u8; 2]>(), any::<Option<i8>>()).prop_map(|(text, pixels, scale)| {
            let mut row = object(json!({"text": text, "pixels": pixels}));
            row.extend(scale.map(|scale| ("scale".to_owned(), json!(scale))));
            row
        })
    }

    fn bad() -> impl Strategy<Value = Map<String, Value>> {
        prop_oneof![
            Just(json!({})),
            Just(json!({"text": "a"})),
            Just(json!({"text": 1, "pixels": [1, 2]})),
            Just(json!({"text": "longer", "pixels": [1, 2]})),
            Just(json!({"text": "a", "pixels": [1, 256]})),
            Just(json!({"text": "a", "pixels": [1, 2], "scale": "x"})),
            Just(json!({"text": "a", "pixels": [1, 2], "other": 1})),
        ]
        .prop_map(object)
    }

    proptest! {
        /// Invalid rows do not affect the tensors of valid ones, and are reported with their
        /// indexes.
        #[test]
        fn invalid_rows_do_not_affect_valid_ones(
            rows in prop::collection::vec(prop_oneof![
                good().prop_map(|row| (true, row)),
                bad().prop_map(|row| (false, row)),
            ], 0..20),
        ) {
            let batch = decode_valid_rows(&signature(), rows.iter().map(|(_, row)| row).enumerate());
            let places = |wanted: bool| {
                let places = rows.iter().enumerate().filter(move |(_, (good, _))| *good == wanted);
                places.map(|(place, _)| place).collect::<Vec<_>>()
            };
            prop_assert_eq!(&batch.rows, &places(true));
            let alone: Vec<_> = rows.iter().filter(|(good, _)| *good).map(|(_, row)| row).collect();
            if !alone.is_empty() {
                prop_assert_eq!(&batch.inputs, &decode(&signature(), &alone).unwrap());
            }
            let invalid: Vec<_> = batch.invalid.iter().map(|(place, _)| *place).collect();
            prop_assert_eq!(invalid, places(false));
            for (place, error) in &batch.invalid {
                let alone = decode(&signature(), &[&rows[*place].1]).unwrap_err();
                prop_assert_eq!(error, &alone.with_row(*place));
            }
        }
    }

    #[test]
    fn the_first_valid_row_decides_the_shape() {
        let rows = [
            json!({"text": "", "pixels": [1]}),
            json!({"text": "a", "pixels": [1, 2]}),
            json!({"text": "b", "pixels": [1, 2, 3]}),
            json!({"text": "c", "pixels": [3, 4]}),
        ]
        .map(object);
        let batch = decode_valid_rows(&signature(), rows.iter().enumerate());
        assert_eq!(batch.rows, [1, 3]);
        let shapes: Vec<_> = batch.inputs.iter().map(|input| input.shape.clone()).collect();
        assert_eq!(shapes, [vec![2], vec![2, 2], vec![2]]);
        assert!(batch.inputs.iter().all(|input| input.check().is_ok()));
    }
}
