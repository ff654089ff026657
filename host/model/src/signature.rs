//! The signature of a version: its inputs and outputs. It is declared by the guest and validated
//! here once.
//!
//! The JSON form of these types is printed by `guesthouse inspect --json` and stored in the state
//! folder.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Datatype, Tensor, bytes_elements};

/// The names of other members of responses, which fields must not have in upper or lower case,
/// because names that are derived from those of fields may have either.
const RESERVED_NAMES: [&str; 3] = ["request_id", "model", "model_version"];

/// The longest name of a field, in bytes.
const MAX_NAME_LENGTH: usize = 64;

/// The most inputs, and the most outputs: a bound on what a guest can make the host store.
pub const MAX_FIELDS: usize = 1024;

/// The longest description or label, in bytes.
const MAX_TEXT_LENGTH: usize = 4096;

/// The inputs and outputs of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// At least one; names are unique, even if upper and lower case are the same.
    pub inputs: Vec<Field>,
    /// At least one; names are unique, even if upper and lower case are the same.
    pub outputs: Vec<Field>,
    /// The most rows of one call of the guest, at least 1.
    pub max_batch_size: u32,
}

/// An input or an output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// ASCII letters, digits and `_`, beginning with a letter. Callers have to use the same case.
    pub name: String,
    /// A description for people.
    pub description: String,
    /// The type of every element.
    pub datatype: Datatype,
    /// The dimensions of one row, without the batch dimension; `None` is a variable size.
    pub row_shape: Vec<Option<u32>>,
    /// What values of an input must satisfy, and what values of an output are promised to satisfy.
    pub constraints: Vec<Constraint>,
    /// For inputs: the elements of one row in the tensor's encoding, used if a caller omits the
    /// input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Vec<u8>>,
}

/// A constraint on every element of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Constraint {
    /// The byte string is UTF-8.
    Text,
    /// White space at both ends is removed before other constraints are checked.
    Stripped,
    /// The number of characters of a text, or of bytes of any other byte string.
    Length {
        /// The least length.
        minimum: u32,
        /// The greatest length.
        maximum: u32,
    },
    /// The number is finite and within the bounds, inclusively.
    Range {
        /// The least value.
        minimum: Option<f64>,
        /// The greatest value.
        maximum: Option<f64>,
    },
    /// The text is one of these.
    OneOf(Vec<String>),
    /// The element, in the tensor's encoding, that pads shorter rows along variable dimensions, so
    /// that rows of different sizes can share a batch. Callers do not see it.
    Padded(Vec<u8>),
}

/// A signature that the host cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the signature is unusable: {0}")]
pub struct SignatureError(String);

impl Signature {
    /// Validate everything that other code relies on.
    ///
    /// # Errors
    /// [`SignatureError`] for the first problem.
    pub fn check(&self) -> Result<(), SignatureError> {
        if self.max_batch_size == 0 {
            return Err(SignatureError("max-batch-size is 0".to_owned()));
        }
        for (side, fields) in [("input", &self.inputs), ("output", &self.outputs)] {
            if fields.is_empty() || fields.len() > MAX_FIELDS {
                return Err(SignatureError(format!("it has {} {side}s", fields.len())));
            }
            for (index, field) in fields.iter().enumerate() {
                let wrong = |what: String| {
                    let name: String = field.name.chars().take(MAX_NAME_LENGTH).collect();
                    SignatureError(format!("{side} {name:?}: {what}"))
                };
                field.check().map_err(wrong)?;
                let same = |other: &Field| other.name.eq_ignore_ascii_case(&field.name);
                if fields[..index].iter().any(same) {
                    return Err(wrong("the name is used twice".to_owned()));
                }
                if side == "output" && field.default.is_some() {
                    return Err(wrong("an output has no default".to_owned()));
                }
                if side == "output" && field.padding().is_some() {
                    return Err(wrong("an output is not padded".to_owned()));
                }
            }
        }
        self.check_padding()
    }

