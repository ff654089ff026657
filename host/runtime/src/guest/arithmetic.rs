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
mod operation;
mod quantised;
mod range;
mod usage;

use guesthouse_arithmetic::{
    Binary, Deconvolution, LayerNorm, Operation, Pool, Reduction, Softmax,
};
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, Linker, LinkerInstance};
use wasmtime::{StoreContextMut, bail};

use self::computation::{Computation, Operand};
pub(super) use self::computation::{Permit, ResultTooLarge};
use self::description::{
    BinaryFunction, Broadcast, PoolFunction, Products, ReductionFunction, Tail, Windows,
};
pub(super) use self::idle_cores::{IdleCores, OccupiedCore, Share};
use self::operation::DescribedOperation;
use self::range::Range;
use self::usage::Function;
pub use self::usage::{ArithmeticUsage, FunctionUsage};

/// The interface in the version of the contract that this host implements. wasmtime links imports of
/// compatible versions to it, too.
const INTERFACE: &str = "guesthouse:model/arithmetic@0.2.2";

/// The bits of floating-point numbers.
type Floats = Operand<u32>;

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
    interface.add_by_row()?;
    interface.add_quantised()?;
    interface.add_dequantised()
}

impl<T: 'static> Interface<'_, T> {
    fn add_convolutions(&mut self) -> wasmtime::Result<()> {
        type Parameters = (Windows, Tail, Floats, Floats, Floats, Floats);
        self.add::<_, u32>("convolution", |parameters: Parameters| {
            let (windows, tail, input, weights, bias, residual) = parameters;
            let operation = Operation::Convolution(windows.into(), tail.into());
            on_f32(operation, [input, weights, bias, residual])
        })?;
        self.add::<_, u32>("depthwise-convolution", |parameters: Parameters| {
            let (windows, tail, input, weights, bias, residual) = parameters;
            let operation = Operation::DepthwiseConvolution(windows.into(), tail.into());
            on_f32(operation, [input, weights, bias, residual])
        })?;
        type Transposed = (Windows, Tail, Floats, Floats, Floats);
        self.add::<_, u32>("deconvolution", |parameters: Transposed| {
            let (windows, tail, input, weights, bias) = parameters;
            let deconvolution = Deconvolution { geometry: windows.into() };
            let operation = Operation::Deconvolution(deconvolution, tail.into());
            on_f32(operation, [input, weights, bias])
        })?;
        type Pooled = (PoolFunction, Windows, Floats);
        self.add::<_, u32>("pool", |(function, windows, input): Pooled| {
            let pool = Pool { function: function.into(), geometry: windows.into() };
            on_f32(Operation::Pool(pool), [input])
        })
    }

    fn add_matrix_product(&mut self) -> wasmtime::Result<()> {
        type Parameters = (Products, Tail, Floats, Floats, Floats, Floats);
        self.add::<_, u32>("matrix-product", |parameters: Parameters| {
            let (products, tail, left, right, bias, residual) = parameters;
            let operation = Operation::MatrixProduct(products.into(), tail.into());
            on_f32(operation, [left, right, bias, residual])
        })
    }

    fn add_elementwise(&mut self) -> wasmtime::Result<()> {
        self.add::<_, u32>("unary", |(tail, input): (Tail, Floats)| {
            on_f32(Operation::Unary(tail.into()), [input])
        })?;
        type Parameters = (BinaryFunction, Broadcast, Tail, Floats, Floats);
        self.add::<_, u32>("binary", |(function, broadcast, tail, left, right): Parameters| {
            let Broadcast { shape, left: left_strides, right: right_strides } = broadcast;
            let binary = Binary {
                function: function.into(),
                shape: shape.into(),
                left: left_strides.into(),
                right: right_strides.into(),
            };
            on_f32(Operation::Binary(binary, tail.into()), [left, right])
        })
    }

    fn add_by_row(&mut self) -> wasmtime::Result<()> {
        self.add::<_, u32>("softmax", |(columns, input): (u32, Floats)| {
            on_f32(Operation::Softmax(Softmax { columns }), [input])
        })?;
        type Normalised = (u32, f32, Floats, Floats, Floats);
        self.add::<_, u32>("layer-norm", |(columns, epsilon, input, gain, bias): Normalised| {
            on_f32(Operation::LayerNorm(LayerNorm { columns, epsilon }), [input, gain, bias])
        })?;
        type Reduced = (ReductionFunction, u32, f32, Floats);
        self.add::<_, u32>("reduction", |(function, columns, scale, input): Reduced| {
            let reduction = Reduction { function: function.into(), columns, scale };
            on_f32(Operation::Reduction(reduction), [input])
        })
    }

    /// Link a function that computes what `describe` makes of its parameters, a list of elements of
    /// type `E`. The computation runs when wasmtime lowers the result.
    fn add<P, E>(
        &mut self,
        name: &str,
        describe: fn(P) -> DescribedOperation,
    ) -> wasmtime::Result<()>
    where
        P: ComponentNamedList + Lift + 'static,
        E: ComponentType + Send + Sync + 'static,
    {
        let find_permit = self.find_permit;
        let function = Function::named(name);
        self.instance.func_wrap(name, move |context: StoreContextMut<'_, T>, parameters: P| {
            let Some(permit) = find_permit(context.data()) else {
                bail!("arithmetic is not granted to this version")
            };
            Ok((Computation::<E>::new(function, describe(parameters), permit),))
        })
    }
}

/// An operation on f32 with its operands.
fn on_f32<const N: usize>(operation: Operation, operands: [Floats; N]) -> DescribedOperation {
    let mut ranges = [Range::EMPTY; 4];
    for (range, operand) in ranges.iter_mut().zip(operands) {
        *range = operand.into();
    }
    DescribedOperation::F32(operation, ranges)
}
