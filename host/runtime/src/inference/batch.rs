//! Joins the rows of several callers into one batch, and splits its outcome into a part for each.
//!
//! Pure functions: which inputs can share a batch, how they are joined, and which part of an
//! outcome belongs to whom. Rows are identified by their position alone, so the outputs are
//! validated before they are split.

use std::time::Duration;

use bytes::Bytes;

use super::queue::BatchKey;
use crate::guest::{Fault, MAX_REJECTIONS, Rejection};
use guesthouse_model::{Field, Signature, Tensor};

/// Padded rows share a batch if their sizes have the same power of two, so that at most half of the
/// guest's work along a dimension is wasted. Below this size, padding costs less than a further
/// call.
const SMALL_SIZE: u64 = 16;

/// The key of the batches that the inputs can join: the sizes of the dimensions that the signature
/// leaves variable, and the power of two of the remaining time. `None` if the inputs must run
/// alone: because they are not in the signature's order, have no rows, or the signature has
/// variable output sizes but fixed input sizes. In the last case the contents of the rows decide
/// the output size, and the longest row of a batch would decide it for all.
///
/// Jobs with little time left are not batched with those that have much, because a batch may use
/// half of the shortest time of its jobs.
pub(super) fn batch_key(signature: &Signature, inputs: &[Tensor], time: Duration) -> BatchKey {
    let is_open =
        |fields: &[Field]| fields.iter().any(|field| field.row_shape.iter().any(Option::is_none));
    if is_open(&signature.outputs) && !is_open(&signature.inputs) {
        return None;
    }
    let rows = inputs.first()?.rows();
    if rows == 0 || inputs.len() != signature.inputs.len() {
        return None;
    }
    let mut batch_key =
        vec![u64::from(time.as_millis().checked_ilog2().map_or(0, |power| power + 1))];
    for (field, input) in signature.inputs.iter().zip(inputs) {
        if field.name != input.name || !field.fits(input) || input.rows() != rows {
            return None;
        }
        let sizes = field.row_shape.iter().zip(&input.shape[1..]);
        let open = sizes.filter(|(fixed, _)| fixed.is_none()).map(|(_, size)| *size);
        match field.padding() {
            None => batch_key.extend(open),
            Some(_) => batch_key.extend(open.map(|size| u64::from(size.max(SMALL_SIZE).ilog2()))),
        }
    }
    Some(batch_key)
}

/// Join the rows of all parts in order, padding them to a common size. All parts must have the same
/// [`batch_key`].
pub(super) fn join(signature: &Signature, parts: &[&[Tensor]]) -> Vec<Tensor> {
    let join_one = |(index, field): (usize, &Field)| {
        let tensors: Vec<&Tensor> = parts.iter().map(|part| &part[index]).collect();
        join_tensors(&tensors, field.padding().unwrap_or_default())
    };
    signature.inputs.iter().enumerate().map(join_one).collect()
}

fn join_tensors(tensors: &[&Tensor], padding: &[u8]) -> Tensor {
    let first = tensors.first().expect("a batch has a part");
    let mut shape = first.shape.clone();
    for other in &tensors[1..] {
        shape[0] += other.shape[0];
        for (most, size) in shape[1..].iter_mut().zip(&other.shape[1..]) {
            *most = (*most).max(*size);
        }
    }
    let is_even = tensors.iter().all(|tensor| tensor.shape[1..] == shape[1..]);
    let mut length = tensors.iter().map(|tensor| tensor.data.len()).sum();
    if !is_even {
        let elements = |shape: &[u64]| shape.iter().product::<u64>();
        let missing =
            elements(&shape) - tensors.iter().map(|tensor| elements(&tensor.shape)).sum::<u64>();
        let missing = usize::try_from(missing).expect("not many more than there are");
        length += missing * padding.len();
    }
    let mut data = Vec::with_capacity(length);
    for tensor in tensors {
        if is_even {
            data.extend_from_slice(&tensor.data);
        } else {
            let mut wanted = shape.clone();
            wanted[0] = tensor.shape[0];
            pad(&mut data, tensor, &mut &tensor.data[..], (&tensor.shape, &wanted), padding);
        }
    }
    Tensor { name: first.name.clone(), datatype: first.datatype, shape, data: data.into() }
}

