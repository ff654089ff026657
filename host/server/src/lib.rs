//! The server of Guesthouse: HTTP, gRPC, the operators' API, configuration and observability.
//!
//! The modules are listed in reading order. Only this crate knows axum,
//! hyper and tonic.
#![cfg_attr(rustfmt, rustfmt_skip)]

pub mod observe;
pub mod typed;
pub mod config;
pub mod api;
pub mod edge;
pub mod admin;
pub mod server;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
