//! Records: the JSON form of rows, for callers and for golden examples.
//!
//! A record is an object with a value for each input. A text is a string, another byte string is
//! base64 (RFC 4648, padded), a number is a number; a field with a row shape holds nested arrays.
//! FP16 and BF16 have no JSON form. A number that is not finite has none either: it is `null` in an
//! answer and cannot be sent.

mod decode;
mod encode;
mod golden;
pub mod schema;

pub use decode::{RecordError, RowIssue, decode};
pub use encode::{TooLarge, encode};
pub use golden::{Difference, difference};
