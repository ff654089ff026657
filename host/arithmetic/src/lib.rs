//! Operations of neural networks on f32 tensors, for the host and for guests.
//!
//! The host executes them for guests that import the interface `arithmetic`, and the same source is
//! compiled into guests for hosts that do not grant it. An [`Operation`] describes the work without
//! its values. [`Operation::check`] proves every index against the lengths of the operands and
//! returns a [`Call`], whose execution cannot fail and computes the same bits on every
//! [`Backend`], except that the bits of results that are no number are unspecified.
//!
//! The crate has no parser and no handles.

mod backend;
mod bands;
mod call;
mod check;
mod convolution;
mod deconvolution;
mod elementwise;
mod execute;
mod functions;
mod operation;
mod pack;
mod panel;
mod planes;
mod pool;
mod products;
mod progress;
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
pub use pack::{pack_convolution_weights, pack_matrix};

/// The output channels of a block of packed convolution weights.
pub const WEIGHT_BLOCK: usize = 8;

/// The columns of a panel of a packed matrix.
pub const PANEL: usize = 48;
