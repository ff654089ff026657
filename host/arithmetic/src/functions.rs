//! Functions of one element as polynomials and quotients of polynomials, in a fixed order of
//! operations, so that all backends compute the same bits.

use crate::simd::{Kernel, Simd};
use crate::{Activation, Tail};

/// Adding it to a number of less than 2^22 rounds the number to an integer, which is then in the
/// lowest bits.
const ROUND: f32 = 12_582_912.0;

/// `ln(2)` as a number with few bits, whose products with integers are exact, and the rest.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// `(exp(r) - 1 - r) / r^2` for `r` of at most `ln(2) / 2`, the highest power first.
const EXP: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `erf(x) / x` is the quotient of these polynomials of `x^2`, the highest power first, up to
/// [`ERF_LIMIT`], where it rounds to 1.
const ERF: [f32; 6] = [
    2.050_109_5e-6,
    2.848_764e-4,
    3.765_394e-3,
    5.274_803_4e-2,
    1.904_014_6e-1,
    std::f32::consts::FRAC_2_SQRT_PI,
];
const ERF_DIVISOR: [f32; 6] =
    [3.809_161_4e-5, 1.162_478_9e-3, 1.496_877_2e-2, 1.141_070_2e-1, 5.020_716e-1, 1.0];
const ERF_LIMIT: f32 = 3.92;

/// `tanh(x) / x` is the quotient of these polynomials of `x^2`, the highest power first, up to
/// [`TANH_LIMIT`], where it rounds to 1.
const TANH: [f32; 6] =
    [-1.222_449_7e-11, 3.061_328e-8, 2.801_917_5e-5, 3.868_907_4e-3, 1.368_037_7e-1, 1.0];
const TANH_DIVISOR: [f32; 5] = [1.288_186_3e-6, 3.939_653_8e-4, 2.724_796e-2, 4.701_371e-1, 1.0];
const TANH_LIMIT: f32 = 9.01;

/// The exponential function: 0 below -104, infinite above 89.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let x = clip(simd, x, -104.0, 89.0);
    let round = simd.splat(ROUND);
    let rounded = simd.multiply_add(x, simd.splat(std::f32::consts::LOG2_E), round);
    let power = simd.subtract(rounded, round);
    let rest = simd.multiply_add(power, simd.splat(-LN_2[0]), x);
    let rest = simd.multiply_add(power, simd.splat(-LN_2[1]), rest);
    let higher = polynomial(simd, rest, &EXP);
    let sum = simd.multiply_add(simd.multiply(rest, rest), higher, rest);
    let sum = simd.add(sum, simd.splat(1.0));
    simd.scale_by_power(sum, simd.subtract_bits(rounded, round))
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    odd_quotient(simd, x, ERF_LIMIT, &ERF, &ERF_DIVISOR)
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    odd_quotient(simd, x, TANH_LIMIT, &TANH, &TANH_DIVISOR)
}

/// `x * above(x^2) / below(x^2)` between -1 and 1.
#[inline(always)]
fn odd_quotient<S: Simd>(
    simd: S,
    x: S::Vector,
    limit: f32,
    above: &[f32],
    below: &[f32],
) -> S::Vector {
    let x = clip(simd, x, -limit, limit);
    let square = simd.multiply(x, x);
    let above = simd.multiply(x, polynomial(simd, square, above));
    clip(simd, simd.divide(above, polynomial(simd, square, below)), -1.0, 1.0)
}

#[inline(always)]
fn polynomial<S: Simd>(simd: S, x: S::Vector, coefficients: &[f32]) -> S::Vector {
    let mut sum = simd.splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = simd.multiply_add(sum, x, simd.splat(*coefficient));
    }
    sum
}

/// `min(max(x, least), greatest)`; what is no number stays so.
#[inline(always)]
pub(crate) fn clip<S: Simd>(simd: S, x: S::Vector, least: f32, greatest: f32) -> S::Vector {
    simd.minimum(simd.splat(greatest), simd.maximum(simd.splat(least), x))
}

/// An activation that is known when code is generated, with its parameters.
pub(crate) trait Curve: Copy {
    /// The function of each lane.
    fn apply<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector;
}

/// What is done with a [`Curve`].
pub(crate) trait WithCurve {
    /// What it returns.
    type Output;
    /// Does it. Implementations are `#[inline(always)]`.
    fn run<C: Curve>(self, curve: C) -> Self::Output;
}

