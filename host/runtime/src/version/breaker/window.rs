//! A counter of recent events.

use std::time::{Duration, Instant};

/// The shortest time that an event counts; the longest is twice this.
const HALF: Duration = Duration::from_secs(15);

/// After this time without an event, the count is 0.
pub(super) const WINDOW: Duration = HALF.saturating_mul(2);

/// Counts the events of the current and of the previous half of the window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recent {
    begun: Instant,
    current: u32,
    previous: u32,
}

impl Recent {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, current: 0, previous: 0 }
    }

    pub(super) fn add(&mut self, now: Instant) {
        let halves = self.halves_passed(now);
        if halves > 0 {
            self.previous = if halves == 1 { self.current } else { 0 };
            self.current = 0;
            self.begun = now;
        }
        self.current = self.current.saturating_add(1);
    }

    pub(super) fn total(&self, now: Instant) -> u32 {
        match self.halves_passed(now) {
            0 => self.current.saturating_add(self.previous),
            1 => self.current,
            _ => 0,
        }
    }

    fn halves_passed(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs() / HALF.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_count_for_half_a_window_to_a_whole_one() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        (0..3).for_each(|_| recent.add(start));
        assert_eq!(recent.total(start + HALF), 3);
        assert_eq!(recent.total(start + WINDOW), 0);
        recent.add(start + HALF);
        assert_eq!(recent.total(start + HALF), 4);
        assert_eq!(recent.total(start + WINDOW), 1);
        recent.add(start + 20 * WINDOW);
        assert_eq!(recent.total(start + 20 * WINDOW), 1);
    }
}