/// Append the elements at the start of `rest`, which have the shape `is`, padded to the shape
/// `wanted`.
fn pad(
    data: &mut Vec<u8>,
    tensor: &Tensor,
    rest: &mut &[u8],
    (is, wanted): (&[u64], &[u64]),
    padding: &[u8],
) {
    if is == wanted {
        let elements = is.iter().product();
        let (whole, after) = rest.split_at(tensor.bytes_of_elements(rest, elements));
        data.extend_from_slice(whole);
        *rest = after;
        return;
    }
    for _ in 0..is[0] {
        pad(data, tensor, rest, (&is[1..], &wanted[1..]), padding);
    }
    let missing = (wanted[0] - is[0]) * wanted[1..].iter().product::<u64>();
    (0..missing).for_each(|_| data.extend_from_slice(padding));
}

/// The outcome of one job's part of a batch.
#[derive(Debug)]
pub(super) enum PartOutcome {
    /// The outputs of the part.
    Answered(Vec<Tensor>),
    /// The guest rejected some of its rows; row numbers are relative to the part.
    Rejected(Vec<Rejection>),
    /// Some of its rows have inputs that are not finite, and so have their outputs.
    NonFinite(Vec<Rejection>),
    /// The part has to run again and may share a batch.
    Again,
    /// The part has to run again, alone.
    Alone,
}

/// Split the outcome of a batch into the outcomes of its parts; `parts` holds the number of rows of
/// each.
///
/// A part with rejected rows gets the rejections, and the other parts run again without it. If the
/// whole batch failed, its cause is unknown until each part has run alone; the fault is then
/// returned as well.
pub(super) fn part_outcomes(
    outcome: Result<Vec<Tensor>, Fault>,
    parts: &[u64],
) -> (Vec<PartOutcome>, Option<Fault>) {
    let rows: u64 = parts.iter().sum();
    let fault = match outcome {
        Ok(outputs) if outputs.iter().all(|output| output.rows() == rows) => {
            return (split(&outputs, parts), None);
        }
        Ok(_) => Fault::BadOutput(format!("its outputs do not have {rows} rows")),
        Err(Fault::Rejected(rejections)) => return (split_rejections(rejections, parts), None),
        Err(Fault::NonFiniteInput(rejections)) => return (non_finite(rejections, parts), None),
        Err(fault) => fault,
    };
    (parts.iter().map(|_| PartOutcome::Alone).collect(), Some(fault))
}

fn split(outputs: &[Tensor], parts: &[u64]) -> Vec<PartOutcome> {
    let mut rests: Vec<Bytes> = outputs.iter().map(|output| output.data.clone()).collect();
    let split_one = |rows: &u64| {
        let cut = outputs.iter().zip(&mut rests).map(|(output, rest)| {
            let mut shape = output.shape.clone();
            shape[0] = *rows;
            let per_row: u64 = output.shape[1..].iter().product();
            let length = output.bytes_of_elements(rest, rows * per_row);
            let data = rest.split_to(length);
            let (name, datatype) = (output.name.clone(), output.datatype);
            Tensor { name, datatype, shape, data }
        });
        PartOutcome::Answered(cut.collect())
    };
    parts.iter().map(split_one).collect()
}

fn split_rejections(rejections: Vec<Rejection>, parts: &[u64]) -> Vec<PartOutcome> {
    // The list was truncated, so each part that is named may have further rejected rows.
    let is_cut = rejections.len() >= MAX_REJECTIONS;
    let own = by_part(rejections, parts);
    let outcome = |rejections: Vec<Rejection>| match rejections.is_empty() {
        true => PartOutcome::Again,
        false if is_cut => PartOutcome::Alone,
        false => PartOutcome::Rejected(rejections),
    };
    let outcomes: Vec<PartOutcome> = own.into_iter().map(outcome).collect();
    // Every attempt must have fewer parts than the last; a guest may name rows that do not exist.
    if outcomes.iter().all(|outcome| matches!(outcome, PartOutcome::Again)) {
        return outcomes.into_iter().map(|_| PartOutcome::Alone).collect();
    }
    outcomes
}

/// Every row that is not finite is named, so the parts without such rows run again without the
/// others.
fn non_finite(rejections: Vec<Rejection>, parts: &[u64]) -> Vec<PartOutcome> {
    let outcome = |rejections: Vec<Rejection>| match rejections.is_empty() {
        true => PartOutcome::Again,
        false => PartOutcome::NonFinite(rejections),
    };
    by_part(rejections, parts).into_iter().map(outcome).collect()
}

