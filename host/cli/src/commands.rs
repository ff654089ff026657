//! The subcommands: each parses what it is told, calls the library and prints.

pub(crate) mod check;
pub(crate) mod inspect;
pub(crate) mod operate;
pub(crate) mod pack;
pub(crate) mod proto;
pub(crate) mod serve;
