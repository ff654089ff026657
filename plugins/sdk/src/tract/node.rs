//! The node of tract's graph that stands for one operation of `guesthouse-arithmetic`.
//!
//! It holds the operation without the sizes that only a call knows: [`Node::resolve`] computes the
//! description from the shapes of the inputs. If all shapes are known when the model is loaded, it
//! is computed then.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use guesthouse_arithmetic::{
    BinaryFunction, LayerNorm, Operands, Operation, Pool, PoolFunction, ReductionFunction, Softmax,
    Tail,
};
use tract_onnx::tract_core::internal::*;

use super::convolution::{Convolution, Deconvolution, windows};
use super::product::Product;
use super::{broadcast, execute, reduction};
use tract_onnx::tract_core::ops::cnn::PoolSpec;

/// An operation whose sizes may depend on the call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Applied to each element of the result; [`Tail::NONE`] where the kind has none.
    pub(super) tail: Tail,
    /// The output's shape, with the names of dimensions.
    shape: ShapeFact,
    /// The description, if the shapes of the inputs are known.
    resolved: Option<Arc<Resolved>>,
    /// What the last call has resolved.
    memo: Memo,
}

/// The shapes of the last call's inputs and the description that followed from them, because calls
/// often have the same shapes. It is no part of what a node is.
#[derive(Debug, Default)]
struct Memo(Mutex<Option<LastCall>>);

#[derive(Debug)]
struct LastCall {
    shapes: TVec<TVec<usize>>,
    resolved: Arc<Resolved>,
}

impl Clone for Memo {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Memo {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Memo {
    fn resolved(
        &self,
        shapes: &[&[usize]],
        resolve: impl FnOnce() -> TractResult<Resolved>,
    ) -> TractResult<Arc<Resolved>> {
        let mut memo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*memo
            && last.shapes.iter().map(|shape| &shape[..]).eq(shapes.iter().copied())
        {
            return Ok(last.resolved.clone());
        }
        let resolved = Arc::new(resolve()?);
        let shapes = shapes.iter().map(|shape| (*shape).into()).collect();
        *memo = Some(LastCall { shapes, resolved: resolved.clone() });
        Ok(resolved)
    }
}

/// Values are compared by their bits only for constants, which have been read from a model.
impl Eq for Node {}

/// What a node computes. Constants are part of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Inputs: the image, factors of its channels if there are some, and the residual if there is
    /// one.
    Convolution(Convolution),
    /// Input: the image.
    Deconvolution(Deconvolution),
    /// Inputs: the operands that are not constant, and the residual if there is one.
    Product(Box<Product>),
    /// Input: the elements.
    Unary,
    /// Inputs: left and right.
    Binary(BinaryFunction),
    /// A softmax over so many innermost axes. Input: the elements.
    Softmax { axes: usize },
    /// Input: rows.
    LayerNorm { epsilon: f32, gain: Constant, bias: Constant },
    /// A reduction of neighbouring axes, which stay with size 1. Input: the elements.
    Reduction { function: ReductionFunction, axes: Range<usize>, scale: f32 },
    /// Input: the image.
    Pool(PoolFunction, PoolSpec),
}

/// The values of a constant operand.
pub(super) type Constant = Arc<[f32]>;

/// An operation with all sizes, and the shape of its output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resolved {
    pub(super) operation: Operation,
    pub(super) shape: TVec<usize>,
    /// How often the operation is executed, each time for another part of inputs and output.
    pub(super) parts: usize,
}

impl Resolved {
    /// An operation that is executed once.
    pub(super) fn new(operation: Operation, shape: TVec<usize>) -> Self {
        Self { operation, shape, parts: 1 }
    }
}

impl Node {
    pub(super) fn new(kind: Kind, shape: ShapeFact) -> Self {
        Self { kind, tail: Tail::NONE, shape, resolved: None, memo: Memo::default() }
    }

    pub(super) fn with_tail(self, tail: Tail) -> Self {
        Self { tail, ..self }
    }

    pub(super) fn shape(&self) -> &ShapeFact {
        &self.shape
    }

    /// Whether the kind applies a tail.
    pub(super) fn has_tail(&self) -> bool {
        match self.kind {
            Kind::Convolution(_)
            | Kind::Deconvolution(_)
            | Kind::Product(_)
            | Kind::Unary
            | Kind::Binary(_) => true,
            Kind::Softmax { .. }
            | Kind::LayerNorm { .. }
            | Kind::Reduction { .. }
            | Kind::Pool(..) => false,
        }
    }

    /// Whether an activation can be added.
    pub(super) fn takes_activation(&self) -> bool {
        self.has_tail() && self.tail == Tail::NONE
    }

    /// Pack the constants and describe the operation, once nothing changes any more.
    pub(super) fn finish(&mut self, inputs: &[&TypedFact]) -> TractResult<()> {
        let shapes: Option<TVec<&[usize]>> =
            inputs.iter().map(|fact| fact.shape.as_concrete()).collect();
        match (&mut self.kind, shapes.as_deref()) {
            (Kind::Convolution(convolution), shapes) => {
                if let Some([image, ..]) = shapes {
                    convolution.crop(image);
                }
                convolution.pack();
            }
            (Kind::Deconvolution(deconvolution), _) => deconvolution.pack(),
            (Kind::Product(product), _) => product.pack(),
            _ => {}
        }
        let resolved = shapes.map(|shapes| self.resolve(&shapes)).transpose()?;
        self.resolved = resolved.map(Arc::new);
        Ok(())
    }

