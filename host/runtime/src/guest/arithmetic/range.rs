//! Ranges of a guest's memory.

use wasmtime::{bail, format_err};

/// A range of the guest's memory, aligned to its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Range {
    /// The first byte.
    pub(super) start: usize,
    pub(super) bytes: usize,
}

impl Range {
    /// An operand that an operation does not have.
    pub(super) const EMPTY: Self = Self { start: 0, bytes: 0 };

    /// The range of a list with elements of so many bytes at an address of the memory.
    pub(super) fn new(
        address: u32,
        elements: u32,
        size: usize,
        memory: &[u8],
    ) -> wasmtime::Result<Self> {
        let (start, elements) = (usize::try_from(address)?, usize::try_from(elements)?);
        let bytes = elements.checked_mul(size);
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let Some(bytes) = bytes.filter(|_| end.is_some_and(|end| end <= memory.len())) else {
            bail!("a list is not within the memory")
        };
        if !start.is_multiple_of(size) {
            bail!("a list is not aligned")
        }
        Ok(Self { start, bytes })
    }

    /// The end of the range; it lies within the memory.
    pub(super) fn end(self) -> usize {
        self.start + self.bytes
    }

    /// The bytes in a memory.
    pub(super) fn within(self, memory: &[u8]) -> wasmtime::Result<&[u8]> {
        let bytes = memory.get(self.start..self.end());
        bytes.ok_or_else(|| format_err!("an operand is not within the memory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_outside_of_the_memory_or_unaligned_is_rejected() {
        let bytes = [0; 64];
        assert_eq!(Range::new(8, 14, 4, &bytes).unwrap(), Range { start: 8, bytes: 56 });
        assert_eq!(Range::new(64, 0, 4, &bytes).unwrap(), Range { start: 64, bytes: 0 });
        assert_eq!(Range::new(3, 8, 1, &bytes).unwrap(), Range { start: 3, bytes: 8 });
        for (address, elements) in [(8, 15), (68, 0), (2, 1), (0, u32::MAX), (u32::MAX - 3, 4)] {
            assert!(Range::new(address, elements, 4, &bytes).is_err(), "{address} {elements}");
        }
        for (address, elements) in [(3, 62), (65, 0), (u32::MAX, 1), (0, u32::MAX)] {
            assert!(Range::new(address, elements, 1, &bytes).is_err(), "{address} {elements}");
        }
    }
}
