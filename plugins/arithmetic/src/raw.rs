//! Calls the import `unary` with lists that safe bindings would never pass.
#![expect(unsafe_code, reason = "passing invalid lists to the host is what it is for")]

use std::arch::wasm32::memory_size;

/// The number of the activation `square`.
const SQUARE: i32 = 15;

/// The bytes of a page of memory.
const PAGE_BYTES: usize = 1 << 16;

#[link(wasm_import_module = "guesthouse:model/arithmetic@0.2.2")]
unsafe extern "C" {
    /// The activation with its two values, scale, shift, the list, and where to write the result's
    /// address and length.
    #[link_name = "unary"]
    fn unary(
        activation: i32,
        first: f32,
        second: f32,
        scale: f32,
        shift: f32,
        address: usize,
        elements: usize,
        result: *mut usize,
    );
}

/// Squares the elements of a list that need not exist. Returns the length of the result.
pub(crate) fn square(address: usize, elements: usize) -> Vec<u32> {
    let mut result = [0_usize; 2];
    // SAFETY: the host reads the list, which may be invalid, and writes only to what it has
    // allocated and to `result`.
    unsafe { unary(SQUARE, 0.0, 0.0, 1.0, 0.0, address, elements, result.as_mut_ptr()) };
    vec![u32::try_from(result[1]).unwrap_or(u32::MAX)]
}

/// Squares a list that begins so many bytes before the end of the memory.
pub(crate) fn square_at_end(bytes: usize, elements: usize) -> Vec<u32> {
    square((memory_size(0) * PAGE_BYTES).wrapping_sub(bytes), elements)
}

/// Squares a list that has been freed, so that its memory may be allocated for the result.
pub(crate) fn square_freed(elements: usize) -> Vec<u32> {
    let list = vec![0_u32; elements];
    let address = list.as_ptr().addr();
    drop(std::hint::black_box(list));
    square(address, elements)
}
