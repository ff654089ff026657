//! The request and response bodies of the catalogue and of the admin API.
//!
//! Each body is one Rust type. Handlers build it, the command line parses it, and the OpenAPI documents
//! get its JSON Schema, so that none of the three can differ from the others. Bodies of predictions are
//! not here: their schemas follow from the signature of each model version.
//!
//! The schemas are derived by `schemars` and not by `utoipa`. The OpenAPI documents are put together at
//! run time, from the signatures of the loaded versions and from cached fragments, so what is needed from
//! a derive is JSON Schema (draft 2020-12, which is what OpenAPI 3.1 uses) and not a whole document;
//! `schemars` follows the serde attributes that define the JSON, tells what is written from what is read,
//! and describes the configuration file as well, for which `utoipa` has no notion.
//!
//! Requests are strict (`deny_unknown_fields`). Responses are parsed leniently: fields that this release
//! does not know are ignored, and an unknown variant of an [`OpenEnum`] is kept as it is.

pub mod catalogue;
pub mod change;
pub mod error;
pub mod history;
pub mod keys;
mod open_enum;
pub mod operation;
pub(crate) mod schema;
pub mod status;
#[cfg(test)]
mod tests;

pub use open_enum::OpenEnum;
