//! When each version was live, as far as the client that swapped them can tell.
//!
//! A version may become live at any time after its request was sent, and may serve until the
//! response to the request that replaced it has arrived. A response is wrong only if its version
//! was live at no moment between sending and receiving.

use std::collections::BTreeMap;

use semver::Version;

use crate::bench::trace::Record;

/// A time in which a version may have been live, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: u64,
    until: u64,
}

/// Which versions were live when.
#[derive(Debug)]
pub(super) struct Timeline {
    /// The spans of each version; both ends are in ascending order.
    spans: BTreeMap<String, Vec<Span>>,
    live: String,
}

impl Timeline {
    /// Starts with a version that has always been live.
    pub(super) fn new(version: &Version) -> Self {
        let (live, span) = (version.to_string(), Span { from: 0, until: u64::MAX });
        Self { spans: [(live.clone(), vec![span])].into(), live }
    }

    /// Another version became live between these times.
    pub(super) fn swap(&mut self, version: &Version, sent: u64, answered: u64) {
        let version = version.to_string();
        if version == self.live {
            return;
        }
        if let Some(last) = self.spans.get_mut(&self.live).and_then(|spans| spans.last_mut()) {
            last.until = answered;
        }
        let span = Span { from: sent, until: u64::MAX };
        self.spans.entry(version.clone()).or_default().push(span);
        self.live = version;
    }

    /// Whether a response can be correct: its version may have been live while the request was in
    /// progress. A failed request needs no version.
    pub(super) fn allows(&self, record: &Record) -> bool {
        let Some(version) = &record.version else {
            return !record.is_success;
        };
        let spans = self.spans.get(version).map_or(&[][..], Vec::as_slice);
        // The first span that had not ended when the request was sent; later ones start later.
        let first = spans.partition_point(|span| span.until < record.sent);
        spans.get(first).is_some_and(|span| span.from <= record.answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1.0.0 until 10..20, then 2.0.0 until 30..40, then 1.0.0 again.
    fn timeline() -> Timeline {
        let version = |major| Version::new(major, 0, 0);
        let mut timeline = Timeline::new(&version(1));
        timeline.swap(&version(2), 10, 20);
        timeline.swap(&version(2), 22, 24);
        timeline.swap(&version(1), 30, 40);
        timeline
    }

    fn allows(version: Option<&str>, sent: u64, answered: u64) -> bool {
        let version = version.map(str::to_owned);
        timeline().allows(&Record { sent, answered, is_success: true, version })
    }

    #[test]
    fn a_response_of_a_possibly_live_version_is_allowed() {
        for (version, sent, answered) in [
            ("1.0.0", 1, 5),
            // Sent before the swap was complete.
            ("1.0.0", 20, 25),
            // Received after the swap had begun.
            ("2.0.0", 5, 10),
            ("2.0.0", 21, 25),
            ("2.0.0", 40, 90),
            ("1.0.0", 25, 30),
            ("1.0.0", 50, 60),
            // Slow enough that the version was live again.
            ("1.0.0", 21, 60),
        ] {
            assert!(allows(Some(version), sent, answered), "{version} {sent} {answered}");
        }
    }

    #[test]
    fn a_response_outside_the_live_span_is_not_allowed() {
        for (version, sent, answered) in
            [("2.0.0", 1, 9), ("1.0.0", 21, 29), ("2.0.0", 41, 50), ("3.0.0", 1, 50)]
        {
            assert!(!allows(Some(version), sent, answered), "{version} {sent} {answered}");
        }
    }

    #[test]
    fn a_success_without_a_version_is_not_allowed() {
        assert!(!allows(None, 1, 2));
        let failed = Record { sent: 1, answered: 2, is_success: false, version: None };
        assert!(timeline().allows(&failed));
    }
}
