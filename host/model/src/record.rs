//! Records: the JSON form of rows, in requests, responses and golden examples.
//!
//! A record is an object with a value for each input. A text is a string, any other byte string is
//! base64 (RFC 4648, padded), a number is a number, and a field with a row shape is a nested array.
//! A number for a float is rounded to the nearest value of the datatype. Values that are not finite
//! have no JSON form: they are `null` in responses and cannot be sent. Byte strings that a caller
//! sends outside of JSON are used as they are. Tensors that a caller sends directly are validated
//! here as well, so guests see the same values whatever the protocol.

mod compare;
mod decode;
mod encode;
pub mod schema;
mod tensors;
mod valid_rows;

pub use compare::{
    ElementMismatch, GoldenMismatch, Tolerances, compare_golden, element_mismatches,
};
pub use decode::{InputRow, InputValue, RecordError, RowIssue, decode};
pub use encode::{TooManyValues, encode};
pub use tensors::{TensorInputError, validate_tensors};
pub use valid_rows::{ValidRows, decode_valid_rows};
