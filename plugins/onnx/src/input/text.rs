//! Texts that become tokens, with Hugging Face's `tokenizers`.
//!
//! A text is truncated to the manifest's number of tokens, and the texts of a call are padded to the
//! longest one, unless the graph takes a fixed number of tokens.

use guesthouse_guest::tract_onnx::prelude::{DatumType, Tensor as Array};
use guesthouse_guest::{Batch, Datatype, Dimension, Error, GraphValue, PredictError, Rejections};
use guesthouse_onnx_manifest::Tokenize;
use tokenizers::{PostProcessor as _, Tokenizer, TruncationParams};

use super::{Feed, Preprocess, position};
use crate::fields::Wanted;

/// A field whose texts become tokens.
pub(super) struct Texts {
    field: String,
    tokenizer: Padded,
    max_length: usize,
    ids: Target,
    mask: Option<Target>,
    types: Option<Target>,
}

/// An input of the graph.
struct Target {
    index: usize,
    datum_type: DatumType,
}

/// A tokenizer that pads texts to the same length.
struct Padded {
    tokenizer: Tokenizer,
    padding: i64,
    padding_type: i64,
    is_left: bool,
    /// The number of tokens that the graph takes, if it is always the same.
    length: Option<usize>,
}

/// The tokens of some texts, row-major.
#[derive(Debug, PartialEq)]
struct Tokens {
    length: usize,
    ids: Vec<i64>,
    mask: Vec<i64>,
    types: Vec<i64>,
}

impl Texts {
    /// `file` is the `tokenizer.json`.
    pub(super) fn new(
        tokenize: &Tokenize,
        file: &[u8],
        values: &[GraphValue],
    ) -> Result<Self, Error> {
        let wrong = |what: String| Error::new(format!("tokenize of {:?}: {what}", tokenize.input));
        let position = |name: &str, key: &str| {
            position(values, name)
                .map_err(|what| wrong(format!("{what}: set `{key}` to one of them")))
        };
        let ids = position(&tokenize.ids, "ids")?;
        let optional = |name: &str| values.iter().position(|value| value.name == name);
        let target = |index: usize| Target { index, datum_type: values[index].datum_type() };
        let mask = optional(&tokenize.mask).map(target);
        let types = optional(&tokenize.types).map(target);
        let ids = target(ids);
        let mut length = None;
        for target in [Some(&ids), mask.as_ref(), types.as_ref()].into_iter().flatten() {
            let value = &values[target.index];
            length = tokens(value).map_err(wrong)?;
        }
        if length.is_some_and(|length| length < tokenize.max_length) {
            let length = length.unwrap_or(0);
            return Err(wrong(format!(
                "the graph takes {length} tokens: set `max_length` to {length}"
            )));
        }
        let tokenizer = Padded::new(file, tokenize.max_length, length).map_err(wrong)?;
        Ok(Self {
            field: tokenize.input.clone(),
            tokenizer,
            max_length: tokenize.max_length,
            ids,
            mask,
            types,
        })
    }

    /// The number of tokens that there are, and the input of the graph for them.
    pub(super) fn vocabulary(&self) -> (usize, usize) {
        (self.ids.index, self.tokenizer.tokenizer.get_vocab_size(true))
    }
}

/// The number of tokens that an input of the graph takes, if it is always the same.
fn tokens(value: &GraphValue) -> Result<Option<usize>, String> {
    let is_number = !matches!(value.datatype, Datatype::Bytes | Datatype::Bool);
    match &value.shape[1..] {
        [Dimension::Named(_)] if is_number => Ok(None),
        [Dimension::Fixed(length)] if is_number => Ok(Some(*length)),
        _ => Err(format!("rows of the graph's input {:?} are no numbers of tokens", value.name)),
    }
}

impl Padded {
    fn new(file: &[u8], max_length: usize, length: Option<usize>) -> Result<Self, String> {
        let tokenizer = Tokenizer::from_bytes(file);
        let mut tokenizer =
            tokenizer.map_err(|error| format!("the tokenizer is not valid: {error}"))?;
        let added = tokenizer.get_post_processor().map_or(0, |added| added.added_tokens(false));
        if max_length <= added {
            return Err(format!(
                "`max_length` is {max_length}, but the tokenizer adds {added} tokens to each text: \
                 raise it"
            ));
        }
        let given = tokenizer.get_padding().cloned().unwrap_or_default();
        let named = ["[PAD]", "<pad>"].iter().find_map(|name| tokenizer.token_to_id(name));
        let padding = match tokenizer.get_padding() {
            Some(given) => given.pad_id,
            None => named.unwrap_or(0),
        };
        let is_left = matches!(given.direction, tokenizers::PaddingDirection::Left);
        let direction = tokenizer.get_truncation().map(|given| given.direction);
        let truncation = TruncationParams {
            max_length,
            direction: direction.unwrap_or(tokenizers::TruncationDirection::Right),
            ..TruncationParams::default()
        };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let (padding, padding_type) = (i64::from(padding), i64::from(given.pad_type_id));
        Ok(Self { tokenizer, padding, padding_type, is_left, length })
    }

    fn encode(&self, texts: &[&str]) -> Result<Tokens, String> {
        let encodings = texts.iter().map(|text| self.tokenizer.encode(*text, true));
        let encodings =
            encodings.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let longest = encodings.iter().map(|encoding| encoding.len()).max().unwrap_or(0);
        let length = self.length.unwrap_or(longest).max(1);
        let mut tokens = Tokens { length, ids: vec![], mask: vec![], types: vec![] };
        for encoding in &encodings {
            let [ids, mask, types] = [
                (encoding.get_ids(), self.padding),
                (encoding.get_attention_mask(), 0),
                (encoding.get_type_ids(), self.padding_type),
            ]
            .map(|(row, padding)| self.pad(row, padding, length));
            tokens.ids.extend(ids);
            tokens.mask.extend(mask);
            tokens.types.extend(types);
        }
        Ok(tokens)
    }

    fn pad(&self, row: &[u32], padding: i64, length: usize) -> Vec<i64> {
        let missing = std::iter::repeat_n(padding, length.saturating_sub(row.len()));
        let row = row.iter().map(|token| i64::from(*token));
        if self.is_left { missing.chain(row).collect() } else { row.chain(missing).collect() }
    }
}

impl Preprocess for Texts {
    fn takes(&self) -> Vec<(String, Wanted)> {
        let text = Wanted::element(Datatype::Bytes, "the text");
        vec![(self.field.clone(), Wanted { is_text: true, ..text })]
    }

    fn makes(&self) -> Vec<usize> {
        let optional = self.mask.iter().chain(&self.types);
        std::iter::once(&self.ids).chain(optional).map(|target| target.index).collect()
    }

    fn largest(&self) -> Option<Vec<usize>> {
        Some(vec![self.tokenizer.length.unwrap_or(self.max_length)])
    }

    fn run(
        &self,
        batch: &Batch,
        _rejections: &mut Rejections,
        feed: &mut Feed,
    ) -> Result<(), PredictError> {
        let texts = batch.texts(&self.field)?;
        let Tokens { length, ids, mask, types } =
            self.tokenizer.encode(&texts).map_err(PredictError::failed)?;
        let given =
            [(Some(&self.ids), ids), (self.mask.as_ref(), mask), (self.types.as_ref(), types)];
        for (target, tokens) in given {
            let Some(target) = target else { continue };
            let array = Array::from_shape(&[texts.len(), length], &tokens);
            let array =
                array.and_then(|array| Ok(array.cast_to_dt(target.datum_type)?.into_owned()));
            feed.set(target.index, array.map_err(PredictError::failed)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
