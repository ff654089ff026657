//! Builds values from the fuzzer's bytes, which are followed by zeros.

use guesthouse_model::{Constraint, Datatype, Field, Signature};

const DATATYPES: [Datatype; 14] = [
    Datatype::Bytes,
    Datatype::Fp32,
    Datatype::Int64,
    Datatype::Bool,
    Datatype::Uint8,
    Datatype::Uint16,
    Datatype::Uint32,
    Datatype::Uint64,
    Datatype::Int8,
    Datatype::Int16,
    Datatype::Int32,
    Datatype::Fp64,
    Datatype::Fp16,
    Datatype::Bf16,
];

/// The names of fields, in order.
const NAMES: [&str; 4] = ["a", "b", "c", "D4"];

const LABELS: [&str; 3] = ["", "x", "é"];

const BOUNDS: [f64; 6] = [0.0, -1.0, 1.0, 255.0, f64::INFINITY, f64::NEG_INFINITY];

/// The remaining bytes of an input.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// All remaining bytes.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A valid signature, or `None`.
    pub(super) fn signature(&mut self) -> Option<Signature> {
        let inputs = self.fields(true);
        let outputs = self.fields(false);
        let max_batch_size = u32::from(self.byte()) + 1;
        let signature = Signature { inputs, outputs, max_batch_size };
        signature.check().is_ok().then_some(signature)
    }

    fn fields(&mut self, with_defaults: bool) -> Vec<Field> {
        let count = self.below(NAMES.len()) + 1;
        NAMES[..count].iter().map(|name| self.field(name, with_defaults)).collect()
    }

    fn field(&mut self, name: &str, with_default: bool) -> Field {
        let datatype = DATATYPES[self.below(DATATYPES.len())];
        let form = self.byte();
        let row_shape = (0..form % 4).map(|_| self.dimension()).collect();
        let constraints = (0..form / 4 % 4).map(|_| self.constraint()).collect();
        let default = (with_default && form >= 128).then(|| {
            let length = self.below(32);
            (0..length).map(|_| self.byte()).collect()
        });
        let (name, description) = (name.to_owned(), String::new());
        Field { name, description, datatype, row_shape, constraints, default }
    }

    fn dimension(&mut self) -> Option<u32> {
        match self.byte() % 5 {
            0 => None,
            size => Some(u32::from(size) - 1),
        }
    }

    fn constraint(&mut self) -> Constraint {
        match self.byte() % 6 {
            0 => Constraint::Text,
            1 => Constraint::Stripped,
            2 => {
                let (minimum, maximum) = (u32::from(self.byte()), u32::from(self.byte()));
                Constraint::Length { minimum, maximum }
            }
            3 => Constraint::Range { minimum: self.bound(), maximum: self.bound() },
            4 => {
                let count = self.below(LABELS.len() + 1);
                Constraint::OneOf(LABELS[..count].iter().map(|&label| label.to_owned()).collect())
            }
            _ => {
                let length = self.below(9);
                Constraint::Padded((0..length).map(|_| self.byte()).collect())
            }
        }
    }

    fn bound(&mut self) -> Option<f64> {
        BOUNDS.get(self.below(BOUNDS.len() + 1)).copied()
    }
}