    /// Padding must not affect the size of an output, because it could not be distinguished from
    /// real elements.
    fn check_padding(&self) -> Result<(), SignatureError> {
        let padded = self.inputs.iter().any(|input| input.padding().is_some());
        match self.outputs.iter().find(|output| output.has_variable_dimension()) {
            Some(output) if padded => {
                let name = &output.name;
                Err(SignatureError(format!("an input is padded, but output {name:?} has any size")))
            }
            _ => Ok(()),
        }
    }

    /// The inputs without a default, which callers must provide.
    pub fn required_inputs(&self) -> impl Iterator<Item = &Field> {
        self.inputs.iter().filter(|field| field.default.is_none())
    }
}

impl Field {
    /// Whether the elements are UTF-8 texts.
    pub fn is_text(&self) -> bool {
        self.constraints.contains(&Constraint::Text)
    }

    /// Whether the number of elements determines the shape of a row: at most one dimension is
    /// variable, and no other is 0.
    pub fn shape_follows_from_count(&self) -> bool {
        match self.row_shape.iter().filter(|size| size.is_none()).count() {
            0 => true,
            1 => !self.row_shape.contains(&Some(0)),
            _ => false,
        }
    }

    /// Whether rows have a variable dimension.
    pub fn has_variable_dimension(&self) -> bool {
        self.row_shape.contains(&None)
    }

    /// The element that pads shorter rows, in the tensor's encoding. Without one, rows of different
    /// sizes do not share a batch.
    pub fn padding(&self) -> Option<&[u8]> {
        self.constraints.iter().find_map(|constraint| match constraint {
            Constraint::Padded(element) => Some(element.as_slice()),
            _ => None,
        })
    }

    /// Whether the tensor has the datatype and a matching shape.
    pub fn fits(&self, tensor: &Tensor) -> bool {
        let dimension_fits = |(wanted, is): (&Option<u32>, &u64)| {
            wanted.is_none_or(|wanted| u64::from(wanted) == *is)
        };
        tensor.datatype == self.datatype
            && tensor.shape.len() == self.row_shape.len() + 1
            && self.row_shape.iter().zip(&tensor.shape[1..]).all(dimension_fits)
    }

