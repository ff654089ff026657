//! Functions of one and of two elements.

use crate::functions::{apply_tail, map_tail};
use crate::progress::Progress;
use crate::simd::{Kernel, Simd};
use crate::{Binary, BinaryFunction, Operands, Stopped, Tail};

/// The elements between two uses of a tail: they stay in the first cache.
const CHUNK: usize = 4096;

/// The work that a function of an element counts as.
const ELEMENT_WORK: usize = 16;

/// The most numbers in a vector.
const MAX_LANES: usize = 16;

/// The tail of each element.
pub(crate) fn unary<S: Simd>(
    simd: S,
    tail: &Tail,
    input: &[f32],
    output: &mut [f32],
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    for (input, output) in input.chunks(CHUNK).zip(output.chunks_mut(CHUNK)) {
        progress.spend(ELEMENT_WORK * input.len())?;
        map_tail(simd, tail, input, output);
    }
    Ok(())
}

/// A function of two elements that is known when code is generated.
trait Function: Copy {
    fn apply<S: Simd>(self, simd: S, left: S::Vector, right: S::Vector) -> S::Vector;
}

macro_rules! functions {
    ($($name:ident $method:ident;)*) => {
        $(
            #[derive(Clone, Copy)]
            struct $name;

            impl Function for $name {
                #[inline(always)]
                fn apply<S: Simd>(self, simd: S, left: S::Vector, right: S::Vector) -> S::Vector {
                    simd.$method(left, right)
                }
            }
        )*
    };
}

functions! {
    Add add;
    Subtract subtract;
    Multiply multiply;
    Divide divide;
    Maximum maximum;
    Minimum minimum;
}

/// A dimension of a broadcast.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    /// The strides of the operands.
    strides: [usize; 2],
}

/// The dimensions with as few of them as possible: the last one as long as possible.
fn merged(description: &Binary) -> [Axis; 4] {
    let mut axes = [Axis { size: 1, strides: [0, 0] }; 4];
    let mut place = 3;
    for axis in (0..4).rev() {
        let size = description.shape[axis] as usize;
        let strides = [description.left[axis] as usize, description.right[axis] as usize];
        let inner = &mut axes[place];
        if size == 1 {
            continue;
        }
        let goes_on = |operand: usize| strides[operand] == inner.strides[operand] * inner.size;
        if inner.size == 1 {
            *inner = Axis { size, strides };
        } else if goes_on(0) && goes_on(1) {
            inner.size *= size;
        } else {
            place -= 1;
            axes[place] = Axis { size, strides };
        }
    }
    axes
}

/// A function of two operands and its output.
pub(crate) struct BinaryKernel<'a, 'b> {
    pub(crate) description: &'a Binary,
    pub(crate) tail: &'a Tail,
    pub(crate) operands: Operands<'a>,
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl Kernel for BinaryKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Result<(), Stopped> {
        let axes = merged(self.description);
        let inner = axes[3];
        let (mut pending, mut done) = (0, 0);
        for index in 0..axes[0].size * axes[1].size * axes[2].size {
            let (first, rest) =
                (index / axes[2].size / axes[1].size, index % (axes[2].size * axes[1].size));
            let (second, third) = (rest / axes[2].size, rest % axes[2].size);
            let start = |operand: usize| {
                first * axes[0].strides[operand]
                    + second * axes[1].strides[operand]
                    + third * axes[2].strides[operand]
            };
            let (left, right) =
                (&self.operands.first[start(0)..], &self.operands.second[start(1)..]);
            for from in (0..inner.size).step_by(CHUNK) {
                let length = (inner.size - from).min(CHUNK);
                self.progress.spend(ELEMENT_WORK * length)?;
                let output = &mut self.output[index * inner.size + from..][..length];
                let [left_stride, right_stride] = inner.strides;
                let left = (&left[from * left_stride..], left_stride);
                let right = (&right[from * right_stride..], right_stride);
                row(simd, self.description.function, left, right, output);
                pending += length;
                if pending >= CHUNK {
                    finish(simd, self.tail, &mut self.output[done..done + pending]);
                    (done, pending) = (done + pending, 0);
                }
            }
        }
        finish(simd, self.tail, &mut self.output[done..done + pending]);
        Ok(())
    }
}

