//! Records: the JSON form of rows, for callers and for golden examples.
//!
//! A record is an object with a value for each input. A text is a string, another byte string is
//! base64 (RFC 4648, padded), a number is a number; a field with a row shape holds nested arrays.
//! A number for a float is rounded to the nearest one that the datatype has. One that is not finite has
//! no JSON form: it is `null` in an answer and cannot be sent. A caller that sends byte strings in
//! another way than JSON has them taken as they are. Tensors that come as such are checked here as
//! well, so that a guest sees the same whatever the protocol was.

mod compare;
mod decode;
mod encode;
pub mod schema;
mod tensors;
mod valid_rows;

pub use compare::{GoldenMismatch, Tolerances, compare_golden};
pub use decode::{InputRow, InputValue, RecordError, RowIssue, decode};
pub use encode::{TooManyValues, encode};
pub use tensors::{TensorInputError, validate_tensors};
pub use valid_rows::{ValidRows, decode_valid_rows};
