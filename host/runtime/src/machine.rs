//! The processors and the memory that this process may use, by the limits of its control groups.
//!
//! A container sees the whole machine, but the kernel throttles it beyond its quota and kills it
//! beyond its memory limit. Defaults that depend on the machine use these values instead.

mod cgroup;

use std::path::Path;
use std::sync::LazyLock;

use self::cgroup::CgroupLimits;

static LIMITS: LazyLock<CgroupLimits> = LazyLock::new(|| CgroupLimits::read(Path::new("/")));

/// The number of threads that can run at the same time, at least one: the processors available to
/// the process or, if that is less, the whole processors of its quota.
pub fn cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(LIMITS.cpus.unwrap_or(usize::MAX)).max(1)
}

/// The memory in MiB, at least one: that of the machine or, if that is less, the limit of the
/// control groups. 8 GiB if the kernel reports neither.
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
