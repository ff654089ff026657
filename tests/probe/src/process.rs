//! Helper processes for benchmarks: a busy neighbour, and a child that does not outlive its parent.

use std::ffi::OsString;
use std::hint::black_box;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

/// The iterations between two checks of the clock: less than a millisecond.
const TURNS: u32 = 100_000;

/// Keeps one core busy without touching memory, at the priority of this process.
pub(crate) fn spin(seconds: u64) -> Result<()> {
    end_with_parent()?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut turns = 0_u64;
    while Instant::now() < end {
        for _ in 0..TURNS {
            turns = black_box(turns.wrapping_add(1));
        }
    }
    Ok(())
}

/// Executes another program. A benchmark that is killed cannot stop what it has started.
pub(crate) fn become_other(command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("there is no program to become")?;
    end_with_parent()?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("failed to become {}", program.display()))
}

fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("failed to follow the parent")
}
