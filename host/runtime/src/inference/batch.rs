//! Rows of several callers put together, and what came of them told apart again.
//!
//! Pure data: what can be run together, how it is joined, and who gets what of an outcome. Rows are
//! told apart by their place alone, so outputs are looked at before they are cut.

use std::time::Duration;

use super::queue::Group;
use crate::guest::{Fault, MAX_REJECTIONS, Rejection};
use guesthouse_model::{Field, Signature, Tensor};

/// Rows that are padded share a batch if their sizes are of one power of two, so that no more than half of
/// what the guest computes along a dimension is for nothing; below this one, that costs less than a call.
const SMALL_SIZE: u64 = 16;

/// What the inputs must have in common with others to be run with them: the sizes of dimensions that
/// the signature leaves open, and about how much time there is. None, if they are to be run alone:
/// they are not in the signature's order, or have no rows. They are as well where the sizes of outputs
/// come from what rows say, because then the longest row of a batch would say them for all.
///
/// The time is told apart by its power of two: whoever has little would be of no use to those who
/// have much, because a batch is given half of the least time that its callers gave.
pub(super) fn group(signature: &Signature, inputs: &[Tensor], time: Duration) -> Group {
    let is_open =
        |fields: &[Field]| fields.iter().any(|field| field.row_shape.iter().any(Option::is_none));
    if is_open(&signature.outputs) && !is_open(&signature.inputs) {
        return None;
    }
    let rows = inputs.first()?.rows();
    if rows == 0 || inputs.len() != signature.inputs.len() {
        return None;
    }
    let mut group = vec![u64::from(time.as_millis().checked_ilog2().map_or(0, |power| power + 1))];
    for (field, input) in signature.inputs.iter().zip(inputs) {
        if field.name != input.name || !field.fits(input) || input.rows() != rows {
            return None;
        }
        let sizes = field.row_shape.iter().zip(&input.shape[1..]);
        let open = sizes.filter(|(fixed, _)| fixed.is_none()).map(|(_, size)| *size);
        match field.padding() {
            None => group.extend(open),
            Some(_) => group.extend(open.map(|size| u64::from(size.max(SMALL_SIZE).ilog2()))),
        }
    }
    Some(group)
}

/// The rows of all of them, in their order, those of one size. They must be of one [`group`].
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
    Tensor { name: first.name.clone(), datatype: first.datatype, shape, data }
}

/// Write what `rest` begins with, which has the first shape, in the second one.
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

/// What becomes of a caller's part of a batch.
#[derive(Debug)]
pub(super) enum Fate {
    /// It has these outputs.
    Answered(Vec<Tensor>),
    /// Some of its rows are unacceptable; which, by their place in the part.
    Rejected(Vec<Rejection>),
    /// The same for rows that are not finite, and neither are their outputs.
    NonFinite(Vec<Rejection>),
    /// It is to be run again, with others.
    Again,
    /// It is to be run again, by itself.
    Alone,
}

/// What becomes of each part of a batch that was run for several callers, which have so many rows.
///
/// A part of which rows were rejected keeps that for itself, and the others are run without it. Of a
/// batch that came to nothing, nobody knows whose fault it was until each part has been run alone.
/// That is then the fault to be explained.
pub(super) fn settle(
    outcome: Result<Vec<Tensor>, Fault>,
    parts: &[u64],
) -> (Vec<Fate>, Option<Fault>) {
    let rows: u64 = parts.iter().sum();
    let fault = match outcome {
        Ok(outputs) if outputs.iter().all(|output| output.rows() == rows) => {
            return (split(&outputs, parts), None);
        }
        Ok(_) => Fault::BadOutput(format!("its outputs are not of {rows} rows")),
        Err(Fault::Rejected(rejections)) => return (tell_apart(rejections, parts), None),
        Err(Fault::NonFiniteInput(rejections)) => return (non_finite(rejections, parts), None),
        Err(fault) => fault,
    };
    (parts.iter().map(|_| Fate::Alone).collect(), Some(fault))
}

fn split(outputs: &[Tensor], parts: &[u64]) -> Vec<Fate> {
    let mut rests: Vec<&[u8]> = outputs.iter().map(|output| &output.data[..]).collect();
    let split_one = |rows: &u64| {
        let cut = outputs.iter().zip(&mut rests).map(|(output, rest)| {
            let mut shape = output.shape.clone();
            shape[0] = *rows;
            let per_row: u64 = output.shape[1..].iter().product();
            let length = output.bytes_of_elements(rest, rows * per_row);
            let (data, after) = rest.split_at(length);
            *rest = after;
            let (name, datatype) = (output.name.clone(), output.datatype);
            Tensor { name, datatype, shape, data: data.to_vec() }
        });
        Fate::Answered(cut.collect())
    };
    parts.iter().map(split_one).collect()
}

fn tell_apart(rejections: Vec<Rejection>, parts: &[u64]) -> Vec<Fate> {
    // There may have been more, of any of those that are named.
    let is_cut = rejections.len() >= MAX_REJECTIONS;
    let own = by_part(rejections, parts);
    let fate = |rejections: Vec<Rejection>| match rejections.is_empty() {
        true => Fate::Again,
        false if is_cut => Fate::Alone,
        false => Fate::Rejected(rejections),
    };
    let fates: Vec<Fate> = own.into_iter().map(fate).collect();
    // Each time there must be fewer: a guest may name rows that are not there.
    if fates.iter().all(|fate| matches!(fate, Fate::Again)) {
        return fates.into_iter().map(|_| Fate::Alone).collect();
    }
    fates
}

