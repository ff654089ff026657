//! An operation on a guest's memory, from the lists that the guest passes to the list that it gets.
//!
//! wasmtime's own `WasmList<u32>` would borrow the operands as well, but counts their bytes against
//! the limit of what a guest may make the host allocate, and its results are copied. So the lists
//! have types of their own: [`Operand`] is a checked range of the guest's memory, and
//! [`Computation`] is a result that is computed while it is lowered, into the memory that the guest
//! has just allocated for it. The host allocates nothing.
//!
//! Ranges are only ever used as indexes of slices, and the slice of the memory is split around the
//! result before the operands are cut out of the rest, so this is safe whatever the guest passes: an
//! address beyond the memory, or a result on top of an operand, fails the call.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

use guesthouse_arithmetic::Backend;
use wasmtime::component::__internal::{
    CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext, LowerContext,
};
use wasmtime::component::{ComponentType, Lift, Lower};
use wasmtime::{Trap, ValRaw, bail, format_err};

use super::idle_cores::{IdleCores, Share};
use super::operation::DescribedOperation;
use super::range::Range;
use super::usage::{ArithmeticUsage, Function};
use crate::guest::stop::StopSignal;

/// A list in the guest's memory, by the type of its elements in the contract: u32 for the bits of
/// floating-point numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand<E> {
    range: Range,
    elements: PhantomData<E>,
}

impl<E> From<Operand<E>> for Range {
    fn from(operand: Operand<E>) -> Self {
        operand.range
    }
}

// SAFETY: the type and its lowered form, a pair of an address and a length, are those of a slice,
// for which wasmtime implements the trait and checks the component's type.
#[expect(unsafe_code, reason = "wasmtime's trait for the types of parameters is unsafe")]
unsafe impl<E: ComponentType> ComponentType for Operand<E> {
    type Lower = <[E] as ComponentType>::Lower;

    const ABI: CanonicalAbiInfo = CanonicalAbiInfo::POINTER_PAIR;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <[E] as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: any bits of the lowered form are accepted; those that are no list in the memory fail.
#[expect(unsafe_code, reason = "wasmtime's trait for parameters is unsafe")]
unsafe impl<E: ComponentType> Lift for Operand<E> {
    fn linear_lift_from_flat(
        context: &mut LiftContext<'_>,
        _ty: InterfaceType,
        [address, elements]: &Self::Lower,
    ) -> wasmtime::Result<Self> {
        let (address, elements) = (address.get_u32(), elements.get_u32());
        let range = Range::new(address, elements, size_of::<E>(), context.memory())?;
        Ok(Self { range, elements: PhantomData })
    }

    fn linear_lift_from_memory(
        context: &mut LiftContext<'_>,
        _ty: InterfaceType,
        bytes: &[u8],
    ) -> wasmtime::Result<Self> {
        let Some(([address, elements], [])) = bytes.as_chunks().0.split_first_chunk() else {
            bail!("a list is an address and a length")
        };
        let (address, elements) = (u32::from_le_bytes(*address), u32::from_le_bytes(*elements));
        let range = Range::new(address, elements, size_of::<E>(), context.memory())?;
        Ok(Self { range, elements: PhantomData })
    }
}

/// What a version that is granted arithmetic needs for a call.
pub(in crate::guest) struct Permit {
    pub(in crate::guest) backend: Backend,
    /// When to stop; never before a snapshot, where the process has a limit of its own.
    pub(in crate::guest) stop: Option<StopSignal>,
    /// The limit of the instance's memory.
    pub(in crate::guest) memory_bytes: usize,
    pub(in crate::guest) usage: Arc<ArithmeticUsage>,
    /// The cores that may help; none before a snapshot.
    pub(in crate::guest) cores: Option<(Arc<IdleCores>, Arc<Share>)>,
}

/// The result does not fit into any memory that the instance may have.
#[derive(Debug, thiserror::Error)]
#[error("the result of an operation is larger than the instance's memory may be")]
pub(in crate::guest) struct ResultTooLarge;

/// The result of an operation, a list with elements of this type, which is computed when it is
/// lowered.
pub(super) struct Computation<E> {
    function: Function,
    operation: DescribedOperation,
    permit: Permit,
    elements: PhantomData<E>,
}

impl<E: ComponentType> Computation<E> {
    pub(super) fn new(function: Function, operation: DescribedOperation, permit: Permit) -> Self {
        Self { function, operation, permit, elements: PhantomData }
    }

    /// Compute the result. Returns its address and its length in elements.
    fn compute<T>(&self, context: &mut LowerContext<'_, T>) -> wasmtime::Result<(u32, u32)> {
        let begin = Instant::now();
        let memory = context.as_slice_mut();
        let elements = self.operation.check(|range| range.within(memory))?.output_len();
        let bytes = elements.checked_mul(size_of::<E>());
        let bytes = bytes.filter(|bytes| *bytes <= self.permit.memory_bytes);
        let bytes = bytes.ok_or(ResultTooLarge)?;
        let start = context.realloc(0, 0, <[E] as ComponentType>::ALIGN32, bytes)?;
        if !start.is_multiple_of(size_of::<E>()) {
            bail!("the result of an operation is not aligned")
        }
        let memory = SplitMemory::new(context.as_slice_mut(), start, bytes)?;
        let outcome = self.execute(memory);
        self.permit.usage.add(self.function, begin.elapsed());
        outcome?;
        Ok((u32::try_from(start)?, u32::try_from(elements)?))
    }

