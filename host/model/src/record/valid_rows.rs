//! The rows of a batch that fit a signature, whatever the others are.

use super::decode::OTHER_SHAPE;
use super::{InputRow, RecordError, RowIssue, decode};
use crate::{Signature, Tensor};

/// The rows that fit a signature, and why the others do not.
#[derive(Debug, Default)]
pub struct ValidRows {
    /// The tensors of those that fit, one for each input; none, if no row fits.
    pub inputs: Vec<Tensor>,
    /// Which those are, in their order.
    pub rows: Vec<usize>,
    /// All others.
    pub refused: Vec<(usize, RecordError)>,
}

/// Tensors of the rows that fit, whatever the others are. Where rows of different shapes would fit,
/// the first one decides.
pub fn decode_valid_rows<R: InputRow>(
    signature: &Signature,
    rows: impl IntoIterator<Item = (usize, R)>,
) -> ValidRows {
    let mut fitting = ValidRows::default();
    for (row, record) in rows {
        // By itself, so that it cannot depend on others.
        match decode(signature, &[record]).and_then(|tensors| fitting.append(tensors)) {
            Ok(()) => fitting.rows.push(row),
            Err(error) => fitting.refused.push((row, error.with_row(row))),
        }
    }
    fitting
}

impl ValidRows {
    /// Add the tensors of one row, if they have the shape of those before.
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
            before.shape[0] += 1;
            before.data.extend_from_slice(&tensor.data);
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
        /// Good rows are what they are without bad ones around them, and bad ones are told by their
        /// places.
        #[test]
        fn bad_rows_change_nothing_of_good_ones(
            rows in prop::collection::vec(prop_oneof![
                good().prop_map(|row| (true, row)),
                bad().prop_map(|row| (false, row)),
            ], 0..20),
        ) {
            let fitting = decode_valid_rows(&signature(), rows.iter().map(|(_, row)| row).enumerate());
            let places = |wanted: bool| {
                let places = rows.iter().enumerate().filter(move |(_, (good, _))| *good == wanted);
                places.map(|(place, _)| place).collect::<Vec<_>>()
            };
            prop_assert_eq!(&fitting.rows, &places(true));
            let alone: Vec<_> = rows.iter().filter(|(good, _)| *good).map(|(_, row)| row).collect();
            if !alone.is_empty() {
                prop_assert_eq!(&fitting.inputs, &decode(&signature(), &alone).unwrap());
            }
            let refused: Vec<_> = fitting.refused.iter().map(|(place, _)| *place).collect();
            prop_assert_eq!(refused, places(false));
            for (place, error) in &fitting.refused {
                let alone = decode(&signature(), &[&rows[*place].1]).unwrap_err();
                prop_assert_eq!(error, &alone.with_row(*place));
            }
        }
    }

    #[test]
    fn the_first_row_that_fits_decides_about_shapes() {
        let rows = [
            json!({"text": "", "pixels": [1]}),
            json!({"text": "a", "pixels": [1, 2]}),
            json!({"text": "b", "pixels": [1, 2, 3]}),
            json!({"text": "c", "pixels": [3, 4]}),
        ]
        .map(object);
        let fitting = decode_valid_rows(&signature(), rows.iter().enumerate());
        assert_eq!(fitting.rows, [1, 3]);
        let shapes: Vec<_> = fitting.inputs.iter().map(|input| input.shape.clone()).collect();
        assert_eq!(shapes, [vec![2], vec![2, 2], vec![2]]);
        assert!(fitting.inputs.iter().all(|input| input.check().is_ok()));
    }
}
