//! Numbers and texts that become the columns of one tensor.

use std::collections::BTreeMap;

use guesthouse_guest::tract_onnx::prelude::{DatumType, Tensor as Array};
use guesthouse_guest::{Batch, Datatype, Dimension, Error, GraphValue, PredictError, Rejections};
use guesthouse_onnx_manifest::{
    Categories, Column, Encoding, Input, NumberType, Table, Unknown, Value,
};

use super::{Feed, Preprocess, position};
use crate::fields::{Wanted, number};

/// The columns of an input of the graph.
pub(super) struct Columns {
    index: usize,
    datum_type: DatumType,
    encoders: Vec<Encoder>,
    width: usize,
}

/// How a field becomes one column or several.
#[derive(Debug)]
struct Encoder {
    field: String,
    datatype: Datatype,
    rule: Rule,
    default: Option<Value>,
}

#[derive(Debug)]
enum Rule {
    Number {
        missing: Option<f64>,
        fill: f64,
        mean: f64,
        std: f64,
    },
    Category {
        codes: Codes,
        missing: Option<Value>,
        fill: Option<usize>,
        encoding: Encoding,
        unknown: Unknown,
    },
}

/// The codes of categories.
#[derive(Debug)]
enum Codes {
    Texts(BTreeMap<String, usize>),
    Integers(BTreeMap<i64, usize>),
}

/// A value of a row.
#[derive(Debug, Clone, Copy)]
enum Cell<'a> {
    Number(f64),
    Integer(i64),
    Text(&'a str),
}

impl Columns {
    pub(super) fn new(
        table: &Table,
        inputs: &[Input],
        values: &[GraphValue],
    ) -> Result<Self, Error> {
        let wrong = |what: String| Error::new(format!("table of {:?}: {what}", table.graph));
        let index = position(values, &table.graph).map_err(wrong)?;
        let encoders = table.columns.iter().map(|column| {
            let input = inputs.iter().find(|input| input.name == column.input);
            let encoder = Encoder::new(column, input.and_then(|input| input.datatype));
            encoder.map_err(|what| wrong(format!("column {:?}: {what}", column.input)))
        });
        let encoders = encoders.collect::<Result<Vec<_>, _>>()?;
        let width = encoders.iter().map(Encoder::width).sum();
        let value = &values[index];
        let is_fit = match &value.shape[1..] {
            [Dimension::Fixed(size)] => *size == width,
            [Dimension::Named(_)] => width > 0,
            _ => false,
        };
        if !is_fit || matches!(value.datatype, Datatype::Bytes | Datatype::Bool) {
            let found: Vec<String> = value.shape[1..].iter().map(size_name).collect();
            return Err(wrong(format!(
                "the columns are {width} numbers, but a row of the graph's input is [{}] of {:?}: \
                 correct the list of columns",
                found.join(", "),
                value.datatype
            )));
        }
        Ok(Self { index, datum_type: value.datum_type(), encoders, width })
    }
}

fn size_name(size: &Dimension) -> String {
    match size {
        Dimension::Fixed(size) => size.to_string(),
        Dimension::Named(name) => name.clone(),
    }
}

