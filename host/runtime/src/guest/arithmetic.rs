//! The import `arithmetic` of the contract: operations that the host executes on a guest's values.
//!
//! Linked by hand and not by generated bindings, which would copy every operand. A call is described
//! by plain records (`description`); its operands are ranges of the guest's memory, and its result
//! is written straight into the memory that the guest allocates for it (`computation`). What the
//! host trusts here is `guesthouse-arithmetic`, which proves every index before it computes. Who is
//! granted arithmetic is left to the configuration.

mod computation;
mod description;
mod idle_cores;
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
pub(super) use self::idle_cores::{IdleCores, OccupiedCore, Share};
use self::usage::Function;
pub use self::usage::{ArithmeticUsage, FunctionUsage};

/// The interface, in the version of the contract that introduced it. wasmtime links imports of later
/// compatible versions to it, too.
const INTERFACE: &str = "guesthouse:model/arithmetic@0.2.1";

/// An operand that an operation does not have.
const NONE: Operand = Operand::EMPTY;

/// What allows the instance with this state to compute, if it is granted that.
type FindPermit<T> = fn(&T) -> Option<Permit>;

/// The interface, while functions are added to it.
struct Interface<'a, T: 'static> {
    instance: LinkerInstance<'a, T>,
    find_permit: FindPermit<T>,
}

/// Link the interface.
pub(super) fn add_to_linker<T>(
    linker: &mut Linker<T>,
    find_permit: FindPermit<T>,
) -> wasmtime::Result<()> {
    let mut instance = linker.instance(INTERFACE)?;
    instance.func_wrap("granted", move |context: StoreContextMut<'_, T>, (): ()| {
        Ok((find_permit(context.data()).is_some(),))
    })?;
    let mut interface = Interface { instance, find_permit };
    interface.add_convolutions()?;
    interface.add_matrix_product()?;
    interface.add_elementwise()?;
    interface.add_by_row()
}

impl<T: 'static> Interface<'_, T> {
    fn add_convolutions(&mut self) -> wasmtime::Result<()> {
        type Parameters = (Windows, Tail, Operand, Operand, Operand, Operand);
        self.add("convolution", |parameters: Parameters| {
            let (windows, tail, input, weights, bias, residual) = parameters;
            let operation = Operation::Convolution(windows.into(), tail.into());
            (operation, [input, weights, bias, residual])
        })?;
        self.add("depthwise-convolution", |parameters: Parameters| {
            let (windows, tail, input, weights, bias, residual) = parameters;
            let operation = Operation::DepthwiseConvolution(windows.into(), tail.into());
            (operation, [input, weights, bias, residual])
        })?;
        type Transposed = (Windows, Tail, Operand, Operand, Operand);
        self.add("deconvolution", |parameters: Transposed| {
            let (windows, tail, input, weights, bias) = parameters;
            let deconvolution = Deconvolution { geometry: windows.into() };
            let operation = Operation::Deconvolution(deconvolution, tail.into());
            (operation, [input, weights, bias, NONE])
        })?;
        type Pooled = (PoolFunction, Windows, Operand);
        self.add("pool", |(function, windows, input): Pooled| {
            let pool = Pool { function: function.into(), geometry: windows.into() };
            (Operation::Pool(pool), [input, NONE, NONE, NONE])
        })
    }

    fn add_matrix_product(&mut self) -> wasmtime::Result<()> {
        type Parameters = (Products, Tail, Operand, Operand, Operand, Operand);
        self.add("matrix-product", |parameters: Parameters| {
            let (products, tail, left, right, bias, residual) = parameters;
            let operation = Operation::MatrixProduct(products.into(), tail.into());
            (operation, [left, right, bias, residual])
        })
    }

    fn add_elementwise(&mut self) -> wasmtime::Result<()> {
        self.add("unary", |(tail, input): (Tail, Operand)| {
            (Operation::Unary(tail.into()), [input, NONE, NONE, NONE])
        })?;
        type Parameters = (BinaryFunction, Broadcast, Tail, Operand, Operand);
        self.add("binary", |(function, broadcast, tail, left, right): Parameters| {
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

    fn add_by_row(&mut self) -> wasmtime::Result<()> {
        self.add("softmax", |(columns, input): (u32, Operand)| {
            (Operation::Softmax(Softmax { columns }), [input, NONE, NONE, NONE])
        })?;
        type Normalised = (u32, f32, Operand, Operand, Operand);
        self.add("layer-norm", |(columns, epsilon, input, gain, bias): Normalised| {
            (Operation::LayerNorm(LayerNorm { columns, epsilon }), [input, gain, bias, NONE])
        })?;
        type Reduced = (ReductionFunction, u32, f32, Operand);
        self.add("reduction", |(function, columns, scale, input): Reduced| {
            let reduction = Reduction { function: function.into(), columns, scale };
            (Operation::Reduction(reduction), [input, NONE, NONE, NONE])
        })
    }

    /// Link a function that computes what `describe` makes of its parameters. The computation runs
    /// when wasmtime lowers the result.
    fn add<P>(
        &mut self,
        name: &str,
        describe: fn(P) -> (Operation, [Operand; 4]),
    ) -> wasmtime::Result<()>
    where
        P: ComponentNamedList + Lift + 'static,
    {
        let find_permit = self.find_permit;
        let function = Function::named(name);
        self.instance.func_wrap(name, move |context: StoreContextMut<'_, T>, parameters: P| {
            let Some(permit) = find_permit(context.data()) else {
                bail!("arithmetic is not granted to this version")
            };
            Ok((Computation::new(function, describe(parameters), permit),))
        })
    }
}
