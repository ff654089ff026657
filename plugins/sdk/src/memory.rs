//! The allocator of guests, which separates the memory of `init` from that of calls.
//!
//! `init` parses and optimises a model and leaves free blocks in thousands of places between those
//! in use. If calls reused these blocks, they would write to most pages of the snapshot, and every
//! written page costs the instance a page fault, unshared memory, and a page to release. So after
//! `init`, memory is allocated behind all existing memory, and calls reuse the same few pages. (A
//! small CNN: 378 pages per call before, 309 after.)
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

/// The size of a WebAssembly page, in bytes.
const PAGE_BYTES: usize = 64 << 10;

/// The memory that is reserved for calls in advance, so that instances need not grow in small
/// steps. It costs nothing until it is written to.
const FIRST_BYTES: usize = 4 << 20;

/// Blocks of at least this size are zeroed when `init` frees them, such as a model's file and weights
/// that are packed by now: what is not zero is part of the snapshot, although nothing reads it.
const ZEROED_BYTES: usize = 16 << 10;

/// Allocate separately from now on, after `init`.
pub(crate) fn begin_serving() {
    MEMORY.serving_from.store(memory_size(0) * PAGE_BYTES, Ordering::Relaxed);
    drop(Vec::<u8>::with_capacity(FIRST_BYTES));
}

struct Memory {
    /// The first address after the memory of `init`; 0 while it runs.
    serving_from: AtomicUsize,
    serving: UnsafeCell<Dlmalloc>,
}

// SAFETY: a guest has one thread.
unsafe impl Sync for Memory {}

impl Memory {
    fn is_serving(&self) -> bool {
        self.serving_from.load(Ordering::Relaxed) != 0
    }

    /// Whether the block was allocated after `init`, behind all earlier memory.
    fn is_call_memory(&self, memory: *mut u8) -> bool {
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

// SAFETY: the address of a block identifies its allocator, to which it is returned; both allocators
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
        if self.is_call_memory(memory) {
            // SAFETY: it came from there, and as promised to this function.
            unsafe { self.serving().free(memory, layout.size(), layout.align()) }
        } else {
            if !self.is_serving() && layout.size() >= ZEROED_BYTES {
                // SAFETY: the caller gives the whole block back, so that nothing else refers to it.
                unsafe { memory.write_bytes(0, layout.size()) };
            }
            // SAFETY: it came from there, and as promised to this function.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        if self.is_call_memory(memory) {
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