    fn execute(&self, memory: SplitMemory<'_>) -> wasmtime::Result<()> {
        let SplitMemory { output, rest } = memory;
        // Checked again, because the guest's allocator has run.
        let call = self.operation.check(|range| rest.operand(range))?;
        if output.len() != call.output_bytes() {
            bail!("the length of an operation's result has changed")
        }
        let stop = self.permit.stop.as_ref();
        let is_stopped = || stop.is_some_and(|stop| stop.reason(Instant::now()).is_some());
        let backend = self.permit.backend;
        let outcome = match &self.permit.cores {
            Some((cores, share)) => cores.execute(share, &call, (backend, output), &is_stopped),
            None => call.execute(backend, output, &mut || is_stopped()),
        };
        // As if the guest had been interrupted while it computed this itself.
        outcome.map_err(|_stopped| Trap::Interrupt.into())
    }
}

// SAFETY: as for an operand.
#[expect(unsafe_code, reason = "wasmtime's trait for the types of results is unsafe")]
unsafe impl<E: ComponentType> ComponentType for Computation<E> {
    type Lower = <[E] as ComponentType>::Lower;

    const ABI: CanonicalAbiInfo = CanonicalAbiInfo::POINTER_PAIR;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <[E] as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: both functions write the whole of the lowered form, an address and a length, before they
// return `Ok`.
#[expect(unsafe_code, reason = "wasmtime's trait for results is unsafe")]
unsafe impl<E: ComponentType> Lower for Computation<E> {
    fn linear_lower_to_flat<T>(
        &self,
        context: &mut LowerContext<'_, T>,
        _ty: InterfaceType,
        lowered: &mut MaybeUninit<Self::Lower>,
    ) -> wasmtime::Result<()> {
        let (address, elements) = self.compute(context)?;
        lowered.write([ValRaw::u32(address), ValRaw::u32(elements)]);
        Ok(())
    }

    fn linear_lower_to_memory<T>(
        &self,
        context: &mut LowerContext<'_, T>,
        _ty: InterfaceType,
        offset: usize,
    ) -> wasmtime::Result<()> {
        let (address, elements) = self.compute(context)?;
        *context.get(offset) = address.to_le_bytes();
        *context.get(offset + size_of::<u32>()) = elements.to_le_bytes();
        Ok(())
    }
}

/// A guest's memory, split into the range of a result and the rest.
struct SplitMemory<'a> {
    output: &'a mut [u8],
    rest: RestOfMemory<'a>,
}

/// What lies around the range of a result.
struct RestOfMemory<'a> {
    before: &'a [u8],
    after: &'a [u8],
    /// The address of `after`.
    end: usize,
}

impl<'a> SplitMemory<'a> {
    /// Split a memory around so many bytes at an address.
    fn new(memory: &'a mut [u8], start: usize, bytes: usize) -> wasmtime::Result<Self> {
        let outside = || format_err!("the result of an operation is not within the memory");
        let (before, from_start) = memory.split_at_mut_checked(start).ok_or_else(outside)?;
        let (output, after) = from_start.split_at_mut_checked(bytes).ok_or_else(outside)?;
        Ok(Self { output, rest: RestOfMemory { before, after, end: start + bytes } })
    }
}

impl<'a> RestOfMemory<'a> {
    /// The bytes of an operand that does not overlap with the result.
    fn operand(&self, operand: Range) -> wasmtime::Result<&'a [u8]> {
        if operand.bytes == 0 {
            return Ok(&[]);
        }
        let bytes = match operand.start.checked_sub(self.end) {
            Some(start) => self.after.get(start..operand.end() - self.end),
            None => self.before.get(operand.start..operand.end()),
        };
        bytes.ok_or_else(|| format_err!("an operand overlaps with the result"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory that is aligned like a guest's.
    fn memory() -> Vec<u64> {
        (0..8).collect()
    }

    fn words(start: usize, elements: usize) -> Range {
        Range { start, bytes: elements * 4 }
    }

    #[test]
    fn an_operand_beside_the_result_is_found() {
        let mut memory = memory();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        let before = bytes[..16].to_vec();
        let after = bytes[32..].to_vec();
        let split = SplitMemory::new(bytes, 16, 16).unwrap();
        let found = |start, elements| split.rest.operand(words(start, elements)).unwrap();
        assert_eq!(found(0, 4), before);
        assert_eq!(found(32, 8), after);
        assert!(found(20, 0).is_empty());
    }

    #[test]
    fn an_operand_that_overlaps_with_the_result_is_rejected() {
        let mut memory = memory();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        let split = SplitMemory::new(bytes, 16, 16).unwrap();
        for (start, elements) in [(12, 2), (16, 1), (20, 1), (28, 1), (28, 2), (0, 16), (60, 2)] {
            let found = split.rest.operand(words(start, elements));
            assert!(found.is_err(), "{start} {elements}");
        }
    }

    #[test]
    fn a_result_outside_of_the_memory_is_rejected() {
        let mut bytes = [0; 64];
        for (start, length) in [(64, 4), (60, 8), (usize::MAX, 4), (0, usize::MAX)] {
            assert!(SplitMemory::new(&mut bytes, start, length).is_err(), "{start} {length}");
        }
    }
}
