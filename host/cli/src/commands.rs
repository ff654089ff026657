//! The subcommands. Each parses its arguments, calls the library and prints the result.

mod cache;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod exit_code;
pub(crate) mod inspect;
pub(crate) mod man;
pub(crate) mod new;
pub(crate) mod operate;
pub(crate) mod pack;
pub(crate) mod predict;
pub(crate) mod proto;
pub(crate) mod reference;
pub(crate) mod serve;
pub(crate) mod verify;
