//! Memory between pages that nobody may touch.
#![expect(unsafe_code, reason = "pages are protected by system calls")]

use std::ptr;

/// The bytes of a page, or a multiple of them.
const PAGE: usize = 65536;

/// Numbers whose first or last one is a neighbour of a page that cannot be read or written.
pub(crate) struct Guarded<T> {
    map: *mut libc::c_void,
    bytes: usize,
    numbers: *mut T,
    length: usize,
}

impl<T: Copy> Guarded<T> {
    /// Copy numbers to the end of their pages, or to the beginning.
    pub(crate) fn new(numbers: &[T], at_end: bool) -> Self {
        let inner = size_of_val(numbers).next_multiple_of(PAGE).max(PAGE);
        let bytes = inner + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, of which the inner pages are made readable and writable.
        let map = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(map, libc::MAP_FAILED, "memory can be mapped");
        // SAFETY: the inner pages lie in the mapping.
        let start = unsafe {
            let start = map.byte_add(PAGE);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(start, inner, protection), 0, "pages can be unprotected");
            start
        };
        let offset = if at_end { inner - size_of_val(numbers) } else { 0 };
        // SAFETY: the numbers fit into the inner pages behind the offset, which is a multiple of
        // their size.
        let place = unsafe {
            let place = start.byte_add(offset).cast::<T>();
            ptr::copy_nonoverlapping(numbers.as_ptr(), place, numbers.len());
            place
        };
        Self { map, bytes, numbers: place, length: numbers.len() }
    }

    pub(crate) fn numbers(&self) -> &[T] {
        // SAFETY: the numbers were copied there, and the mapping lives as long as the value.
        unsafe { std::slice::from_raw_parts(self.numbers, self.length) }
    }

    pub(crate) fn numbers_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the value is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.numbers, self.length) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from the value, which owns the mapping.
        let result = unsafe { libc::munmap(self.map, self.bytes) };
        assert_eq!(result, 0, "a mapping can be removed");
    }
}
