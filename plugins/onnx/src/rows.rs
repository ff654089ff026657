//! The batch: the first dimension of inputs and outputs.

use guesthouse_guest::{Dimension, Error, GraphValue};

/// The name of the batch in the graph that is loaded.
pub(crate) const BATCH: &str = "rows";

/// Give the batch of all inputs one name, because exporters often give each input a name of its own.
/// Whether it varies between calls; otherwise it is 1.
pub(crate) fn name_batch(inputs: &mut [GraphValue]) -> Result<bool, Error> {
    if inputs.is_empty() {
        return Err(Error::new("the graph has no inputs"));
    }
    let mut varies = None;
    for input in &mut *inputs {
        let name = &input.name;
        let batch = match input.shape.first() {
            None => return Err(Error::new(format!("input {name:?} is a scalar: it has no rows"))),
            Some(Dimension::Named(_)) => true,
            Some(Dimension::Fixed(1)) => false,
            Some(Dimension::Fixed(size)) => {
                return Err(Error::new(format!(
                    "the first dimension of input {name:?} is always {size}: export the model with \
                     a first dimension that varies, or of size 1"
                )));
            }
        };
        if varies.is_some_and(|varies| varies != batch) {
            return Err(Error::new(format!(
                "the first dimension of input {name:?} does not vary as that of other inputs does: \
                 export the model so that it varies for all inputs or for none"
            )));
        }
        varies = Some(batch);
    }
    let names: Vec<String> = inputs.iter().filter_map(batch_name).collect();
    for dimension in inputs.iter_mut().flat_map(|input| &mut input.shape) {
        if let Dimension::Named(name) = dimension
            && names.contains(name)
        {
            BATCH.clone_into(name);
        }
    }
    Ok(varies == Some(true))
}

fn batch_name(input: &GraphValue) -> Option<String> {
    match input.shape.first() {
        Some(Dimension::Named(name)) => Some(name.clone()),
        _ => None,
    }
}

/// Check that an output has a row for each row of the inputs.
pub(crate) fn check_batch(output: &str, shape: &[Dimension], varies: bool) -> Result<(), Error> {
    let has_batch = match shape.first() {
        Some(Dimension::Named(name)) => varies && name == BATCH,
        Some(Dimension::Fixed(size)) => !varies && *size == 1,
        None => false,
    };
    if has_batch {
        return Ok(());
    }
    Err(Error::new(format!(
        "the first dimension of output {output:?} is not the batch: remove the output, or export the \
         model so that each row has its own"
    )))
}

#[cfg(test)]
mod tests {
    use guesthouse_guest::Datatype;

    use super::*;

    fn input(name: &str, shape: &[Dimension]) -> GraphValue {
        GraphValue { name: name.to_owned(), datatype: Datatype::Fp32, shape: shape.to_vec() }
    }

    fn named(name: &str) -> Dimension {
        Dimension::Named(name.to_owned())
    }

    #[test]
    fn batches_of_all_inputs_get_one_name() {
        let mut inputs = [
            input("ids", &[named("unk__0"), named("length")]),
            input("mask", &[named("unk__1"), named("length")]),
        ];
        assert!(name_batch(&mut inputs).unwrap());
        for input in &inputs {
            assert_eq!(input.shape, [named(BATCH), named("length")]);
        }
        check_batch("y", &[named(BATCH), Dimension::Fixed(3)], true).unwrap();
    }

    #[test]
    fn batch_of_one_does_not_vary() {
        let mut inputs = [input("image", &[Dimension::Fixed(1), Dimension::Fixed(3)])];
        assert!(!name_batch(&mut inputs).unwrap());
        check_batch("y", &[Dimension::Fixed(1)], false).unwrap();
    }

    #[test]
    fn inputs_without_rows_are_rejected() {
        let fixed = |size| Dimension::Fixed(size);
        for (inputs, expected) in [
            (vec![], "no inputs"),
            (vec![input("x", &[])], "is a scalar"),
            (vec![input("x", &[fixed(4), fixed(3)])], "is always 4"),
            (vec![input("x", &[named("n")]), input("y", &[fixed(1)])], "does not vary"),
        ] {
            let error = name_batch(&mut { inputs }).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn outputs_without_rows_are_rejected() {
        for (shape, varies) in [
            (vec![], true),
            (vec![named("2*rows")], true),
            (vec![Dimension::Fixed(1)], true),
            (vec![Dimension::Fixed(2)], false),
        ] {
            assert!(check_batch("y", &shape, varies).is_err(), "{shape:?}");
        }
    }
}
