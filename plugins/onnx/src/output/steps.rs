//! The steps of postprocessing: what each makes of a form, and of values of that form.
//!
//! A step is checked against the form when the version is deployed, so that it cannot fail because of
//! the manifest when values arrive. Numbers are computed in single precision.

use guesthouse_guest::Dimension;
use guesthouse_onnx_manifest::Step;

use super::values::{Elements, Form, Kind, Values};

/// The most labels that a signature can have.
const MAX_LABELS: usize = 100_000;

/// Check a step, and return the form of what it makes.
pub(super) fn check(step: &Step, form: Form) -> Result<Form, String> {
    let expect = |kinds: &[Kind], what: &str| {
        if kinds.contains(&form.kind) {
            return Ok(());
        }
        Err(format!("it takes {what}, but there are {}", name(form.kind)))
    };
    let numbers = || expect(&[Kind::Floats, Kind::Integers], "numbers");
    let plain = |form: Form| Form { choices: None, bounds: None, labels: None, ..form };
    match step {
        Step::Softmax | Step::Sigmoid | Step::L2Norm => {
            numbers()?;
            if *step != Step::Sigmoid {
                last(&form)?;
            }
            let bounds = (*step != Step::L2Norm).then_some((0.0, 1.0));
            Ok(Form { kind: Kind::Floats, bounds, ..plain(form) })
        }
        Step::MeanPool { .. } | Step::ClsPool => {
            numbers()?;
            let [_tokens, features] = &form.shape[..] else {
                let rank = form.shape.len();
                return Err(format!(
                    "it takes rows of [tokens, features], which have {rank} dimensions"
                ));
            };
            Ok(Form { kind: Kind::Floats, shape: vec![features.clone()], ..plain(form) })
        }
        Step::Element(index) => {
            let size = fixed(&form)?;
            if *index >= size {
                return Err(format!("there are {size} elements, the last one is {}", size - 1));
            }
            Ok(Form { shape: without_last(&form), ..form })
        }
        Step::Argmax => {
            numbers()?;
            let choices = Some(fixed(&form)?);
            Ok(Form { kind: Kind::Integers, shape: without_last(&form), choices, ..plain(form) })
        }
        Step::TopK(count) | Step::TopKIndexes(count) => {
            numbers()?;
            let size = fixed(&form)?;
            if *count == 0 || *count > size {
                return Err(format!("it takes 1 to {size}, as many as there are numbers"));
            }
            let mut shape = without_last(&form);
            shape.push(Dimension::Fixed(*count));
            match step {
                Step::TopK(_) => Ok(Form { kind: Kind::Floats, shape, ..form }),
                _ => Ok(Form { kind: Kind::Integers, shape, choices: Some(size), ..plain(form) }),
            }
        }
        Step::Threshold(_) => {
            numbers()?;
            Ok(Form { kind: Kind::Flags, choices: Some(2), ..plain(form) })
        }
        Step::Labels(labels) => {
            expect(&[Kind::Integers, Kind::Flags], "indexes or flags: put `argmax` before it")?;
            check_labels(labels.texts(), form)
        }
    }
}

fn check_labels(labels: &[String], form: Form) -> Result<Form, String> {
    let is = labels.len();
    let choices = if form.kind == Kind::Flags { Some(2) } else { form.choices };
    match choices {
        _ if is == 0 || is > MAX_LABELS => {
            Err(format!("there are {is} texts: give 1 to {MAX_LABELS}"))
        }
        Some(wanted) if wanted != is => {
            Err(format!("there are {is} texts for {wanted} classes: give one for each"))
        }
        _ => {
            let labels = Some(labels.to_vec());
            Ok(Form { kind: Kind::Texts, choices: None, bounds: None, labels, ..form })
        }
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Floats => "numbers",
        Kind::Integers => "whole numbers",
        Kind::Flags => "flags",
        Kind::Texts => "texts",
    }
}

fn last(form: &Form) -> Result<&Dimension, String> {
    form.shape.last().ok_or_else(|| "it takes several numbers, but a row has one".to_owned())
}

fn fixed(form: &Form) -> Result<usize, String> {
    match last(form)? {
        Dimension::Fixed(size) if *size > 0 => Ok(*size),
        Dimension::Fixed(_) => Err("there are no numbers".to_owned()),
        Dimension::Named(_) => Err("it takes a fixed number of them, but it varies".to_owned()),
    }
}

fn without_last(form: &Form) -> Vec<Dimension> {
    form.shape[..form.shape.len().saturating_sub(1)].to_vec()
}

