//! Where a guest's memory comes from: what `init` leaves and what `predict` takes lie apart.
//!
//! `init` parses and optimises a model and leaves free memory in thousands of places between what it
//! keeps. An allocator that filled those places again would make each call write to most of the
//! pages of the snapshot, and every page that an instance writes to is one that it has for itself:
//! a page fault when it is first written, a page to take back when the instance goes, and memory that
//! is not shared. So from the end of `init` on, memory comes from behind all that is there, and a
//! call uses the same few pages over and over. (A small CNN: 378 pages a call before, 309 after.)
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::wasm32::memory_size;
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use dlmalloc::Dlmalloc;

#[global_allocator]
static MEMORY: Memory =
    Memory { serving_from: AtomicUsize::new(0), serving: UnsafeCell::new(Dlmalloc::new()) };

/// Bytes in a page of WebAssembly's.
const PAGE_BYTES: usize = 64 << 10;

/// Memory that every instance has for its calls from the start, so that it need not ask for it
/// piece by piece. Costs nothing until it is written to.
const FIRST_BYTES: usize = 4 << 20;

/// `init` is over, and what follows are calls.
pub(crate) fn begin_serving() {
    MEMORY.serving_from.store(memory_size(0) * PAGE_BYTES, Ordering::Relaxed);
    drop(Vec::<u8>::with_capacity(FIRST_BYTES));
}

struct Memory {
    /// The first address that is not of `init`; 0 while it runs.
    serving_from: AtomicUsize,
    serving: UnsafeCell<Dlmalloc>,
}

// SAFETY: a guest has one thread.
unsafe impl Sync for Memory {}

impl Memory {
    fn is_serving(&self) -> bool {
        self.serving_from.load(Ordering::Relaxed) != 0
    }

    /// Whether this memory was taken since `init` was over: then it lies behind all that was there.
    fn is_of_calls(&self, memory: *mut u8) -> bool {
        self.is_serving() && memory.addr() >= self.serving_from.load(Ordering::Relaxed)
    }

    /// # Safety
    /// The reference must be gone before the next one is taken: only for one call of the allocator,
    /// which calls nothing of this crate.
    #[expect(clippy::mut_from_ref, reason = "one thread, and one at a time")]
    unsafe fn serving(&self) -> &mut Dlmalloc {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.serving.get() }
    }
}

// SAFETY: each block goes back to the allocator that it is from, which the address tells; both
// keep the trait's promises.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_serving() {
            // SAFETY: as promised to this function.
            unsafe { self.serving().malloc(layout.size(), layout.align()) }
        } else {
            // SAFETY: as promised to this function.
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.is_serving() {
            // SAFETY: as promised to this function.
            unsafe { self.serving().calloc(layout.size(), layout.align()) }
        } else {
            // SAFETY: as promised to this function.
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if self.is_of_calls(memory) {
            // SAFETY: it came from there, and as promised to this function.
            unsafe { self.serving().free(memory, layout.size(), layout.align()) }
        } else {
            // SAFETY: it came from there, and as promised to this function.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        if self.is_of_calls(memory) {
            // SAFETY: it came from there, and as promised to this function.
            return unsafe { self.serving().realloc(memory, size, align, new_size) };
        }
        if !self.is_serving() {
            // SAFETY: it came from there, and as promised to this function.
            return unsafe { System.realloc(memory, layout, new_size) };
        }
        // SAFETY: as promised to this function; both blocks are as large as what is copied, and do
        // not overlap, because both are in use.
        unsafe {
            let moved = self.serving().malloc(new_size, align);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(memory, moved, size.min(new_size));
                System.dealloc(memory, layout);
            }
            moved
        }
    }
}