/// The rejections of each part, with row numbers relative to the part.
fn by_part(rejections: Vec<Rejection>, parts: &[u64]) -> Vec<Vec<Rejection>> {
    let mut own: Vec<Vec<Rejection>> = parts.iter().map(|_| Vec::new()).collect();
    for mut rejection in rejections {
        let mut begin = 0;
        for (part, rows) in parts.iter().enumerate() {
            let rows = usize::try_from(*rows).unwrap_or(usize::MAX);
            if rejection.row - begin < rows {
                rejection.row -= begin;
                own[part].push(rejection);
                break;
            }
            begin += rows;
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use guesthouse_model::{Constraint, Datatype};

    fn field(name: &str, datatype: Datatype, row_shape: &[Option<u32>]) -> Field {
        Field {
            name: name.to_owned(),
            description: String::new(),
            datatype,
            row_shape: row_shape.to_vec(),
            constraints: Vec::new(),
            default: None,
        }
    }

    fn signature(input: Field) -> Signature {
        let outputs = vec![field("y", Datatype::Fp32, &[])];
        Signature { inputs: vec![input], outputs, max_batch_size: 64 }
    }

    fn integers(shape: &[u64], values: impl IntoIterator<Item = i32>) -> Tensor {
        let data = values.into_iter().flat_map(i32::to_le_bytes).collect();
        let (name, datatype) = ("x".to_owned(), Datatype::Int32);
        let tensor = Tensor { name, datatype, shape: shape.to_vec(), data };
        assert_eq!(tensor.check(), Ok(()));
        tensor
    }

    fn texts(rows: &[Vec<u8>]) -> Tensor {
        let element = |row: &Vec<u8>| {
            let length = u32::try_from(row.len()).unwrap();
            [&length.to_le_bytes()[..], row].concat()
        };
        let data = rows.iter().flat_map(element).collect();
        let (name, shape) = ("x".to_owned(), vec![rows.len() as u64]);
        Tensor { name, datatype: Datatype::Bytes, shape, data }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rows_of_one_shape_and_similar_deadlines_share_a_batch() {
        let open = signature(field("x", Datatype::Int32, &[None, Some(2)]));
        let of = |shape: &[u64], time| {
            let elements = usize::try_from(shape.iter().product::<u64>()).unwrap();
            batch_key(&open, &[integers(shape, vec![0; elements])], time)
        };
        let usual = of(&[1, 3, 2], SECOND);
        assert!(usual.is_some());
        assert_eq!(usual, of(&[5, 3, 2], SECOND * 9 / 10));
        for other in [of(&[1, 4, 2], SECOND), of(&[1, 3, 2], SECOND / 100)] {
            assert!(other.is_some() && other != usual);
        }
        // Inputs that do not fit, or are empty, run alone.
        assert_eq!(of(&[0, 3, 2], SECOND), None);
        assert_eq!(of(&[1, 3, 1], SECOND), None);
        assert_eq!(batch_key(&open, &[], SECOND), None);
        let mut other_name = integers(&[1, 1, 2], [1, 2]);
        other_name.name = "z".to_owned();
        assert_eq!(batch_key(&open, &[other_name], SECOND), None);
        // If the contents of rows decide the size of outputs, rows of several callers are not
        // joined.
        let mut by_content = signature(field("x", Datatype::Bytes, &[]));
        assert!(batch_key(&by_content, &[texts(&[vec![1]])], SECOND).is_some());
        by_content.outputs[0].row_shape = vec![None];
        assert_eq!(batch_key(&by_content, &[texts(&[vec![1]])], SECOND), None);
    }

    #[test]
    fn shorter_rows_are_padded_if_the_signature_allows_it() {
        let mut input = field("x", Datatype::Int32, &[None, None]);
        input.constraints = vec![Constraint::Padded((-1_i32).to_le_bytes().to_vec())];
        let padded = signature(input);
        let (one, two) = (integers(&[1, 1, 3], [1, 2, 3]), integers(&[2, 2, 1], [4, 5, 6, 7]));
        let of = |tensor: &Tensor| batch_key(&padded, std::slice::from_ref(tensor), SECOND);
        assert!(of(&one).is_some());
        assert_eq!(of(&one), of(&two));
        assert_ne!(of(&one), of(&integers(&[1, 100, 1], 0..100)));
        let mut joined = join(&padded, &[&[one], &[two]]);
        let wanted = [1, 2, 3, -1, -1, -1, 4, -1, -1, 5, -1, -1, 6, -1, -1, 7, -1, -1];
        assert_eq!(joined, [integers(&[3, 2, 3], wanted)]);
        let data = Vec::from(joined.remove(0).data);
        assert_eq!(data.capacity(), data.len(), "room is reserved exactly");
    }

    #[test]
    fn rejections_are_delivered_to_their_own_callers() {
        let rejection = |row| Rejection { row, input: "x".to_owned(), reason: String::new() };
        let rejected = |rows: &[usize]| {
            let rejections = rows.iter().copied().map(rejection).collect();
            part_outcomes(Err(Fault::Rejected(rejections)), &[2, 1, 3]).0
        };
        let outcomes = rejected(&[5, 1, 3]);
        let [PartOutcome::Rejected(first), PartOutcome::Again, PartOutcome::Rejected(third)] =
            &outcomes[..]
        else {
            panic!("{outcomes:?}");
        };
        assert_eq!(first[..], [rejection(1)]);
        assert_eq!(third[..], [rejection(2), rejection(0)]);
        // The list may be truncated.
        let many = rejected(&[2; MAX_REJECTIONS]);
        assert!(
            matches!(many[..], [PartOutcome::Again, PartOutcome::Alone, PartOutcome::Again]),
            "{many:?}"
        );
        // Every attempt has fewer parts.
        let nobody = rejected(&[6]);
        assert!(
            matches!(nobody[..], [PartOutcome::Alone, PartOutcome::Alone, PartOutcome::Alone]),
            "{nobody:?}"
        );
    }

    #[test]
    fn non_finite_rows_are_delivered_to_their_own_callers() {
        let rejection = |row| Rejection { row, input: "x".to_owned(), reason: String::new() };
        let many = (2..30).map(rejection).collect();
        let (outcomes, fault) = part_outcomes(Err(Fault::NonFiniteInput(many)), &[2, 27, 2, 1]);
        let [
            PartOutcome::Again,
            PartOutcome::NonFinite(second),
            PartOutcome::NonFinite(third),
            PartOutcome::Again,
        ] = &outcomes[..]
        else {
            panic!("{outcomes:?}");
        };
        assert_eq!((second.len(), &third[..]), (27, &[rejection(0)][..]));
        assert!(fault.is_none());
    }

    #[test]
    fn parts_of_a_failed_batch_run_again_alone() {
        let short = vec![integers(&[2], [1, 2])];
        for outcome in [Err(Fault::OutOfMemory), Err(Fault::Failed(String::new())), Ok(short)] {
            let (outcomes, fault) = part_outcomes(outcome, &[1, 2]);
            assert!(
                matches!(outcomes[..], [PartOutcome::Alone, PartOutcome::Alone]),
                "{outcomes:?}"
            );
            assert!(fault.is_some());
        }
    }

    proptest! {
        /// Splitting reverses joining, for elements of fixed and of variable size.
        #[test]
        fn splitting_reverses_joining(
            parts in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 1..5), 1..6,
            ),
            width in 1_u64..4,
        ) {
            let numbers: Vec<Tensor> = parts.iter().map(|part| {
                let rows = part.len() as u64;
                integers(&[rows, width], (0..i32::try_from(rows * width).unwrap()).rev())
            }).collect();
            let texts: Vec<Tensor> = parts.iter().map(|part| texts(part)).collect();
            let rows: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
            for tensors in [numbers, texts] {
                let open = field("x", tensors[0].datatype, &vec![None; tensors[0].shape.len() - 1]);
                let joined: Vec<_> = tensors.iter().map(std::slice::from_ref).collect();
                let joined = join(&signature(open), &joined);
                prop_assert_eq!(joined[0].check(), Ok(()));
                let (outcomes, fault) = part_outcomes(Ok(joined), &rows);
                prop_assert!(fault.is_none());
                for (outcome, tensor) in outcomes.into_iter().zip(tensors) {
                    let PartOutcome::Answered(answer) = outcome else { panic!("{outcome:?}") };
                    prop_assert_eq!(answer, [tensor]);
                }
            }
        }
    }
}
