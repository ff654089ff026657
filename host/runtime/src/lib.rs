//! The runtime of Guesthouse: it compiles model versions and runs them in sandboxed instances.
//!
//! The modules are listed in reading order. Only this crate knows
//! wasmtime. It knows nothing of sockets, of what operators decide, or of which version answers.
//!
//! # Embedding
//!
//! The module [`embed`] opens an artifact and predicts, without a server:
//!
//! ```
//! use guesthouse_runtime::embed::{Runtime, RuntimeOptions};
//! use serde_json::json;
//! # use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # // Set by `cargo xtask test`; without packed artifacts, this example is only compiled.
//! # let Some(repository) = std::env::var_os("GUESTHOUSE_REPOSITORY") else { return Ok(()) };
//! # let repository = Path::new(&repository);
//! # let state = repository.with_file_name("embedding-example");
//! let runtime = Runtime::open(&state, RuntimeOptions::default())?;
//! // The first time, this compiles the artifact, which takes seconds.
//! let model = runtime.load(&repository.join("toxicity-1.0.0.wasm"))?;
//!
//! let row = json!({ "text": "You are an idiot" });
//! let row = row.as_object().cloned().unwrap_or_default();
//! for outputs in model.predict(&[row])? {
//!     println!("{}: {}", model.id(), outputs["label"]);
//! #   assert_eq!(outputs["label"], "toxic");
//! }
//! # Ok(())
//! # }
//! ```
#![cfg_attr(rustfmt, rustfmt_skip)]

pub mod clock;
pub mod priority;
pub mod machine;
pub mod measure;
pub mod stages;
pub mod durable;
pub mod guest;
pub mod preinit;
pub mod store;
pub mod pool;
pub mod version;
pub mod inference;
pub mod load;
pub mod profile;
pub mod embed;
