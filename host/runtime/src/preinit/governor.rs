//! Which cores a child may use: all of them while nobody is served, half of them while somebody is.
//!
//! Giving way to whoever wakes up is not enough: where every core is busy, even with work of idle
//! priority, the kernel leaves two threads that serve on one core for some milliseconds before it
//! moves one of them. A core that is free of it is where they go.

use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// How soon a change is noticed.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// Keeps one child to its cores. Where the machine does not allow it, the child has all of them.
pub(super) struct Governor {
    child: u32,
    all: Vec<usize>,
    is_held_back: bool,
}

impl Governor {
    /// For the child process of that number.
    pub(super) fn new(child: u32) -> Self {
        let mine = sched_getaffinity(None).unwrap_or_default();
        let all = (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core)).collect();
        Self { child, all, is_held_back: false }
    }

    /// Hold the child back or let it go. While it is held back, threads that it has started since
    /// are, too.
    pub(super) fn govern(&mut self, hold_back: bool) {
        if !hold_back && !self.is_held_back {
            return;
        }
        self.is_held_back = hold_back;
        let mut cores = CpuSet::new();
        share(&self.all, hold_back).iter().for_each(|core| cores.set(*core));
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.child)) else { return };
        for thread in threads.flatten() {
            let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
            // One that has ended, or a machine that does not allow it.
            let _ = number
                .and_then(Pid::from_raw)
                .map(|thread| sched_setaffinity(Some(thread), &cores));
        }
    }
}

/// Half of the cores, but at least one; the last ones, as the kernel fills them from the first.
fn share(all: &[usize], hold_back: bool) -> &[usize] {
    let left = if hold_back { all.len() / 2 } else { 0 };
    &all[left..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_is_held_back_has_half_of_the_cores_but_at_least_one() {
        assert_eq!(share(&[3], true), [3]);
        assert_eq!(share(&[0, 1], true), [1]);
        assert_eq!(share(&[0, 1, 4], true), [1, 4]);
        assert_eq!(share(&[0, 1, 2, 3], true), [2, 3]);
        assert_eq!(share(&[0, 1, 2, 3], false), [0, 1, 2, 3]);
    }

    #[test]
    fn a_process_is_held_back_and_let_go() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut governor = Governor::new(child.id());
        let cores = |governor: &Governor| {
            let child = i32::try_from(governor.child).ok().and_then(Pid::from_raw);
            sched_getaffinity(child).unwrap().count() as usize
        };
        let all = governor.all.len();
        governor.govern(true);
        assert_eq!(cores(&governor), all - all / 2);
        governor.govern(false);
        assert_eq!(cores(&governor), all);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
