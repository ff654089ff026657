//! Measures the memory of this process with one instance and with many.
//!
//! The proportional set size divides each shared page among its mappings. Resident set sizes would
//! count the weights for every instance, whether they are shared or not.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::loaded::Loaded;

/// The proportional set size in KiB with one instance that has served, with `count` instances of
/// which the others are idle, and after all have served; and the linear memory of one, which each
/// would take if nothing were shared.
pub(crate) fn measure(version: &Loaded, count: u32) -> Result<Value> {
    let mut first = version.instantiate()?;
    version.ask(&mut first, 0)?;
    let with_one = proportional_kib()?;
    let others = (1..count).map(|_| version.instantiate());
    let mut others = others.collect::<Result<Vec<_>>>()?;
    let with_idle = proportional_kib()?;
    // Once each, and all with the same example.
    others.iter_mut().try_for_each(|instance| version.ask(instance, 0))?;
    let with_all = proportional_kib()?;
    Ok(json!({
        "instances": count,
        "with_one_kib": with_one,
        "with_idle_kib": with_idle,
        "with_all_kib": with_all,
        "linear_memory_kib": first.memory_bytes() >> 10,
    }))
}

fn proportional_kib() -> Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup");
    let rollup = rollup.context("failed to ask the kernel for this process's memory")?;
    find_pss(&rollup).context("the kernel does not say the proportional set size")
}

fn find_pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportional_set_size_is_parsed() {
        let rollup = "55d6-7ffc ---p 00000000 00:00 0    [rollup]\nRss:   5000 kB\n\
                      Pss_Dirty:   17 kB\nPss:            1234 kB\nPss_Anon:   99 kB\n";
        assert_eq!(find_pss(rollup), Some(1234));
        assert_eq!(find_pss("Rss: 5 kB"), None);
        assert!(proportional_kib().unwrap() > 0);
    }
}
