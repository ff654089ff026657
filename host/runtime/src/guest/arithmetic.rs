//! The import `arithmetic` of the contract: operations that the host executes on a guest's values.
//!
//! Linked by hand and not by generated bindings, which would copy every operand. A call is described
//! by plain records (`description`); its operands are ranges of the guest's memory, and its result
//! is written straight into the memory that the guest allocates for it (`computation`). What the
//! host trusts here is `guesthouse-arithmetic`, which proves every index before it computes. Who is
//! granted arithmetic is left to the configuration.

mod computation;
mod description;
mod usage;

use guesthouse_arithmetic::{
    Binary, Deconvolution, LayerNorm, Operation, Pool, Reduction, Softmax,
};
use wasmtime::component::{ComponentNamedList, Lift, Linker, LinkerInstance};
use wasmtime::{StoreContextMut, bail};

use self::computation::{Computation, Operand};
pub(super) use self::computation::{Permit, ResultTooLarge};
use self::description::{
    BinaryFunction, Broadcast, PoolFunction, Products, ReductionFunction, Tail, Windows,
};
pub use self::usage::ArithmeticUsage;
use super::state::HostState;

/// The interface, in the version of the contract that introduced it. wasmtime links imports of later
/// compatible versions to it, too.
const INTERFACE: &str = "guesthouse:model/arithmetic@0.2.1";

/// The operands of an operation in the order of [`guesthouse_arithmetic::Operands`].
type AllOperands = [Operand; 4];

/// An operand that an operation does not have.
const NONE: Operand = Operand::EMPTY;

/// Link the interface.
pub(super) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap("granted", |context: StoreContextMut<'_, HostState>, (): ()| {
        Ok((context.data().arithmetic().is_some(),))
    })?;
    add_convolutions(&mut interface)?;
    add_matrix_product(&mut interface)?;
    add_elementwise(&mut interface)?;
    add_by_row(&mut interface)
}

fn add_convolutions(interface: &mut LinkerInstance<'_, HostState>) -> wasmtime::Result<()> {
    type Parameters = (Windows, Tail, Operand, Operand, Operand, Operand);
    add(interface, "convolution", |parameters: Parameters| {
        let (windows, tail, input, weights, bias, residual) = parameters;
        let operation = Operation::Convolution(windows.into(), tail.into());
        (operation, [input, weights, bias, residual])
    })?;
    add(interface, "depthwise-convolution", |parameters: Parameters| {
        let (windows, tail, input, weights, bias, residual) = parameters;
        let operation = Operation::DepthwiseConvolution(windows.into(), tail.into());
        (operation, [input, weights, bias, residual])
    })?;
    type Transposed = (Windows, Tail, Operand, Operand, Operand);
    add(interface, "deconvolution", |parameters: Transposed| {
        let (windows, tail, input, weights, bias) = parameters;
        let deconvolution = Deconvolution { geometry: windows.into() };
        let operation = Operation::Deconvolution(deconvolution, tail.into());
        (operation, [input, weights, bias, NONE])
    })?;
    type Pooled = (PoolFunction, Windows, Operand);
    add(interface, "pool", |(function, windows, input): Pooled| {
        let pool = Pool { function: function.into(), geometry: windows.into() };
        (Operation::Pool(pool), [input, NONE, NONE, NONE])
    })
}

fn add_matrix_product(interface: &mut LinkerInstance<'_, HostState>) -> wasmtime::Result<()> {
    type Parameters = (Products, Tail, Operand, Operand, Operand, Operand);
    add(interface, "matrix-product", |parameters: Parameters| {
        let (products, tail, left, right, bias, residual) = parameters;
        let operation = Operation::MatrixProduct(products.into(), tail.into());
        (operation, [left, right, bias, residual])
    })
}

fn add_elementwise(interface: &mut LinkerInstance<'_, HostState>) -> wasmtime::Result<()> {
    add(interface, "unary", |(tail, input): (Tail, Operand)| {
        (Operation::Unary(tail.into()), [input, NONE, NONE, NONE])
    })?;
    type Parameters = (BinaryFunction, Broadcast, Tail, Operand, Operand);
    add(interface, "binary", |(function, broadcast, tail, left, right): Parameters| {
        let Broadcast { shape, left: left_strides, right: right_strides } = broadcast;
        let binary = Binary {
            function: function.into(),
            shape: shape.into(),
            left: left_strides.into(),
            right: right_strides.into(),
        };
        (Operation::Binary(binary, tail.into()), [left, right, NONE, NONE])
    })
}

fn add_by_row(interface: &mut LinkerInstance<'_, HostState>) -> wasmtime::Result<()> {
    add(interface, "softmax", |(columns, input): (u32, Operand)| {
        (Operation::Softmax(Softmax { columns }), [input, NONE, NONE, NONE])
    })?;
    type Normalised = (u32, f32, Operand, Operand, Operand);
    add(interface, "layer-norm", |(columns, epsilon, input, gain, bias): Normalised| {
        (Operation::LayerNorm(LayerNorm { columns, epsilon }), [input, gain, bias, NONE])
    })?;
    type Reduced = (ReductionFunction, u32, f32, Operand);
    add(interface, "reduction", |(function, columns, scale, input): Reduced| {
        let reduction = Reduction { function: function.into(), columns, scale };
        (Operation::Reduction(reduction), [input, NONE, NONE, NONE])
    })
}

/// Link a function that computes what `describe` makes of its parameters. The computation runs when
/// wasmtime lowers the result.
fn add<P>(
    interface: &mut LinkerInstance<'_, HostState>,
    name: &str,
    describe: fn(P) -> (Operation, AllOperands),
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
{
    interface.func_wrap(name, move |context: StoreContextMut<'_, HostState>, parameters: P| {
        let Some(permit) = context.data().arithmetic() else {
            bail!("arithmetic is not granted to this version")
        };
        let (operation, operands) = describe(parameters);
        Ok((Computation::new(operation, operands, permit),))
    })
}
