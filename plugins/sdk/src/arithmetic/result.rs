//! Where the host puts lists that it passes to the guest.
//!
//! The host requests memory with `cabi_realloc`. It gets new memory, except for the result of an
//! operation, which is written to the tensor that waits for it.
#![expect(unsafe_code, reason = "the canonical ABI passes memory as pointers")]

use std::alloc::{Layout, alloc, handle_alloc_error, realloc};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The memory that waits for a result of this layout; null if none does.
static TARGET: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static TARGET_BYTES: AtomicUsize = AtomicUsize::new(0);
static TARGET_ALIGN: AtomicUsize = AtomicUsize::new(0);

/// Give the host this memory when it requests so many elements for the next time.
///
/// # Safety
/// The memory is valid for writes of so many elements until [`take_back`], and until then the host is
/// called once, for a list of elements of this size and alignment.
pub(super) unsafe fn redirect<E>(target: *mut E, elements: usize) {
    TARGET_BYTES.store(elements * size_of::<E>(), Ordering::Relaxed);
    TARGET_ALIGN.store(align_of::<E>(), Ordering::Relaxed);
    TARGET.store(target.cast(), Ordering::Relaxed);
}

/// Give the host new memory again.
pub(super) fn take_back() {
    TARGET.store(ptr::null_mut(), Ordering::Relaxed);
}

/// The allocator of the canonical ABI: new memory, or more of it.
///
/// # Safety
/// As the canonical ABI has it: without `old_bytes`, `old` is ignored; otherwise both describe memory
/// from here with the same alignment, which is a power of two.
#[unsafe(no_mangle)]
unsafe extern "C" fn cabi_realloc(
    old: *mut u8,
    old_bytes: usize,
    align: usize,
    bytes: usize,
) -> *mut u8 {
    let target = TARGET.load(Ordering::Relaxed);
    if !target.is_null()
        && old_bytes == 0
        && align == TARGET_ALIGN.load(Ordering::Relaxed)
        && bytes == TARGET_BYTES.load(Ordering::Relaxed)
    {
        take_back();
        return target;
    }
    if old_bytes == 0 && bytes == 0 {
        return ptr::without_provenance_mut(align);
    }
    // SAFETY: the caller's promises; sizes are those of lists in 32-bit memory, and not 0.
    let (memory, layout) = unsafe {
        let layout = Layout::from_size_align_unchecked(old_bytes.max(bytes), align);
        if old_bytes == 0 {
            (alloc(layout), layout)
        } else {
            let old_layout = Layout::from_size_align_unchecked(old_bytes, align);
            (realloc(old, old_layout, bytes), layout)
        }
    };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