    /// Describe the operation for inputs of these shapes.
    fn resolve(&self, inputs: &[&[usize]]) -> TractResult<Resolved> {
        let input = *inputs.first().context("an operation has an input")?;
        Ok(match &self.kind {
            Kind::Convolution(convolution) => convolution.resolve(input, self.tail)?,
            Kind::Deconvolution(deconvolution) => deconvolution.resolve(input, self.tail)?,
            Kind::Product(product) => product.resolve(inputs, self.tail)?,
            Kind::Unary => Resolved::new(Operation::Unary(self.tail), input.into()),
            Kind::Binary(function) => {
                let right = *inputs.get(1).context("a binary operation has two inputs")?;
                let (binary, shape) = broadcast::resolve(*function, input, right)?;
                Resolved::new(Operation::Binary(binary, self.tail), shape)
            }
            Kind::Softmax { axes } => {
                let softmax = Softmax { columns: columns(input, *axes)? };
                Resolved::new(Operation::Softmax(softmax), input.into())
            }
            Kind::LayerNorm { epsilon, .. } => {
                let norm = LayerNorm { columns: columns(input, 1)?, epsilon: *epsilon };
                Resolved::new(Operation::LayerNorm(norm), input.into())
            }
            Kind::Reduction { function, axes, scale } => {
                reduction::resolve(*function, axes.clone(), *scale, input)?
            }
            Kind::Pool(function, pool) => {
                let (geometry, shape) = windows(pool, input)?;
                Resolved::new(Operation::Pool(Pool { function: *function, geometry }), shape)
            }
        })
    }

    /// The operands of one of the parts of the operation.
    fn operands<'a>(
        &'a self,
        resolved: &Resolved,
        part: usize,
        inputs: &[&'a [f32]],
    ) -> TractResult<Operands<'a>> {
        let input = |index: usize| {
            inputs.get(index).copied().context("an operand of the operation is missing")
        };
        Ok(match &self.kind {
            Kind::Convolution(convolution) => {
                convolution.operands(inputs, [part, resolved.parts])?
            }
            Kind::Deconvolution(deconvolution) => deconvolution.operands(input(0)?),
            Kind::Product(product) => product.operands(inputs)?,
            Kind::Binary(_) => {
                Operands { first: input(0)?, second: input(1)?, ..Operands::default() }
            }
            Kind::LayerNorm { gain, bias, .. } => {
                Operands { first: input(0)?, second: gain, bias, ..Operands::default() }
            }
            Kind::Reduction { .. } => reduction::operands(&resolved.operation, input(0)?),
            Kind::Unary | Kind::Softmax { .. } | Kind::Pool(..) => {
                Operands { first: input(0)?, ..Operands::default() }
            }
        })
    }
}

/// The elements of so many innermost axes.
pub(super) fn columns(shape: &[usize], axes: usize) -> TractResult<u32> {
    let outer = shape.len().checked_sub(axes).context("more axes than there are")?;
    size(shape[outer..].iter().product())
}

/// A size as operations have it.
pub(super) fn size(size: usize) -> TractResult<u32> {
    u32::try_from(size).map_err(|_error| format_err!("a tensor is larger than operations take"))
}

impl Op for Node {
    fn name(&self) -> StaticName {
        match &self.kind {
            Kind::Convolution(convolution) if convolution.is_depthwise() => "DepthwiseConvolution",
            Kind::Convolution(_) => "Convolution",
            Kind::Deconvolution(_) => "Deconvolution",
            Kind::Product(_) => "MatrixProduct",
            Kind::Unary => "Unary",
            Kind::Binary(_) => "Binary",
            Kind::Softmax { .. } => "ArithmeticSoftmax",
            Kind::LayerNorm { .. } => "LayerNorm",
            Kind::Reduction { .. } => "Reduction",
            Kind::Pool(..) => "Pool",
        }
        .into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Node {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let resolved = if let Some(resolved) = &self.resolved {
            resolved.clone()
        } else {
            let shapes: TVec<&[usize]> = inputs.iter().map(|input| input.shape()).collect();
            self.memo.resolved(&shapes, || self.resolve(&shapes))?
        };
        let scaled;
        let views: TVec<_> =
            inputs.iter().map(|input| input.try_as_plain_ram()).collect::<TractResult<_>>()?;
        let mut slices: TVec<&[f32]> =
            views.iter().map(|view| view.as_slice::<f32>()).collect::<TractResult<_>>()?;
        if let Kind::Convolution(convolution) = &self.kind
            && convolution.has_factors
        {
            let factors = slices.get_mut(1).context("a convolution's factors")?;
            scaled = convolution.scaled_weights(factors);
            *factors = &scaled;
        }
        let output = execute::execute(&resolved, |part| self.operands(&resolved, part, &slices));
        let output = output.with_context(|| format!("{:?}", resolved.operation))?;
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Node {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(self.shape.clone())))
    }

    as_op!();
}
