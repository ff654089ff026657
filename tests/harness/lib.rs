//! What the tests at the process boundary stand on: a real server of their own for each test, and
//! the artifacts it serves.
//!
//! `cargo xtask test` builds everything and says where it is, in the variables that
//! [`environment`] reads.

pub mod artifacts;
pub mod book;
pub mod client;
pub mod collector;
pub mod console;
pub mod dynamic;
pub mod encoding;
pub mod entries;
pub mod environment;
pub mod grpc;
mod processor;
pub mod server;
mod state;

pub use client::{Answer, DEMO_KEY};
pub use rustix::process::Signal;
pub use server::{Server, Setup};