    fn check(&self) -> Result<(), String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let good_name = self.name.len() <= MAX_NAME_LENGTH
            && self.name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
            && self.name.bytes().all(allowed);
        if !good_name {
            let rule = "a name is 1 to 64 ASCII letters, digits and `_`, beginning with a letter";
            return Err(rule.to_owned());
        }
        if RESERVED_NAMES.iter().any(|reserved| reserved.eq_ignore_ascii_case(&self.name)) {
            return Err("the name is reserved".to_owned());
        }
        if self.description.len() > MAX_TEXT_LENGTH {
            return Err(format!("the description is over {MAX_TEXT_LENGTH} bytes"));
        }
        if self.row_shape.len() > 8 {
            return Err("a row has at most 8 dimensions".to_owned());
        }
        self.constraints.iter().try_for_each(|constraint| self.check_constraint(constraint))?;
        self.check_default()
    }

    fn check_constraint(&self, constraint: &Constraint) -> Result<(), String> {
        let bytes = self.datatype == Datatype::Bytes;
        let fits = match constraint {
            Constraint::Text => bytes,
            Constraint::Stripped => self.is_text(),
            Constraint::Length { minimum, maximum } => bytes && minimum <= maximum,
            Constraint::Range { minimum, maximum } => {
                // JSON, in which signatures are stored, cannot represent other bounds.
                let finite =
                    [minimum, maximum].into_iter().flatten().all(|bound| bound.is_finite());
                let ordered = minimum.zip(*maximum).is_none_or(|(low, high)| low <= high);
                !bytes && self.datatype != Datatype::Bool && finite && ordered
            }
            Constraint::OneOf(labels) => {
                let short = labels.iter().all(|label| label.len() <= MAX_TEXT_LENGTH);
                self.is_text() && !labels.is_empty() && labels.len() <= 100_000 && short
            }
            Constraint::Padded(element) => {
                let is_padded = |other: &&Constraint| matches!(other, Constraint::Padded(_));
                let once = self.constraints.iter().filter(is_padded).count() == 1;
                let short = element.len() <= MAX_TEXT_LENGTH;
                once && self.has_variable_dimension() && short && self.is_one_element(element)
            }
        };
        if fits { Ok(()) } else { Err(format!("a constraint does not fit: {constraint:?}")) }
    }

    fn check_default(&self) -> Result<(), String> {
        let Some(default) = &self.default else {
            return Ok(());
        };
        let dimensions: Option<Vec<u64>> =
            self.row_shape.iter().map(|dimension| dimension.map(u64::from)).collect();
        let dimensions = dimensions.ok_or("a default needs a fixed row shape")?;
        let mut shape = vec![1];
        shape.extend(dimensions);
        let (datatype, data) = (self.datatype, default.clone().into());
        let row = Tensor { name: self.name.clone(), datatype, shape, data };
        row.check().map_err(|error| format!("the default does not fit: {error}"))?;
        // A default must be valid for callers, too, because guests rely on that.
        if self.holds_values(&row) && row.is_finite() {
            Ok(())
        } else {
            Err("the default is no value of its type".to_owned())
        }
    }

    fn is_one_element(&self, data: &[u8]) -> bool {
        let (name, datatype, data) =
            (self.name.clone(), self.datatype, Bytes::copy_from_slice(data));
        let element = Tensor { name, datatype, shape: vec![1], data };
        element.check().is_ok() && self.holds_values(&element)
    }

    /// Whether all elements are valid for the field's type.
    fn holds_values(&self, tensor: &Tensor) -> bool {
        let text = |element: &[u8]| std::str::from_utf8(element).is_ok();
        match self.datatype {
            Datatype::Bool => tensor.data.iter().all(|flag| *flag <= 1),
            Datatype::Bytes if self.is_text() => bytes_elements(&tensor.data).all(text),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, datatype: Datatype) -> Field {
        let (row_shape, constraints) = (Vec::new(), Vec::new());
        let description = String::new();
        Field {
            name: name.to_owned(),
            description,
            datatype,
            row_shape,
            constraints,
            default: None,
        }
    }

    fn signature(inputs: Vec<Field>) -> Signature {
        Signature { inputs, outputs: vec![field("y", Datatype::Fp32)], max_batch_size: 1 }
    }

    #[test]
    fn an_unusable_signature_is_rejected() {
        assert_eq!(signature(vec![field("x", Datatype::Fp32)]).check(), Ok(()));
        let with = |constraint| {
            let mut text = field("x", Datatype::Bytes);
            text.constraints = vec![constraint];
            signature(vec![text])
        };
        let from = |minimum| {
            let mut number = field("x", Datatype::Fp32);
            number.constraints = vec![Constraint::Range { minimum: Some(minimum), maximum: None }];
            signature(vec![number])
        };
        assert_eq!(from(-1.0).check(), Ok(()));
        let with_default = |default: &[u8]| {
            let mut number = field("x", Datatype::Fp32);
            number.default = Some(default.to_vec());
            signature(vec![number])
        };
        assert_eq!(with_default(&[0; 4]).check(), Ok(()));
        let twice = vec![field("x", Datatype::Fp32), field("x", Datatype::Fp32)];
        let bad = [
            signature(Vec::new()),
            signature(twice),
            signature(vec![field("x", Datatype::Fp32), field("X", Datatype::Fp32)]),
            signature(vec![field("request_id", Datatype::Fp32)]),
            signature(vec![field("Model", Datatype::Fp32)]),
            with(Constraint::Stripped),
            with(Constraint::Range { minimum: None, maximum: None }),
            with(Constraint::Length { minimum: 2, maximum: 1 }),
            from(f64::NAN),
            from(f64::INFINITY),
            with_default(&[0; 5]),
            with_default(&f32::NAN.to_le_bytes()),
            {
                let mut flag = field("x", Datatype::Bool);
                flag.default = Some(vec![2]);
                signature(vec![flag])
            },
            {
                let mut text = field("x", Datatype::Bytes);
                text.constraints = vec![Constraint::Text];
                text.default = Some(vec![1, 0, 0, 0, 0xff]);
                signature(vec![text])
            },
            Signature { max_batch_size: 0, ..signature(vec![field("x", Datatype::Fp32)]) },
        ];
        for signature in bad {
            assert!(signature.check().is_err(), "{signature:?}");
        }
    }

    #[test]
    fn field_names_are_identifiers() {
        for good in ["x", "INPUT0", "text_2", "imageBytes", &"a".repeat(64)] {
            assert_eq!(signature(vec![field(good, Datatype::Fp32)]).check(), Ok(()), "{good}");
        }
        for bad in ["", "0INPUT", "_x", "a-b", "a.b", "a b", "é", "É", "a/b", &"a".repeat(65)] {
            assert!(signature(vec![field(bad, Datatype::Fp32)]).check().is_err(), "{bad}");
        }
        let both = Signature { inputs: vec![field("Y", Datatype::Fp32)], ..signature(vec![]) };
        assert_eq!(both.check(), Ok(()), "an input and an output may have the same name");
    }

    /// A signature whose input has a variable dimension and this padding.
    fn padded(datatype: Datatype, text: bool, elements: &[&[u8]]) -> Signature {
        let mut input = field("x", datatype);
        input.row_shape = vec![Some(2), None];
        input.constraints.extend(text.then_some(Constraint::Text));
        let padded = |element: &&[u8]| Constraint::Padded(element.to_vec());
        input.constraints.extend(elements.iter().map(padded));
        signature(vec![input])
    }

    #[test]
    fn padding_is_one_element_for_variable_dimensions() {
        let good = [
            padded(Datatype::Fp32, false, &[&0_f32.to_le_bytes()]),
            // Padding may be infinite although inputs with a range may not, because callers do not
            // send it.
            padded(Datatype::Fp32, false, &[&f32::NEG_INFINITY.to_le_bytes()]),
            padded(Datatype::Bool, false, &[&[1]]),
            padded(Datatype::Bytes, false, &[&[1, 0, 0, 0, 0xff]]),
            padded(Datatype::Bytes, true, &[&[0, 0, 0, 0]]),
        ];
        for signature in good {
            assert_eq!(signature.check(), Ok(()), "{signature:?}");
            assert!(signature.inputs[0].padding().is_some());
        }
        let changed = |change: fn(&mut Signature)| {
            let mut signature = padded(Datatype::Fp32, false, &[&[0; 4]]);
            change(&mut signature);
            signature
        };
        let bad = [
            padded(Datatype::Fp32, false, &[&[]]),
            padded(Datatype::Fp32, false, &[&[0; 3]]),
            padded(Datatype::Fp32, false, &[&[0; 8]]),
            padded(Datatype::Fp32, false, &[&[0; 4], &[0; 4]]),
            padded(Datatype::Bool, false, &[&[2]]),
            padded(Datatype::Bytes, false, &[&[2, 0, 0, 0, 0xff]]),
            padded(Datatype::Bytes, false, &[&[0; 8]]),
            padded(Datatype::Bytes, true, &[&[1, 0, 0, 0, 0xff]]),
            changed(|signature| signature.inputs[0].row_shape = vec![Some(2)]),
            changed(|signature| signature.outputs[0].row_shape = vec![None]),
            changed(|signature| {
                let padding = signature.inputs[0].constraints.remove(0);
                signature.outputs[0].constraints.push(padding);
            }),
        ];
        for signature in bad {
            assert!(signature.check().is_err(), "{signature:?}");
        }
    }

    #[test]
    fn the_json_form_round_trips() {
        let mut text = field("TEXT", Datatype::Bytes);
        text.constraints = vec![
            Constraint::Text,
            Constraint::Length { minimum: 1, maximum: 2000 },
            Constraint::OneOf(vec!["a".to_owned()]),
            Constraint::Padded(vec![0; 4]),
        ];
        let signature = signature(vec![text]);
        let json = serde_json::to_string(&signature).unwrap();
        assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
    }
}