/// Carry out a step. The mask is that of a pooling, `[rows, tokens]`.
pub(super) fn apply(step: &Step, values: Values, mask: Option<&[f32]>) -> Result<Values, String> {
    let Values { shape, elements } = values;
    let size = shape.last().copied().unwrap_or(1).max(1);
    let shorter = || shape[..shape.len() - 1].to_vec();
    match step {
        Step::Softmax => Ok(Values { elements: by_last(elements, size, softmax), shape }),
        Step::L2Norm => Ok(Values { elements: by_last(elements, size, normalize), shape }),
        Step::Sigmoid => {
            let sigmoid = |row: &mut [f32]| row[0] = (1.0 + (-row[0]).exp()).recip();
            Ok(Values { elements: by_last(elements, 1, sigmoid), shape })
        }
        Step::MeanPool { .. } | Step::ClsPool => {
            let [rows, tokens, features] = shape[..] else {
                return Err("it takes [rows, tokens, features]".to_owned());
            };
            let pooled = pool(&floats(elements), (rows, tokens, features), mask)?;
            Ok(Values { elements: Elements::Floats(pooled), shape: vec![rows, features] })
        }
        Step::Element(index) => {
            let elements = match elements {
                Elements::Floats(all) => Elements::Floats(column(&all, size, *index)),
                Elements::Integers(all) => Elements::Integers(column(&all, size, *index)),
                Elements::Flags(all) => Elements::Flags(column(&all, size, *index)),
                Elements::Texts(all) => Elements::Texts(column(&all, size, *index)),
            };
            Ok(Values { elements, shape: shorter() })
        }
        Step::Argmax => {
            let first = |row: &[f32]| ranked(row, 1).first().copied().unwrap_or(0);
            let best = floats(elements).chunks(size).map(|row| first(row) as i64).collect();
            Ok(Values { elements: Elements::Integers(best), shape: shorter() })
        }
        Step::TopK(count) | Step::TopKIndexes(count) => {
            let all = floats(elements);
            let rows = all.chunks(size).map(|row| (row, ranked(row, *count)));
            let elements = match step {
                Step::TopK(_) => Elements::Floats(
                    rows.flat_map(|(row, best)| best.into_iter().map(|at| row[at])).collect(),
                ),
                _ => Elements::Integers(
                    rows.flat_map(|(_row, best)| best.into_iter().map(|at| at as i64)).collect(),
                ),
            };
            Ok(Values { elements, shape: [shorter(), vec![*count]].concat() })
        }
        Step::Threshold(least) => {
            #[expect(clippy::cast_possible_truncation, reason = "as precise as the numbers")]
            let least = *least as f32;
            let flags = floats(elements).into_iter().map(|number| number >= least).collect();
            Ok(Values { elements: Elements::Flags(flags), shape })
        }
        Step::Labels(labels) => {
            let texts = labelled(elements, labels.texts())?;
            Ok(Values { elements: Elements::Texts(texts), shape })
        }
    }
}

fn labelled(elements: Elements, labels: &[String]) -> Result<Vec<String>, String> {
    let indexes = match elements {
        Elements::Flags(flags) => flags.into_iter().map(i64::from).collect(),
        Elements::Integers(integers) => integers,
        Elements::Floats(_) | Elements::Texts(_) => return Err("there are no indexes".to_owned()),
    };
    let text = |index: &i64| usize::try_from(*index).ok().and_then(|index| labels.get(index));
    let texts = indexes.iter().map(|index| {
        text(index).cloned().ok_or_else(|| {
            format!("there is no label for {index}, only for 0 to {}", labels.len() - 1)
        })
    });
    texts.collect()
}

fn floats(elements: Elements) -> Vec<f32> {
    match elements {
        Elements::Floats(floats) => floats,
        Elements::Integers(integers) => integers.into_iter().map(|number| number as f32).collect(),
        Elements::Flags(flags) => flags.into_iter().map(f32::from).collect(),
        Elements::Texts(_) => Vec::new(),
    }
}

fn by_last(elements: Elements, size: usize, change: impl Fn(&mut [f32])) -> Elements {
    let mut floats = floats(elements);
    floats.chunks_mut(size).for_each(change);
    Elements::Floats(floats)
}

fn softmax(row: &mut [f32]) {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|number| *number = (*number - greatest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|number| *number /= sum);
}

fn normalize(row: &mut [f32]) {
    let length = row.iter().map(|number| number * number).sum::<f32>().sqrt();
    // As `torch.nn.functional.normalize` does, so that zeros stay zeros.
    let length = length.max(1e-12);
    row.iter_mut().for_each(|number| *number /= length);
}

/// The mean of the tokens that the mask selects, or the first token without a mask.
fn pool(
    all: &[f32],
    (rows, tokens, features): (usize, usize, usize),
    mask: Option<&[f32]>,
) -> Result<Vec<f32>, String> {
    let mut pooled = vec![0.0; rows * features];
    if all.is_empty() {
        return Ok(pooled);
    }
    let texts = all.chunks(tokens * features).zip(pooled.chunks_mut(features)).enumerate();
    for (row, (text, pooled)) in texts {
        let Some(mask) = mask else {
            pooled.copy_from_slice(&text[..features]);
            continue;
        };
        let weights = mask.get(row * tokens..(row + 1) * tokens);
        let weights =
            weights.ok_or("the mask has another number of tokens than the graph's value")?;
        for (token, weight) in text.chunks(features).zip(weights) {
            pooled.iter_mut().zip(token).for_each(|(sum, number)| *sum += weight * number);
        }
        let count = weights.iter().sum::<f32>().max(1e-9);
        pooled.iter_mut().for_each(|sum| *sum /= count);
    }
    Ok(pooled)
}

fn column<T: Clone>(all: &[T], size: usize, index: usize) -> Vec<T> {
    all.chunks(size).filter_map(|row| row.get(index).cloned()).collect()
}

/// The indexes of the greatest numbers, the first of equal ones first. NaN is less than any number.
fn ranked(row: &[f32], count: usize) -> Vec<usize> {
    let key = |index: &usize| if row[*index].is_nan() { f32::NEG_INFINITY } else { row[*index] };
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|left, right| key(right).total_cmp(&key(left)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests;