impl Encoder {
    fn new(column: &Column, datatype: Option<NumberType>) -> Result<Self, String> {
        let field = column.input.clone();
        let default = column.missing.clone().or_else(|| column.fill.clone());
        let Some(categories) = &column.categories else {
            let number = |value: &Option<Value>, key: &str| match value {
                None => Ok(None),
                Some(value) => match number(value) {
                    Some(number) => Ok(Some(number)),
                    None => Err(format!("`{key}` is {value:?}: give a number, or `categories`")),
                },
            };
            if column.encoding != Encoding::Code || column.unknown != Unknown::Reject {
                return Err("`encoding` and `unknown` are for `categories`: remove them".to_owned());
            }
            if column.std == 0.0 {
                return Err("`std` is 0".to_owned());
            }
            let rule = Rule::Number {
                missing: number(&column.missing, "missing")?,
                fill: number(&column.fill, "fill")?.unwrap_or(f64::NAN),
                mean: column.mean,
                std: column.std,
            };
            let datatype = match datatype.unwrap_or(NumberType::Fp32) {
                NumberType::Fp32 => Datatype::Fp32,
                NumberType::Fp64 => Datatype::Fp64,
                NumberType::Int32 => Datatype::Int32,
                NumberType::Int64 => Datatype::Int64,
                NumberType::Bool => Datatype::Bool,
            };
            return Ok(Self { field, datatype, rule, default });
        };
        if column.mean != 0.0 || column.std != 1.0 {
            return Err("`mean` and `std` are for numbers: remove them".to_owned());
        }
        if datatype.is_some() {
            return Err("`type` follows from the categories: remove it".to_owned());
        }
        match (column.encoding, column.unknown) {
            (Encoding::Code, Unknown::Zeros) => {
                return Err("`unknown` is zeros: give a code, as { code = -1 }".to_owned());
            }
            (Encoding::OneHot, Unknown::Code(_)) => {
                return Err("`unknown` is a code: with `one_hot`, give \"zeros\"".to_owned());
            }
            _ => {}
        }
        let codes = Codes::new(categories)?;
        let fill =
            match &column.fill {
                None => None,
                Some(value) => Some(codes.of_value(value).ok_or_else(|| {
                    format!("`fill` is {value:?}, which is none of the categories")
                })?),
            };
        let datatype = match codes {
            Codes::Texts(_) => Datatype::Bytes,
            Codes::Integers(_) => Datatype::Int64,
        };
        let rule = Rule::Category {
            codes,
            missing: column.missing.clone(),
            fill,
            encoding: column.encoding,
            unknown: column.unknown,
        };
        Ok(Self { field, datatype, rule, default })
    }

    fn width(&self) -> usize {
        match &self.rule {
            Rule::Category { codes, encoding: Encoding::OneHot, .. } => codes.count(),
            _ => 1,
        }
    }

    fn wanted(&self) -> Wanted {
        let one_of = match &self.rule {
            Rule::Category {
                codes: Codes::Texts(codes),
                missing,
                unknown: Unknown::Reject,
                ..
            } => {
                let mut texts: Vec<(&String, &usize)> = codes.iter().collect();
                texts.sort_by_key(|(_, code)| **code);
                let texts = texts.into_iter().map(|(text, _)| text.clone());
                let missing = match missing {
                    Some(Value::Text(text)) if !codes.contains_key(text) => Some(text.clone()),
                    _ => None,
                };
                Some(texts.chain(missing).collect())
            }
            _ => None,
        };
        Wanted {
            is_text: self.datatype == Datatype::Bytes,
            one_of,
            default: self.default.clone(),
            ..Wanted::element(self.datatype, &format!("the column `{}`", self.field))
        }
    }

    /// Write the columns of a value; the error says why the value is rejected.
    fn encode(&self, cell: Cell, columns: &mut [f64]) -> Result<(), String> {
        match &self.rule {
            Rule::Number { missing, fill, mean, std } => {
                let number = match cell {
                    Cell::Number(number) => number,
                    Cell::Integer(integer) => integer as f64,
                    Cell::Text(_) => f64::NAN,
                };
                let number =
                    if number.is_nan() || Some(number) == *missing { *fill } else { number };
                columns[0] = (number - mean) / std;
            }
            Rule::Category { codes, missing, fill, encoding, unknown } => {
                let is_missing = missing.as_ref().is_some_and(|missing| cell.is(missing));
                let code = if is_missing { *fill } else { codes.of(cell) };
                match (code, encoding, unknown) {
                    (Some(code), Encoding::Code, _) => columns[0] = code as f64,
                    (Some(code), Encoding::OneHot, _) => columns[code] = 1.0,
                    (None, _, Unknown::Code(code)) => columns[0] = *code,
                    (None, _, Unknown::Zeros) => {}
                    // Trees and imputers in the graph know what to do with it.
                    (None, Encoding::Code, Unknown::Reject) if is_missing => columns[0] = f64::NAN,
                    (None, Encoding::OneHot, Unknown::Reject) if is_missing => {}
                    (None, _, Unknown::Reject) => {
                        return Err("is none of the categories".to_owned());
                    }
                }
            }
        }
        Ok(())
    }

