//! `native`: what the performance benchmark compares guests and the server with.
//!
//! [`infer`] runs the cases with tract in this process, and [`serve`] is a server as one would write
//! it by hand around tract. Neither has a sandbox, deadlines or limits.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its result")]

mod infer;
mod model;
mod serve;
mod toxicity;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "native")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Answer requests for measurements on the standard input.
    Infer {
        /// The folder of models and cases.
        #[arg(long)]
        models: PathBuf,
        /// The folder with `model.onnx` and `vocabulary.tsv` of the model `toxicity`.
        #[arg(long)]
        toxicity: PathBuf,
    },
    /// Serve a case's model: the inputs' bytes one after the other in, the first output's bytes out.
    Serve {
        /// The folder of models and cases.
        #[arg(long)]
        models: PathBuf,
        /// The case whose shapes requests have.
        #[arg(long)]
        case: String,
    },
    /// Serve the toxicity of texts in the server's own JSON.
    Toxicity {
        /// The folder with `model.onnx` and `vocabulary.tsv`.
        #[arg(long)]
        assets: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Infer { models, toxicity } => infer::answer(&models, &toxicity),
        Task::Serve { models, case } => serve::tensors(&models, &case),
        Task::Toxicity { assets } => serve::toxicity(&assets),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
