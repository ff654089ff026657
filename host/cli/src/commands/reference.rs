//! `guesthouse reference`: the parts of the documentation that are generated from the program.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Context as _;
use guesthouse_server::{admin, config, edge};

#[derive(Debug, clap::Args)]
pub(crate) struct ReferenceArguments {
    #[arg(value_enum)]
    part: Part,
}

/// A part of the reference.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Part {
    /// The keys of the configuration file, in Markdown.
    Configuration,
    /// The error codes, in Markdown.
    Errors,
    /// The metrics, in Markdown.
    Metrics,
    /// The command line, in Markdown.
    CommandLine,
    /// The OpenAPI document of the admin API, in JSON.
    AdminOpenapi,
}

/// Print the part to standard output.
pub(crate) fn run(arguments: &ReferenceArguments, program: clap::Command) -> anyhow::Result<()> {
    let text = match arguments.part {
        Part::Configuration => config::reference(),
        Part::Errors => edge::error_reference(),
        Part::Metrics => edge::metrics_reference(),
        Part::CommandLine => command_line(program),
        Part::AdminOpenapi => format!("{:#}\n", admin::openapi("/")),
    };
    io::stdout().write_all(text.as_bytes()).context("failed to print the reference")
}

/// The help of the program and of every command, one section each.
fn command_line(mut program: clap::Command) -> String {
    // Fills in the names of commands and the arguments that all of them have.
    program.build();
    let mut text = String::new();
    add_help(&mut text, &mut program, "guesthouse");
    text
}

fn add_help(text: &mut String, command: &mut clap::Command, name: &str) {
    let help = command.render_long_help().to_string();
    let lines: Vec<_> = help.lines().map(str::trim_end).collect();
    writeln!(text, "## `{name}`\n\n```text\n{}\n```\n", lines.join("\n").trim_end())
        .expect("a string takes it");
    for inner in command.get_subcommands_mut() {
        if !inner.is_hide_set() && inner.get_name() != "help" {
            let name = format!("{name} {}", inner.get_name());
            add_help(text, inner, &name);
        }
    }
}
