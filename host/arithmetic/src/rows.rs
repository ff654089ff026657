//! Softmax, layer normalisation and reductions of rows. The elements of a row are combined in
//! sixteen lanes, which are then merged in a fixed order, whatever the width of vectors.

use crate::functions::exp;
use crate::progress::Progress;
use crate::simd::{Kernel, Simd};
use crate::{LayerNorm, Operands, Reduction, ReductionFunction, Stopped};

/// The lanes in which a row is combined.
const LANES: usize = 16;

/// The most vectors that hold the lanes.
const MAX_PARTS: usize = 4;

/// The work that an element counts as.
const ELEMENT_WORK: usize = 16;

/// The elements of a long row between two questions whether to stop: a multiple of the lanes.
const CHUNK: usize = 4096;

/// How elements are combined.
trait Fold: Copy {
    /// The value of a lane before its first element.
    fn start(self) -> f32;
    /// The elements beyond a row that fill up the last sixteen.
    fn beyond(self) -> f32;
    /// A lane with one more element.
    fn step<S: Simd>(self, simd: S, lane: S::Vector, element: S::Vector) -> S::Vector;
    /// Two lanes in one.
    fn merge(self, left: f32, right: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Sum;

impl Fold for Sum {
    fn start(self) -> f32 {
        0.0
    }

    fn beyond(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn step<S: Simd>(self, simd: S, lane: S::Vector, element: S::Vector) -> S::Vector {
        simd.add(lane, element)
    }

    fn merge(self, left: f32, right: f32) -> f32 {
        left + right
    }
}

/// The sum of the squares of the distances to a number.
#[derive(Clone, Copy)]
struct Squares(f32);

impl Fold for Squares {
    fn start(self) -> f32 {
        0.0
    }

    fn beyond(self) -> f32 {
        self.0
    }

    #[inline(always)]
    fn step<S: Simd>(self, simd: S, lane: S::Vector, element: S::Vector) -> S::Vector {
        let distance = simd.subtract(element, simd.splat(self.0));
        simd.multiply_add(distance, distance, lane)
    }

    fn merge(self, left: f32, right: f32) -> f32 {
        left + right
    }
}

#[derive(Clone, Copy)]
struct Greatest;

impl Fold for Greatest {
    fn start(self) -> f32 {
        f32::NEG_INFINITY
    }

    fn beyond(self) -> f32 {
        f32::NEG_INFINITY
    }

    #[inline(always)]
    fn step<S: Simd>(self, simd: S, lane: S::Vector, element: S::Vector) -> S::Vector {
        simd.maximum(element, lane)
    }

    fn merge(self, left: f32, right: f32) -> f32 {
        if right > left { right } else { left }
    }
}

#[derive(Clone, Copy)]
struct Least;

impl Fold for Least {
    fn start(self) -> f32 {
        f32::INFINITY
    }

    fn beyond(self) -> f32 {
        f32::INFINITY
    }

    #[inline(always)]
    fn step<S: Simd>(self, simd: S, lane: S::Vector, element: S::Vector) -> S::Vector {
        simd.minimum(element, lane)
    }

    fn merge(self, left: f32, right: f32) -> f32 {
        if right < left { right } else { left }
    }
}

/// The lanes of a row while it is combined.
struct Lanes<S: Simd, F> {
    simd: S,
    fold: F,
    parts: [S::Vector; MAX_PARTS],
}

impl<S: Simd, F: Fold> Lanes<S, F> {
    #[inline(always)]
    fn new(simd: S, fold: F) -> Self {
        Self { simd, fold, parts: [simd.splat(fold.start()); MAX_PARTS] }
    }

    /// Combine a vector of the next sixteen elements.
    #[inline(always)]
    fn step(&mut self, part: usize, elements: S::Vector) {
        self.parts[part] = self.fold.step(self.simd, self.parts[part], elements);
    }

    /// Combine sixteen elements.
    #[inline(always)]
    fn step_slice(&mut self, elements: &[f32]) {
        for (part, elements) in elements.chunks_exact(S::LANES).enumerate().take(MAX_PARTS) {
            let elements = self.simd.load_slice(elements);
            self.step(part, elements);
        }
    }

    /// All lanes in one: the upper half with the lower one, until one is left.
    #[inline(always)]
    fn merge(self) -> f32 {
        let mut lanes = [0.0; LANES];
        for (lanes, part) in lanes.chunks_exact_mut(S::LANES).zip(self.parts) {
            self.simd.store_slice(lanes, part);
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] = self.fold.merge(lanes[lane], lanes[lane + half]);
            }
        }
        lanes[0]
    }
}

/// The last elements of a row, followed by others.
#[inline(always)]
fn fill_up(rest: &[f32], beyond: f32) -> [f32; LANES] {
    let mut elements = [beyond; LANES];
    elements[..rest.len()].copy_from_slice(rest);
    elements
}

#[inline(always)]
fn combine<S: Simd, F: Fold>(
    simd: S,
    fold: F,
    row: &[f32],
    progress: &mut Progress<'_>,
) -> Result<f32, Stopped> {
    let mut lanes = Lanes::new(simd, fold);
    for chunk in row.chunks(CHUNK) {
        progress.spend(ELEMENT_WORK * chunk.len())?;
        let mut groups = chunk.chunks_exact(LANES);
        for elements in &mut groups {
            lanes.step_slice(elements);
        }
        let rest = groups.remainder();
        if !rest.is_empty() {
            lanes.step_slice(&fill_up(rest, fold.beyond()));
        }
    }
    Ok(lanes.merge())
}

/// What is done with each row.
#[derive(Clone, Copy)]
pub(crate) enum RowFunction<'a> {
    /// The result has the row's length.
    Softmax,
    /// With the gain and the bias. The result has the row's length.
    LayerNorm(&'a LayerNorm, Operands<'a>),
    /// The result is one element.
    Reduction(&'a Reduction),
}

/// A function of rows and its output.
pub(crate) struct RowKernel<'a, 'b> {
    pub(crate) function: RowFunction<'a>,
    pub(crate) columns: u32,
    pub(crate) input: &'a [f32],
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl Kernel for RowKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Result<(), Stopped> {
        let columns = self.columns as usize;
        let results = if matches!(self.function, RowFunction::Reduction(_)) { 1 } else { columns };
        let outputs = self.output.chunks_exact_mut(results);
        for (input, output) in self.input.chunks_exact(columns).zip(outputs) {
            match self.function {
                RowFunction::Softmax => softmax(simd, input, output, self.progress)?,
                RowFunction::LayerNorm(norm, operands) => {
                    let row = NormRow { norm, operands, input };
                    row.normalise(simd, output, self.progress)?;
                }
                RowFunction::Reduction(reduction) => {
                    output[0] = reduce(simd, reduction, input, self.progress)?;
                }
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn reduce<S: Simd>(
    simd: S,
    reduction: &Reduction,
    row: &[f32],
    progress: &mut Progress<'_>,
) -> Result<f32, Stopped> {
    let result = match reduction.function {
        ReductionFunction::Sum => combine(simd, Sum, row, progress)?,
        ReductionFunction::SumOfSquares => combine(simd, Squares(0.0), row, progress)?,
        ReductionFunction::Maximum => combine(simd, Greatest, row, progress)?,
        ReductionFunction::Minimum => combine(simd, Least, row, progress)?,
    };
    Ok(result * reduction.scale)
}

#[inline(always)]
fn softmax<S: Simd>(
    simd: S,
    row: &[f32],
    output: &mut [f32],
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let greatest = simd.splat(combine(simd, Greatest, row, progress)?);
    let mut sum = Lanes::new(simd, Sum);
    for (input, output) in row.chunks(CHUNK).zip(output.chunks_mut(CHUNK)) {
        progress.spend(ELEMENT_WORK * input.len())?;
        let (mut inputs, mut outputs) = (input.chunks_exact(LANES), output.chunks_exact_mut(LANES));
        for (input, output) in (&mut inputs).zip(&mut outputs) {
            exp_of_distance(simd, greatest, input, output, &mut sum);
        }
        let (rest, output_rest) = (inputs.remainder(), outputs.into_remainder());
        if !rest.is_empty() {
            // The exponential function of what is beyond is 0.
            let elements = fill_up(rest, f32::NEG_INFINITY);
            let mut results = [0.0; LANES];
            exp_of_distance(simd, greatest, &elements, &mut results, &mut sum);
            output_rest.copy_from_slice(&results[..rest.len()]);
        }
    }
    let factor = simd.splat(1.0 / sum.merge());
    for chunk in output.chunks_mut(CHUNK) {
        progress.spend(chunk.len())?;
        let mut vectors = chunk.chunks_exact_mut(S::LANES);
        for vector in &mut vectors {
            let value = simd.load_slice(vector);
            simd.store_slice(vector, simd.multiply(value, factor));
        }
        let rest = vectors.into_remainder();
        if !rest.is_empty() {
            let value = simd.load_short(rest);
            simd.store_short(rest, simd.multiply(value, factor));
        }
    }
    Ok(())
}

#[inline(always)]
fn exp_of_distance<S: Simd>(
    simd: S,
    greatest: S::Vector,
    input: &[f32],
    output: &mut [f32],
    sum: &mut Lanes<S, Sum>,
) {
    let vectors = input.chunks_exact(S::LANES).zip(output.chunks_exact_mut(S::LANES));
    for (part, (input, output)) in vectors.enumerate().take(MAX_PARTS) {
        let value = exp(simd, simd.subtract(simd.load_slice(input), greatest));
        simd.store_slice(output, value);
        sum.step(part, value);
    }
}

/// A row that is normalised.
struct NormRow<'a> {
    norm: &'a LayerNorm,
    operands: Operands<'a>,
    input: &'a [f32],
}

impl NormRow<'_> {
    #[inline(always)]
    fn normalise<S: Simd>(
        self,
        simd: S,
        output: &mut [f32],
        progress: &mut Progress<'_>,
    ) -> Result<(), Stopped> {
        let columns = self.input.len() as f32;
        let mean = combine(simd, Sum, self.input, progress)? / columns;
        let variance = combine(simd, Squares(mean), self.input, progress)? / columns;
        let factor = 1.0 / (variance + self.norm.epsilon).sqrt();
        let moments = [simd.splat(mean), simd.splat(factor)];
        let inputs = self.input.chunks(CHUNK).zip(output.chunks_mut(CHUNK));
        let operands = self.operands.second.chunks(CHUNK).zip(self.operands.bias.chunks(CHUNK));
        for ((input, output), (gain, bias)) in inputs.zip(operands) {
            progress.spend(input.len())?;
            scale(simd, moments, [input, gain, bias], output);
        }
        Ok(())
    }
}

/// `(input - mean) * factor * gain + bias` of equally long slices.
#[inline(always)]
fn scale<S: Simd>(
    simd: S,
    [mean, factor]: [S::Vector; 2],
    operands: [&[f32]; 3],
    output: &mut [f32],
) {
    let [mut inputs, mut gains, mut biases] = operands.map(|values| values.chunks_exact(S::LANES));
    let mut outputs = output.chunks_exact_mut(S::LANES);
    let factors = (&mut gains).zip(&mut biases);
    for ((input, output), (gain, bias)) in (&mut inputs).zip(&mut outputs).zip(factors) {
        let scaled = simd.multiply(simd.subtract(simd.load_slice(input), mean), factor);
        let value = simd.multiply_add(scaled, simd.load_slice(gain), simd.load_slice(bias));
        simd.store_slice(output, value);
    }
    let output = outputs.into_remainder();
    if !output.is_empty() {
        let (gain, bias) =
            (simd.load_short(gains.remainder()), simd.load_short(biases.remainder()));
        let distance = simd.subtract(simd.load_short(inputs.remainder()), mean);
        let scaled = simd.multiply(distance, factor);
        simd.store_short(output, simd.multiply_add(scaled, gain, bias));
    }
}