#[inline(always)]
fn finish<S: Simd>(simd: S, tail: &Tail, values: &mut [f32]) {
    let length = values.len();
    if *tail != Tail::NONE {
        apply_tail(simd, tail, values, 0, [1, length]);
    }
}

/// A row of results of operands with the given strides.
#[inline(always)]
fn row<S: Simd>(
    simd: S,
    function: BinaryFunction,
    left: (&[f32], usize),
    right: (&[f32], usize),
    output: &mut [f32],
) {
    match function {
        BinaryFunction::Add => row_of(simd, Add, left, right, output),
        BinaryFunction::Subtract => row_of(simd, Subtract, left, right, output),
        BinaryFunction::Multiply => row_of(simd, Multiply, left, right, output),
        BinaryFunction::Divide => row_of(simd, Divide, left, right, output),
        BinaryFunction::Maximum => row_of(simd, Maximum, left, right, output),
        BinaryFunction::Minimum => row_of(simd, Minimum, left, right, output),
    }
}

#[inline(always)]
fn row_of<S: Simd, F: Function>(
    simd: S,
    function: F,
    left: (&[f32], usize),
    right: (&[f32], usize),
    output: &mut [f32],
) {
    match (left.1, right.1) {
        (1, 1) => vectors(simd, function, Dense(left.0), Dense(right.0), output),
        (1, 0) => {
            vectors(simd, function, Dense(left.0), Repeated(simd.splat(right.0[0])), output);
        }
        (0, 1) => {
            vectors(simd, function, Repeated(simd.splat(left.0[0])), Dense(right.0), output);
        }
        _ => {
            let (left, right) = (Strided(left.0, left.1), Strided(right.0, right.1));
            vectors(simd, function, left, right, output);
        }
    }
}

/// A row of an operand.
trait Row<S: Simd>: Copy {
    /// The elements from `start` on; `count` of them exist, at most a vector's.
    fn vector(self, simd: S, start: usize, count: usize) -> S::Vector;
}

#[derive(Clone, Copy)]
struct Dense<'a>(&'a [f32]);

impl<S: Simd> Row<S> for Dense<'_> {
    #[inline(always)]
    fn vector(self, simd: S, start: usize, count: usize) -> S::Vector {
        if count == S::LANES {
            simd.load_slice(&self.0[start..start + S::LANES])
        } else {
            simd.load_short(&self.0[start..start + count])
        }
    }
}

#[derive(Clone, Copy)]
struct Repeated<V>(V);

impl<S: Simd> Row<S> for Repeated<S::Vector> {
    #[inline(always)]
    fn vector(self, _simd: S, _start: usize, _count: usize) -> S::Vector {
        self.0
    }
}

#[derive(Clone, Copy)]
struct Strided<'a>(&'a [f32], usize);

impl<S: Simd> Row<S> for Strided<'_> {
    #[inline(always)]
    fn vector(self, simd: S, start: usize, count: usize) -> S::Vector {
        let mut lanes = [0.0; MAX_LANES];
        for (lane, value) in lanes.iter_mut().enumerate().take(count) {
            *value = self.0[(start + lane) * self.1];
        }
        simd.load_slice(&lanes)
    }
}

#[inline(always)]
fn vectors<S: Simd, F: Function, L: Row<S>, R: Row<S>>(
    simd: S,
    function: F,
    left: L,
    right: R,
    output: &mut [f32],
) {
    let mut start = 0;
    let mut vectors = output.chunks_exact_mut(S::LANES);
    for output in &mut vectors {
        let (left, right) =
            (left.vector(simd, start, S::LANES), right.vector(simd, start, S::LANES));
        simd.store_slice(output, function.apply(simd, left, right));
        start += S::LANES;
    }
    let rest = vectors.into_remainder();
    if !rest.is_empty() {
        let (left, right) =
            (left.vector(simd, start, rest.len()), right.vector(simd, start, rest.len()));
        simd.store_short(rest, function.apply(simd, left, right));
    }
}
