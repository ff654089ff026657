//! Operations of neural networks on f32 tensors and on 8-bit ones, for the host and for guests.
//!
//! The host executes them for guests that import the interface `arithmetic`, and the same source is
//! compiled into guests for hosts that do not grant it. An [`Operation`] describes the work without
//! its values. [`Operation::check`] proves every index against the lengths of the operands and
//! returns a [`Call`], whose execution cannot fail and computes the same bits on every
//! [`Backend`], except that the bits of results that are no number are unspecified. A
//! [`QuantisedOperation`] is the same for 8-bit tensors.
//!
//! # Bits
//! A sum of products starts with 0 and adds one term after the other in order of `k` (input channel,
//! then row and column of the kernel), each in a fused multiply-add; values of the padding are terms
//! that are zero. Then `sum * scale + bias` is one fused multiply-add, with a bias of 0 if there is
//! none, and the residual is added. A deconvolution adds the products to the output in order of the
//! input elements, and then the bias. A tail's `* scale + shift` is one fused multiply-add, and is
//! left out if it changes nothing. Activations pass on what is no number; of two elements, maximum
//! and minimum take the right one if they cannot be compared.
//!
//! A row is combined in sixteen lanes, of which each has the elements with the same remainder, as if
//! zeros (of a maximum: infinities) filled up the last sixteen elements. Then the upper half of the
//! lanes is combined with the lower one, until one lane is left. A softmax multiplies by the
//! reciprocal of the sum; a mean is a sum that is divided.
//!
//! Sums of products of u8 with i8 are exact integers; [`QuantisedEnding`] says what follows them.
//!
//! The rows of a batch, and the parts of [`Call::split`], have the bits that they have alone.
//!
//! The crate has no parser and no handles.

mod backend;
mod call;
mod check;
mod convolution;
mod deconvolution;
mod elementwise;
mod execute;
mod functions;
mod narrow;
mod operation;
mod pack;
mod panel;
mod planes;
mod pool;
mod products;
mod progress;
mod quantised;
mod rows;
mod scratch;
mod simd;
mod split;
mod tile;
mod windows;
mod work;

pub use backend::Backend;
pub use call::{Call, Invalid, Operands, Stopped};
pub use operation::{
    Activation, Binary, BinaryFunction, Convolution, Deconvolution, LayerNorm, MatrixProduct,
    Operation, Pool, PoolFunction, Reduction, ReductionFunction, RightOperand, Softmax, Tail,
};
pub use pack::{
    pack_convolution_weights, pack_matrix, pack_quantised_matrix, pack_quantised_weights,
};
pub use quantised::{
    ElementType, Quantisation, QuantisedCall, QuantisedConvolution, QuantisedEnding,
    QuantisedOperands, QuantisedOperation, QuantisedOutput, QuantisedProduct, QuantisedSum,
    Requantisation,
};

/// The output channels of a block of packed convolution weights.
pub const WEIGHT_BLOCK: usize = 8;

/// The columns of a panel of a packed matrix.
pub const PANEL: usize = 48;

/// The neighbouring values of `k` in a group of packed 8-bit weights.
pub const K_GROUP: usize = 4;
