//! Rows of several callers put together, and what came of them told apart again.
//!
//! Pure data: what can be run together, how it is joined, and who gets what of an outcome. Rows are
//! told apart by their place alone, so outputs are looked at before they are cut.

use std::time::Duration;

use super::queue::Group;
use crate::guest::{Fault, MAX_REJECTIONS, Rejection};
use crate::model::{Field, Signature, Tensor};

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
        group.extend(sizes.filter(|(fixed, _)| fixed.is_none()).map(|(_, size)| *size));
    }
    Some(group)
}

/// The rows of all of them, in their order. They must be of one [`group`].
pub(super) fn join(parts: &[&[Tensor]]) -> Vec<Tensor> {
    let Some(first) = parts.first() else { return Vec::new() };
    let join_one = |(index, tensor): (usize, &Tensor)| {
        let mut shape = tensor.shape.clone();
        shape[0] = parts.iter().map(|part| part[index].rows()).sum();
        let mut data = Vec::with_capacity(parts.iter().map(|part| part[index].data.len()).sum());
        parts.iter().for_each(|part| data.extend_from_slice(&part[index].data));
        Tensor { name: tensor.name.clone(), datatype: tensor.datatype, shape, data }
    };
    first.iter().enumerate().map(join_one).collect()
}

/// What becomes of a caller's part of a batch.
#[derive(Debug)]
pub(super) enum Fate {
    /// It has these outputs.
    Answered(Vec<Tensor>),
    /// Some of its rows are unacceptable; which, by their place in the part.
    Rejected(Vec<Rejection>),
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
            let length = output.bytes_of_rows(rest, *rows);
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
