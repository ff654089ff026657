//! Operations on 8-bit tensors: values are u8 with a zero point, weights i8 without one, sums exact
//! in i32. The structure is that of operations on f32: a description is checked against its
//! operands and becomes a call.

mod call;
mod check;
mod convolution;
mod depthwise;
mod elementwise;
mod execute;
mod factors;
mod narrow;
mod operation;
mod products;
mod simd;
mod split;
mod target;
mod tile;

pub use call::{QuantisedCall, QuantisedOperands, QuantisedOutput};
pub use operation::{
    ElementType, Quantisation, QuantisedConvolution, QuantisedEnding, QuantisedOperation,
    QuantisedProduct, QuantisedSum, Requantisation,
};