macro_rules! curves {
    ($($(#[$meta:meta])* $name:ident $(($($parameter:ident),*))? |$simd:ident, $x:ident| $body:expr;)*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy)]
            struct $name $(($(curves!(@f32 $parameter)),*))?;

            impl Curve for $name {
                #[inline(always)]
                fn apply<S: Simd>(self, $simd: S, $x: S::Vector) -> S::Vector {
                    let Self $(($($parameter),*))? = self;
                    $body
                }
            }
        )*
    };
    (@f32 $parameter:ident) => { f32 };
}

curves! {
    Identity |_simd, x| x;
    Clip(least, greatest) |simd, x| clip(simd, x, least, greatest);
    LeakyRelu(slope) |simd, x| {
        simd.select_negative(x, simd.multiply(x, simd.splat(slope)), x)
    };
    HardSigmoid(slope, offset) |simd, x| {
        let line = simd.multiply_add(x, simd.splat(slope), simd.splat(offset));
        clip(simd, line, 0.0, 1.0)
    };
    HardSwish |simd, x| {
        simd.multiply(x, clip(simd, simd.add(x, simd.splat(3.0)), 0.0, 6.0))
    };
    Sigmoid |simd, x| simd.divide(simd.splat(1.0), one_and_exp_of_opposite(simd, x));
    Silu |simd, x| simd.divide(x, one_and_exp_of_opposite(simd, x));
    Tanh |simd, x| tanh(simd, x);
    Gelu |simd, x| {
        let erf = erf(simd, simd.multiply(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)));
        simd.multiply(simd.multiply(x, simd.splat(0.5)), simd.add(erf, simd.splat(1.0)))
    };
    Exp |simd, x| exp(simd, x);
    Erf |simd, x| erf(simd, x);
    SquareRoot |simd, x| simd.square_root(x);
    ReciprocalSquareRoot |simd, x| simd.divide(simd.splat(1.0), simd.square_root(x));
    Reciprocal |simd, x| simd.divide(simd.splat(1.0), x);
    Square |simd, x| simd.multiply(x, x);
    Absolute |simd, x| simd.absolute(x);
}

#[inline(always)]
fn one_and_exp_of_opposite<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    simd.add(simd.splat(1.0), exp(simd, simd.subtract(simd.splat(0.0), x)))
}

/// A curve followed by `* scale + shift`.
#[derive(Clone, Copy)]
struct Scaled<C> {
    curve: C,
    scale: f32,
    shift: f32,
}

impl<C: Curve> Curve for Scaled<C> {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::Vector) -> S::Vector {
        let x = self.curve.apply(simd, x);
        simd.multiply_add(x, simd.splat(self.scale), simd.splat(self.shift))
    }
}

impl Tail {
    /// Whether only the activation changes elements.
    pub(crate) fn is_unscaled(&self) -> bool {
        self.scale == 1.0 && self.shift == 0.0
    }

    /// Do something with the tail as a [`Curve`].
    #[inline(always)]
    pub(crate) fn with_curve<W: WithCurve>(&self, with: W) -> W::Output {
        match self.activation {
            Activation::Identity => self.scaled(Identity, with),
            Activation::Relu => self.scaled(Clip(0.0, f32::INFINITY), with),
            Activation::LeakyRelu(slope) => self.scaled(LeakyRelu(slope), with),
            Activation::Clip(least, greatest) => self.scaled(Clip(least, greatest), with),
            Activation::HardSigmoid(slope, offset) => self.scaled(HardSigmoid(slope, offset), with),
            Activation::HardSwish => self.scaled(HardSwish, with),
            Activation::Sigmoid => self.scaled(Sigmoid, with),
            Activation::Silu => self.scaled(Silu, with),
            Activation::Tanh => self.scaled(Tanh, with),
            Activation::Gelu => self.scaled(Gelu, with),
            Activation::Exp => self.scaled(Exp, with),
            Activation::Erf => self.scaled(Erf, with),
            Activation::SquareRoot => self.scaled(SquareRoot, with),
            Activation::ReciprocalSquareRoot => self.scaled(ReciprocalSquareRoot, with),
            Activation::Reciprocal => self.scaled(Reciprocal, with),
            Activation::Square => self.scaled(Square, with),
            Activation::Absolute => self.scaled(Absolute, with),
        }
    }

    #[inline(always)]
    fn scaled<C: Curve, W: WithCurve>(&self, curve: C, with: W) -> W::Output {
        if self.is_unscaled() {
            with.run(curve)
        } else {
            with.run(Scaled { curve, scale: self.scale, shift: self.shift })
        }
    }
}

