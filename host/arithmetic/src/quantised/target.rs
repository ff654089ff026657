//! What follows sums of products: they become u8 or f32 and are stored.

use super::Requantisation;
use super::simd::{IntegerSimd, Numbers};
use crate::Tail;
use crate::functions::{ShortTail, apply_tail};
use crate::simd::Simd;

/// The elements of an output, and how numbers become elements.
pub(crate) trait Target: Copy {
    /// The type of the elements.
    type Element: Copy + Default;

    /// Store the first elements of `sums * multiplier + bias`, to an address and as many as given.
    ///
    /// # Safety
    /// So many elements as `place` says, at most the lanes, can be written to its address.
    #[expect(unsafe_code, reason = "it writes to a pointer")]
    unsafe fn store<I: IntegerSimd>(
        self,
        simd: I,
        place: (*mut Self::Element, usize),
        sums: I::Integers,
        factors: [Numbers<I>; 2],
    );

    /// Do what follows the sums of rows at the given distance from each other, which are stored.
    fn follow<I: IntegerSimd>(
        self,
        simd: I,
        values: &mut [Self::Element],
        stride: usize,
        size: [usize; 2],
    );
}

/// A u8 output.
#[derive(Clone, Copy)]
pub(crate) struct ToU8 {
    clip: [f32; 2],
    zero_point: i32,
}

impl ToU8 {
    pub(crate) fn new(output: Requantisation) -> Self {
        let zero_point = f32::from(output.zero_point);
        Self {
            clip: [output.least, output.greatest].map(|bound| f32::from(bound) - zero_point),
            zero_point: output.zero_point.into(),
        }
    }

    /// For numbers to which the zero point has been added.
    pub(crate) fn shifted(output: Requantisation) -> Self {
        Self::new(Requantisation { zero_point: 0, ..output })
    }

    /// The values of numbers.
    #[inline(always)]
    pub(crate) fn values<I: IntegerSimd>(self, simd: I, numbers: Numbers<I>) -> I::Integers {
        let floats = simd.floats();
        let [least, greatest] = floats.splat_pair(self.clip);
        let clipped = floats.minimum(floats.maximum(numbers, least), greatest);
        simd.add_integers(simd.round(clipped), simd.splat_integer(self.zero_point))
    }
}

impl Target for ToU8 {
    type Element = u8;

    #[inline(always)]
    #[expect(unsafe_code, reason = "it writes to a pointer")]
    unsafe fn store<I: IntegerSimd>(
        self,
        simd: I,
        (to, count): (*mut u8, usize),
        sums: I::Integers,
        [multiplier, _]: [Numbers<I>; 2],
    ) {
        let numbers = simd.floats().multiply(simd.to_numbers(sums), multiplier);
        let values = self.values(simd, numbers);
        // SAFETY: the caller has room for the elements.
        unsafe {
            if count == I::Floats::LANES {
                simd.store_bytes(to, values);
            } else {
                simd.store_first_bytes(to, count, values);
            }
        }
    }

    #[inline(always)]
    fn follow<I: IntegerSimd>(self, _: I, _: &mut [u8], _: usize, _: [usize; 2]) {}
}

/// An f32 output.
#[derive(Clone, Copy)]
pub(crate) struct ToF32 {
    pub(crate) tail: Tail,
}

impl Target for ToF32 {
    type Element = f32;

    #[inline(always)]
    #[expect(unsafe_code, reason = "it writes to a pointer")]
    unsafe fn store<I: IntegerSimd>(
        self,
        simd: I,
        (to, count): (*mut f32, usize),
        sums: I::Integers,
        [multiplier, bias]: [Numbers<I>; 2],
    ) {
        let floats = simd.floats();
        let mut numbers = [[floats.multiply_add(simd.to_numbers(sums), multiplier, bias)]];
        if let Some(tail) = ShortTail::new(&self.tail) {
            tail.apply(floats, &mut numbers);
        }
        let [[numbers]] = numbers;
        // SAFETY: the caller has room for the elements.
        unsafe {
            if count == I::Floats::LANES {
                floats.store(to, numbers);
            } else {
                floats.store_first(to, count, numbers);
            }
        }
    }

    #[inline(always)]
    fn follow<I: IntegerSimd>(self, simd: I, values: &mut [f32], stride: usize, size: [usize; 2]) {
        if ShortTail::new(&self.tail).is_none() {
            apply_tail(simd.floats(), &self.tail, values, stride, size);
        }
    }
}

/// The offsets, multipliers and biases of channels or columns.
#[derive(Clone, Copy)]
pub(crate) struct Scales<'a> {
    pub(crate) offsets: &'a [i32],
    /// As many as offsets.
    pub(crate) multipliers: &'a [f32],
    /// As many as offsets, or none.
    pub(crate) bias: &'a [f32],
}

impl<'a> Scales<'a> {
    /// Those of the channels or columns from the given one on.
    #[inline(always)]
    pub(crate) fn from(self, first: usize) -> Scales<'a> {
        Scales {
            offsets: &self.offsets[first..],
            multipliers: &self.multipliers[first..],
            bias: if self.bias.is_empty() { self.bias } else { &self.bias[first..] },
        }
    }

    /// Those of one channel in each lane.
    #[inline(always)]
    pub(crate) fn of_channel<I: IntegerSimd>(
        self,
        simd: I,
        channel: usize,
    ) -> (I::Integers, [Numbers<I>; 2]) {
        let floats = simd.floats();
        let bias = self.bias.get(channel).copied().unwrap_or(0.0);
        let factors = [floats.splat(self.multipliers[channel]), floats.splat(bias)];
        (simd.splat_integer(self.offsets[channel]), factors)
    }

    /// Those of `count` columns, at most the lanes.
    #[inline(always)]
    pub(crate) fn of_columns<I: IntegerSimd>(
        self,
        simd: I,
        column: usize,
        count: usize,
    ) -> (I::Integers, [Numbers<I>; 2]) {
        let floats = simd.floats();
        let mut offsets = [0; super::simd::MAX_LANES];
        offsets[..count].copy_from_slice(&self.offsets[column..][..count]);
        let load = |numbers: &[f32]| {
            if count == I::Floats::LANES {
                floats.load_slice(&numbers[column..][..count])
            } else {
                floats.load_short(&numbers[column..][..count])
            }
        };
        let bias = if self.bias.is_empty() { floats.splat(0.0) } else { load(self.bias) };
        // SAFETY: the array has as many numbers as any vector.
        #[expect(unsafe_code, reason = "it reads an array")]
        let offsets = unsafe { simd.load_integers(offsets.as_ptr()) };
        (offsets, [load(self.multipliers), bias])
    }
}
