//! Measurements of the process, under the names that Prometheus clients of all languages use.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};

use super::families::{self, Family};
use super::write;

/// A reading of `/proc`. A value that cannot be read has no series.
#[derive(Debug)]
pub(super) struct Process {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident_bytes: Option<i64>,
    virtual_bytes: Option<i64>,
    threads: Option<i64>,
    open_files: Option<i64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let number = |place: usize| field(&stat, place).and_then(|text| text.parse::<f64>().ok());
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
        let boot = boot.and_then(|seconds| seconds.trim().parse::<f64>().ok());
        let whole = |place: usize| field(&stat, place).and_then(|text| text.parse::<i64>().ok());
        let page = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let files = fs::read_dir("/proc/self/fd").ok();
        Self {
            cpu_seconds: number(14).zip(number(15)).map(|(user, system)| (user + system) / ticks),
            start_seconds: boot.zip(number(22)).map(|(boot, start)| boot + start / ticks),
            resident_bytes: whole(24).map(|pages| pages.saturating_mul(page)),
            virtual_bytes: whole(23),
            threads: whole(20),
            // Without the one that is open for reading this folder.
            open_files: files
                .and_then(|files| i64::try_from(files.count()).ok())
                .map(|count| count - 1),
        }
    }
}

/// A field of `/proc/self/stat`, counted from 1. The second one, in brackets, is the name of the program
/// and may contain anything.
fn field(stat: &str, place: usize) -> Option<&str> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(place.checked_sub(3)?)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let cpu = self.cpu_seconds.map(|value| (vec![], ConstCounter::new(value)));
        write(encoder, &families::PROCESS_CPU, cpu)?;
        let start = self.start_seconds.map(|value| (vec![], ConstGauge::new(value)));
        write(encoder, &families::PROCESS_START_TIME, start)?;
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.and_then(|files| i64::try_from(files).ok());
        let gauges: [(&Family, _); 5] = [
            (&families::PROCESS_RESIDENT_MEMORY, self.resident_bytes),
            (&families::PROCESS_VIRTUAL_MEMORY, self.virtual_bytes),
            (&families::PROCESS_THREADS, self.threads),
            (&families::PROCESS_OPEN_FDS, self.open_files),
            (&families::PROCESS_MAX_FDS, limit),
        ];
        for (family, value) in gauges {
            write(encoder, family, value.map(|value| (vec![], ConstGauge::new(value))))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_may_contain_brackets() {
        let stat = "7 (a) b c) S 1 2";
        assert_eq!((field(stat, 3), field(stat, 4), field(stat, 9)), (Some("S"), Some("1"), None));
    }

    #[test]
    fn every_value_of_this_process_is_read() {
        let process = Process::read();
        assert!(process.resident_bytes > Some(1 << 20) && process.open_files >= Some(3));
        assert!(process.start_seconds > Some(1.6e9) && process.cpu_seconds >= Some(0.0));
        assert!(process.threads >= Some(1) && process.virtual_bytes >= process.resident_bytes);
    }
}