/// A tail that is so short that it is applied to results before they leave the registers.
#[derive(Clone, Copy)]
pub(crate) enum ShortTail {
    /// The least and the greatest value.
    Clip([f32; 2]),
    /// Hard swish, and the factor and the summand after it unless they change nothing.
    HardSwish(Option<[f32; 2]>),
}

impl ShortTail {
    /// A tail that changes nothing.
    pub(crate) const NONE: Self = Self::Clip([f32::NEG_INFINITY, f32::INFINITY]);

    /// The tail, if it is short.
    #[inline(always)]
    pub(crate) fn new(tail: &Tail) -> Option<Self> {
        let clip = match tail.activation {
            Activation::Identity => [f32::NEG_INFINITY, f32::INFINITY],
            Activation::Relu => [0.0, f32::INFINITY],
            Activation::Clip(least, greatest) => [least, greatest],
            Activation::HardSwish => {
                let scale = (!tail.is_unscaled()).then_some([tail.scale, tail.shift]);
                return Some(Self::HardSwish(scale));
            }
            _ => return None,
        };
        tail.is_unscaled().then_some(Self::Clip(clip))
    }

    /// Apply it to rows of vectors. It is looked up once for all of them: else, the vectors would
    /// not stay in registers.
    #[inline(always)]
    pub(crate) fn apply<S: Simd, const ROWS: usize, const VECTORS: usize>(
        self,
        simd: S,
        rows: &mut [[S::Vector; VECTORS]; ROWS],
    ) {
        match self {
            Self::Clip([least, greatest]) => apply_to_all(simd, Clip(least, greatest), rows),
            Self::HardSwish(None) => apply_to_all(simd, HardSwish, rows),
            Self::HardSwish(Some([scale, shift])) => {
                apply_to_all(simd, Scaled { curve: HardSwish, scale, shift }, rows);
            }
        }
    }
}

#[inline(always)]
fn apply_to_all<S: Simd, C: Curve, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    curve: C,
    rows: &mut [[S::Vector; VECTORS]; ROWS],
) {
    for vectors in rows {
        for vector in vectors {
            *vector = curve.apply(simd, *vector);
        }
    }
}

/// Apply a tail to rows of elements, the given distance apart.
#[inline(always)]
pub(crate) fn apply_tail<S: Simd>(
    simd: S,
    tail: &Tail,
    values: &mut [f32],
    stride: usize,
    size: [usize; 2],
) {
    simd.call(ApplyTail { tail, input: None, output: values, stride, size });
}

/// Apply a tail to each element of an input.
#[inline(always)]
pub(crate) fn map_tail<S: Simd>(simd: S, tail: &Tail, input: &[f32], output: &mut [f32]) {
    let size = [1, output.len()];
    simd.call(ApplyTail { tail, input: Some(input), output, stride: 0, size });
}

struct ApplyTail<'a> {
    tail: &'a Tail,
    /// As the output, or the output itself.
    input: Option<&'a [f32]>,
    output: &'a mut [f32],
    stride: usize,
    /// The rows and columns.
    size: [usize; 2],
}

impl Kernel for ApplyTail<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [rows, columns] = self.size;
        for row in 0..rows {
            let start = row * self.stride;
            let output = &mut self.output[start..][..columns];
            let to = output.as_mut_ptr();
            let input = match self.input {
                Some(input) => input[start..][..columns].as_ptr(),
                None => to.cast_const(),
            };
            self.tail.with_curve(ApplyCurve { simd, input, output: to, columns });
        }
    }
}

/// A curve from one address to another one, or in place. Both have so many columns.
struct ApplyCurve<S> {
    simd: S,
    input: *const f32,
    output: *mut f32,
    columns: usize,
}

impl<S: Simd> WithCurve for ApplyCurve<S> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "one loop for results in place and elsewhere")]
    fn run<C: Curve>(self, curve: C) {
        let simd = self.simd;
        let whole = self.columns / S::LANES * S::LANES;
        for start in (0..whole).step_by(S::LANES) {
            // SAFETY: both addresses have the columns, and the vector lies in the whole ones; a
            // vector is read before it is written at the same place.
            unsafe {
                let value = curve.apply(simd, simd.load(self.input.add(start)));
                simd.store(self.output.add(start), value);
            }
        }
        let rest = self.columns - whole;
        if rest > 0 {
            // SAFETY: as above, for the columns behind the whole vectors.
            unsafe {
                let value = curve.apply(simd, simd.load_first(self.input.add(whole), rest));
                simd.store_first(self.output.add(whole), rest, value);
            }
        }
    }
}
