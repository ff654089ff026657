//! The harness of the boundary tests: it starts a real server for each test and provides the
//! artifacts that it serves.
//!
//! `cargo xtask test` builds everything and passes the locations in the variables that
//! [`environment`] reads.

pub mod artifacts;
pub mod book;
pub mod client;
pub mod collector;
pub mod console;
mod cpu_time;
pub mod dynamic;
pub mod encoding;
pub mod entry_points;
pub mod environment;
mod eventually;
pub mod grpc;
pub mod server;
pub mod state;

pub use client::{DEMO_KEY, HttpResponse};
pub use eventually::{DEADLINE, eventually, eventually_some};
pub use rustix::process::Signal;
pub use server::{Server, Setup};
