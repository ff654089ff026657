//! What the tests of operations share.
#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod fuzz;
pub(crate) mod fuzz_quantised;
#[cfg(target_os = "linux")]
pub(crate) mod guarded;
pub(crate) mod plain;
pub(crate) mod quantised;
pub(crate) mod random;
pub(crate) mod random_quantised;