/// All rows that are not finite are named, so whoever has none of them is run without those.
fn non_finite(rejections: Vec<Rejection>, parts: &[u64]) -> Vec<Fate> {
    let fate = |rejections: Vec<Rejection>| match rejections.is_empty() {
        true => Fate::Again,
        false => Fate::NonFinite(rejections),
    };
    by_part(rejections, parts).into_iter().map(fate).collect()
}

/// The rejections of each part, by their place in it.
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
    fn rows_of_one_shape_and_about_one_time_are_run_together() {
        let open = signature(field("x", Datatype::Int32, &[None, Some(2)]));
        let of = |shape: &[u64], time| {
            let elements = usize::try_from(shape.iter().product::<u64>()).unwrap();
            group(&open, &[integers(shape, vec![0; elements])], time)
        };
        let usual = of(&[1, 3, 2], SECOND);
        assert!(usual.is_some());
        assert_eq!(usual, of(&[5, 3, 2], SECOND * 9 / 10));
        for other in [of(&[1, 4, 2], SECOND), of(&[1, 3, 2], SECOND / 100)] {
            assert!(other.is_some() && other != usual);
        }
        // What does not fit, or is nothing, is run as it is.
        assert_eq!(of(&[0, 3, 2], SECOND), None);
        assert_eq!(of(&[1, 3, 1], SECOND), None);
        assert_eq!(group(&open, &[], SECOND), None);
        let mut other_name = integers(&[1, 1, 2], [1, 2]);
        other_name.name = "z".to_owned();
        assert_eq!(group(&open, &[other_name], SECOND), None);
        // Where rows alone say how large outputs are, one caller's would say it for another.
        let mut by_content = signature(field("x", Datatype::Bytes, &[]));
        assert!(group(&by_content, &[texts(&[vec![1]])], SECOND).is_some());
        by_content.outputs[0].row_shape = vec![None];
        assert_eq!(group(&by_content, &[texts(&[vec![1]])], SECOND), None);
    }

    #[test]
    fn shorter_rows_are_filled_up_where_the_signature_says_how() {
        let mut input = field("x", Datatype::Int32, &[None, None]);
        input.constraints = vec![Constraint::Padded((-1_i32).to_le_bytes().to_vec())];
        let padded = signature(input);
        let (one, two) = (integers(&[1, 1, 3], [1, 2, 3]), integers(&[2, 2, 1], [4, 5, 6, 7]));
        let of = |tensor: &Tensor| group(&padded, std::slice::from_ref(tensor), SECOND);
        assert!(of(&one).is_some());
        assert_eq!(of(&one), of(&two));
        assert_ne!(of(&one), of(&integers(&[1, 100, 1], 0..100)));
        let joined = join(&padded, &[&[one], &[two]]);
        let wanted = [1, 2, 3, -1, -1, -1, 4, -1, -1, 5, -1, -1, 6, -1, -1, 7, -1, -1];
        assert_eq!(joined, [integers(&[3, 2, 3], wanted)]);
        assert_eq!(joined[0].data.capacity(), joined[0].data.len());
    }

    #[test]
    fn rejections_stay_with_their_callers() {
        let rejection = |row| Rejection { row, input: "x".to_owned(), reason: String::new() };
        let rejected = |rows: &[usize]| {
            let rejections = rows.iter().copied().map(rejection).collect();
            settle(Err(Fault::Rejected(rejections)), &[2, 1, 3]).0
        };
        let fates = rejected(&[5, 1, 3]);
        let [Fate::Rejected(first), Fate::Again, Fate::Rejected(third)] = &fates[..] else {
            panic!("{fates:?}");
        };
        assert_eq!(first[..], [rejection(1)]);
        assert_eq!(third[..], [rejection(2), rejection(0)]);
        // Of so many, some may have been left out.
        let many = rejected(&[2; MAX_REJECTIONS]);
        assert!(matches!(many[..], [Fate::Again, Fate::Alone, Fate::Again]), "{many:?}");
        // Each time there are fewer.
        let nobody = rejected(&[6]);
        assert!(matches!(nobody[..], [Fate::Alone, Fate::Alone, Fate::Alone]), "{nobody:?}");
    }

    #[test]
    fn rows_that_are_not_finite_stay_with_their_callers() {
        let rejection = |row| Rejection { row, input: "x".to_owned(), reason: String::new() };
        let many = (2..30).map(rejection).collect();
        let (fates, fault) = settle(Err(Fault::NonFiniteInput(many)), &[2, 27, 2, 1]);
        let [Fate::Again, Fate::NonFinite(second), Fate::NonFinite(third), Fate::Again] =
            &fates[..]
        else {
            panic!("{fates:?}");
        };
        assert_eq!((second.len(), &third[..]), (27, &[rejection(0)][..]));
        assert!(fault.is_none());
    }

    #[test]
    fn what_comes_to_nothing_is_nobodys_until_each_was_alone() {
        let short = vec![integers(&[2], [1, 2])];
        for outcome in [Err(Fault::OutOfMemory), Err(Fault::Failed(String::new())), Ok(short)] {
            let (fates, fault) = settle(outcome, &[1, 2]);
            assert!(matches!(fates[..], [Fate::Alone, Fate::Alone]), "{fates:?}");
            assert!(fault.is_some());
        }
    }

    proptest! {
        /// What is joined and split is what it was, for elements of one length and of any.
        #[test]
        fn what_is_joined_comes_apart_as_it_was(
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
                let (fates, fault) = settle(Ok(joined), &rows);
                prop_assert!(fault.is_none());
                for (fate, tensor) in fates.into_iter().zip(tensors) {
                    let Fate::Answered(answer) = fate else { panic!("{fate:?}") };
                    prop_assert_eq!(answer, [tensor]);
                }
            }
        }
    }
}
