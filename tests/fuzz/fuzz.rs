//! The fuzzer: libFuzzer around one of [`guesthouse_server::fuzzing::TARGETS`], named by the environment.
//!
//! Beside what the targets promise themselves, no input may take more memory than its target says.

#![no_main]
#![expect(unsafe_code, reason = "the fuzzer is in C++, and counting memory is an allocator's work")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use guesthouse_server::fuzzing::{FuzzTarget, TARGETS};
use libfuzzer_sys::fuzz_target;

/// Names the target.
const VARIABLE: &str = "GUESTHOUSE_FUZZ_TARGET";

static TARGET: LazyLock<&FuzzTarget> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("{VARIABLE} must name a target, and not {name:?}"))
});

fuzz_target!(|bytes: &[u8]| {
    let target = *TARGET;
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    (target.run)(bytes);
    let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let allowed = target.memory_bytes(bytes.len());
    assert!(taken <= allowed, "{} bytes took {taken} of memory, not {allowed}", bytes.len());
});

/// Bytes that are allocated now, and the most that were.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, and how much it has given.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all of it is the system's allocator's; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
