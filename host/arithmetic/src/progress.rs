//! When to ask whether to stop.

use crate::{Backend, Stopped};

/// Counts work, and asks about every 0.4 ms whether to stop.
pub(crate) struct Progress<'a> {
    stopped: &'a mut dyn FnMut() -> bool,
    /// The work that is left until the next question.
    left: usize,
    /// The work between questions.
    interval: usize,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(backend: Backend, stopped: &'a mut dyn FnMut() -> bool) -> Self {
        // Without instructions for it, a multiplication with addition takes several nanoseconds;
        // vectors do at least ten in one. Asking takes 50 ns, so it is done eight times as often as
        // that would need: memory that is touched for the first time, and sums too short for whole
        // vectors, take several times as long.
        let interval = match backend {
            Backend::Scalar => 25_000,
            Backend::Simd128 | Backend::Neon => 250_000,
            Backend::Avx2 | Backend::Avx512 => 500_000,
        };
        Self { stopped, left: interval, interval }
    }

    /// Count work, in multiplications or in what takes as long.
    #[inline]
    pub(crate) fn spend(&mut self, work: usize) -> Result<(), Stopped> {
        if let Some(left) = self.left.checked_sub(work) {
            self.left = left;
            return Ok(());
        }
        self.left = self.interval;
        if (self.stopped)() { Err(Stopped) } else { Ok(()) }
    }
}
