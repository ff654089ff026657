//! What this process may use of the machine: processors and memory, by the limits of its control
//! groups.
//!
//! A container sees the whole machine, but the kernel slows it down beyond its quota and ends it
//! beyond its memory. Defaults that follow the machine follow these instead.

mod cgroup;

use std::path::Path;
use std::sync::LazyLock;

use self::cgroup::Limits;

static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits::read(Path::new("/")));

/// Threads that can compute at the same time, at least one: the processors that the process may run
/// on or, if that is less, the whole processors of its quota.
pub fn cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(LIMITS.cpus.unwrap_or(usize::MAX)).max(1)
}

/// Memory in MiB, at least one: that of the machine or, if that is less, the limit of the process's
/// control groups. A guess of 8 GiB where the kernel says neither.
pub fn memory_mib() -> u64 {
    let limit = LIMITS.memory_bytes.map(|bytes| bytes >> 20);
    [machine_memory_mib(), limit].into_iter().flatten().min().unwrap_or(8192).max(1)
}

fn machine_memory_mib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes = total.trim().trim_end_matches(" kB").parse::<u64>().ok()?;
    Some(kibibytes >> 10)
}
