//! Restricts the cores of a child: to half of them while requests are served, otherwise not at all.
//!
//! A low priority is not enough: while every core is busy, even with idle-priority work, the kernel
//! leaves two serving threads on one core for some milliseconds before it moves one of them. A free
//! core gives it a place to move to.

use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// How often the restriction is updated.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// The core restriction of one child. If the system denies it, the child uses all cores.
pub(super) struct CoreLimit {
    child: u32,
    all: Vec<usize>,
    is_restricted: bool,
}

impl CoreLimit {
    /// Create the restriction of the child with this process id.
    pub(super) fn new(child: u32) -> Self {
        let mine = sched_getaffinity(None).unwrap_or_default();
        let all = (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core)).collect();
        Self { child, all, is_restricted: false }
    }

    /// Restrict the child or release it. While it is restricted, this also applies to threads that
    /// it has started since the last call.
    pub(super) fn apply(&mut self, restrict: bool) {
        if !restrict && !self.is_restricted {
            return;
        }
        self.is_restricted = restrict;
        let mut cores = CpuSet::new();
        share(&self.all, restrict).iter().for_each(|core| cores.set(*core));
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.child)) else { return };
        for thread in threads.flatten() {
            let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
            // The thread may have ended, or the system may deny it.
            let _ = number
                .and_then(Pid::from_raw)
                .map(|thread| sched_setaffinity(Some(thread), &cores));
        }
    }
}

/// Half of the cores, but at least one: the last ones, because the kernel fills them from the
/// first.
fn share(all: &[usize], restrict: bool) -> &[usize] {
    let left = if restrict { all.len() / 2 } else { 0 };
    &all[left..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restricted_child_has_half_of_the_cores_at_least_one() {
        assert_eq!(share(&[3], true), [3]);
        assert_eq!(share(&[0, 1], true), [1]);
        assert_eq!(share(&[0, 1, 4], true), [1, 4]);
        assert_eq!(share(&[0, 1, 2, 3], true), [2, 3]);
        assert_eq!(share(&[0, 1, 2, 3], false), [0, 1, 2, 3]);
    }

    #[test]
    fn a_process_is_restricted_and_released() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut limit = CoreLimit::new(child.id());
        let cores = |limit: &CoreLimit| {
            let child = i32::try_from(limit.child).ok().and_then(Pid::from_raw);
            sched_getaffinity(child).unwrap().count() as usize
        };
        let all = limit.all.len();
        limit.apply(true);
        assert_eq!(cores(&limit), all - all / 2);
        limit.apply(false);
        assert_eq!(cores(&limit), all);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