    /// The values of a batch.
    fn cells<'a>(&self, batch: &'a Batch) -> Result<Vec<Cell<'a>>, PredictError> {
        let name = &self.field;
        let data = |datatype| batch.data(name, datatype);
        Ok(match self.datatype {
            Datatype::Bytes => batch.texts(name)?.into_iter().map(Cell::Text).collect(),
            Datatype::Bool => {
                data(Datatype::Bool)?.iter().map(|flag| Cell::Integer((*flag).into())).collect()
            }
            Datatype::Int64 => batch.int64(name)?.into_iter().map(Cell::Integer).collect(),
            Datatype::Int32 => {
                let (numbers, _rest) = data(Datatype::Int32)?.as_chunks();
                numbers
                    .iter()
                    .map(|bytes| Cell::Integer(i32::from_le_bytes(*bytes).into()))
                    .collect()
            }
            Datatype::Fp64 => {
                let (numbers, _rest) = data(Datatype::Fp64)?.as_chunks();
                numbers.iter().map(|bytes| Cell::Number(f64::from_le_bytes(*bytes))).collect()
            }
            _ => batch.fp32(name)?.into_iter().map(|number| Cell::Number(number.into())).collect(),
        })
    }
}

impl Codes {
    fn new(categories: &Categories) -> Result<Self, String> {
        let codes = match categories {
            Categories::Integers(integers) => Self::Integers(
                integers.iter().enumerate().map(|(code, value)| (*value, code)).collect(),
            ),
            Categories::Labels(labels) => Self::Texts(
                labels
                    .texts()
                    .iter()
                    .enumerate()
                    .map(|(code, text)| (text.clone(), code))
                    .collect(),
            ),
        };
        let given = match categories {
            Categories::Integers(integers) => integers.len(),
            Categories::Labels(labels) => labels.texts().len(),
        };
        match codes.count() {
            0 => Err("there are no categories: list them".to_owned()),
            count if count < given => Err("a category is listed twice: leave one".to_owned()),
            _ => Ok(codes),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Texts(codes) => codes.len(),
            Self::Integers(codes) => codes.len(),
        }
    }

    fn of(&self, cell: Cell) -> Option<usize> {
        match (self, cell) {
            (Self::Texts(codes), Cell::Text(text)) => codes.get(text).copied(),
            (Self::Integers(codes), Cell::Integer(integer)) => codes.get(&integer).copied(),
            _ => None,
        }
    }

    fn of_value(&self, value: &Value) -> Option<usize> {
        match value {
            Value::Text(text) => self.of(Cell::Text(text)),
            Value::Integer(integer) => self.of(Cell::Integer(*integer)),
            Value::Flag(_) | Value::Number(_) => None,
        }
    }
}

impl Cell<'_> {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Cell::Text(text), Value::Text(value)) => text == value,
            (Cell::Integer(integer), Value::Integer(value)) => integer == *value,
            _ => false,
        }
    }
}

impl Preprocess for Columns {
    fn takes(&self) -> Vec<(String, Wanted)> {
        self.encoders.iter().map(|encoder| (encoder.field.clone(), encoder.wanted())).collect()
    }

    fn makes(&self) -> Vec<usize> {
        vec![self.index]
    }

    fn largest(&self) -> Option<Vec<usize>> {
        Some(vec![self.width])
    }

    fn run(
        &self,
        batch: &Batch,
        rejections: &mut Rejections,
        feed: &mut Feed,
    ) -> Result<(), PredictError> {
        let mut table = vec![0.0; batch.rows() * self.width];
        let mut first = 0;
        for encoder in &self.encoders {
            let columns = first..first + encoder.width();
            first = columns.end;
            let rows = table.chunks_mut(self.width).zip(encoder.cells(batch)?).enumerate();
            for (row, (numbers, cell)) in rows {
                if let Err(reason) = encoder.encode(cell, &mut numbers[columns.clone()]) {
                    rejections.reject(row, &encoder.field, reason);
                }
            }
        }
        let array = Array::from_shape(&[batch.rows(), self.width], &table);
        let array = array.and_then(|array| Ok(array.cast_to_dt(self.datum_type)?.into_owned()));
        feed.set(self.index, array.map_err(PredictError::failed)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
