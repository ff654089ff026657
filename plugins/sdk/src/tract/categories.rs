//! Categories of `ai.onnx.ml`: texts and numbers that stand for each other, and columns of ones and
//! zeros. tract has the first for two types only.

use std::collections::BTreeMap;
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;

/// Read the categories of ONNX files.
pub(super) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("LabelEncoder", label_encoder);
    onnx.op_register.insert("OneHotEncoder", one_hot_encoder);
}

type Parsed = (Box<dyn InferenceOp>, Vec<String>);

fn label_encoder(context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    let keys = list(context, node, "keys")?.context("it has no keys")?;
    let values = list(context, node, "values")?.context("it has no values")?;
    ensure!(keys.len() == values.len(), "it has as many keys as values");
    let default = match node.get_attr_opt::<&TensorProto>("default_tensor")? {
        Some(tensor) => context.load_tensor(tensor)?,
        None if values.datum_type() == String::datum_type() => tensor1(&[node
            .get_attr_opt::<String>("default_string")?
            .unwrap_or("_Unused".to_owned())]),
        None if values.datum_type() == i64::datum_type() => {
            tensor1(&[node.get_attr_opt::<i64>("default_int64")?.unwrap_or(-1)])
        }
        None => tensor1(&[node.get_attr_opt::<f32>("default_float")?.unwrap_or(-0.0)]),
    };
    let lookup = Lookup::new(&keys, &values, &default)?;
    Ok((expand(lookup), vec![]))
}

fn one_hot_encoder(context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    let keys = list(context, node, "cats")?.context("it has no categories")?;
    let allows_others = node.get_attr_opt::<i64>("zeros")?.unwrap_or(1) != 0;
    Ok((expand(OneHot { keys: Keys::new(&keys)?, count: keys.len(), allows_others }), vec![]))
}

/// A list of any of the types, which is in an attribute of its own for each.
fn list(context: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Option<Tensor>> {
    if let Some(tensor) = node.get_attr_opt::<&TensorProto>(&format!("{name}_tensor"))? {
        return context.load_tensor(tensor).map(Some);
    }
    if let Some(texts) = node.get_attr_opt_vec::<String>(&format!("{name}_strings"))? {
        return Ok(Some(tensor1(&texts)));
    }
    if let Some(integers) = node.get_attr_opt_vec::<i64>(&format!("{name}_int64s"))? {
        return Ok(Some(tensor1(&integers)));
    }
    Ok(node.get_attr_opt_vec::<f32>(&format!("{name}_floats"))?.map(|floats| tensor1(&floats)))
}

/// The places of categories in their list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Keys {
    Texts(BTreeMap<String, usize>),
    Integers(BTreeMap<i64, usize>),
    /// By their bits.
    Floats(BTreeMap<u32, usize>),
}

/// The bits of a number, the same for both zeros and for all NaN.
fn bits(number: f32) -> u32 {
    if number.is_nan() { f32::NAN.to_bits() } else { (number + 0.0).to_bits() }
}

/// The first place of each category.
fn places<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut places = BTreeMap::new();
    for (place, key) in keys.enumerate() {
        places.entry(key).or_insert(place);
    }
    places
}

impl Keys {
    fn new(keys: &Tensor) -> TractResult<Self> {
        let view = keys.try_as_plain_ram()?;
        Ok(if keys.datum_type() == String::datum_type() {
            Self::Texts(places(view.as_slice::<String>()?.iter().cloned()))
        } else if keys.datum_type().is_float() {
            let keys = keys.cast_to::<f32>()?;
            let view = keys.try_as_plain_ram()?;
            Self::Floats(places(view.as_slice::<f32>()?.iter().map(|key| bits(*key))))
        } else {
            let keys = keys.cast_to::<i64>()?;
            let view = keys.try_as_plain_ram()?;
            Self::Integers(places(view.as_slice::<i64>()?.iter().copied()))
        })
    }

    /// The place of each element.
    fn find(&self, elements: &Tensor) -> TractResult<Vec<Option<usize>>> {
        Ok(match self {
            Self::Texts(places) => {
                let view = elements.try_as_plain_ram()?;
                view.as_slice::<String>()?.iter().map(|text| places.get(text).copied()).collect()
            }
            Self::Integers(places) => {
                let elements = elements.cast_to::<i64>()?;
                let view = elements.try_as_plain_ram()?;
                view.as_slice::<i64>()?.iter().map(|number| places.get(number).copied()).collect()
            }
            Self::Floats(places) => {
                let elements = elements.cast_to::<f32>()?;
                let view = elements.try_as_plain_ram()?;
                let view = view.as_slice::<f32>()?;
                view.iter().map(|number| places.get(&bits(*number)).copied()).collect()
            }
        })
    }

    fn are_texts(&self) -> bool {
        matches!(self, Self::Texts(_))
    }
}

/// Values for keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lookup {
    keys: Keys,
    /// By the place of the key; the last one is for all others.
    values: Arc<Tensor>,
}

impl Lookup {
    pub(super) fn new(keys: &Tensor, values: &Tensor, default: &Tensor) -> TractResult<Self> {
        let values = values.cast_to_dt(served(values.datum_type()))?;
        let default = default.cast_to_dt(values.datum_type())?.into_owned();
        let default = default.into_shape(&[1])?;
        let values = Tensor::stack_tensors(0, &[&*values, &default])?;
        Ok(Self { keys: Keys::new(keys)?, values: values.into_arc_tensor() })
    }
}

impl Lookup {
    /// The values for the indexes of a list.
    pub(super) fn of_indexes(values: &Tensor) -> TractResult<Self> {
        let indexes: Vec<i64> = (0..values.len() as i64).collect();
        Self::new(&tensor1(&indexes), values, &values.slice(0, 0, 1)?)
    }
}

/// The type of values.
fn served(datum_type: DatumType) -> DatumType {
    if datum_type == String::datum_type() {
        datum_type
    } else if datum_type.is_float() {
        f32::datum_type()
    } else {
        i64::datum_type()
    }
}

/// A column for each category, 1 for that of the element.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OneHot {
    keys: Keys,
    count: usize,
    /// Others are zeros.
    allows_others: bool,
}

impl Expansion for Lookup {
    fn name(&self) -> StaticName {
        "LabelEncoder".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, self.values.datum_type())?;
        solver.equals(&outputs[0].shape, &inputs[0].shape)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Expansion for OneHot {
    fn name(&self) -> StaticName {
        "OneHotEncoder".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, f32::datum_type())?;
        solver.given(&inputs[0].shape, move |solver, mut shape| {
            shape.push(self.count.to_dim());
            solver.equals(&outputs[0].shape, shape)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Lookup {
    fn name(&self) -> StaticName {
        "Lookup".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Lookup {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let other = self.values.len() - 1;
        let places = self.keys.find(&input)?;
        let places = places.into_iter().map(|place| place.unwrap_or(other));
        let values = self.values.try_as_plain_ram()?;
        let output = if self.values.datum_type() == String::datum_type() {
            let values = values.as_slice::<String>()?;
            tensor1(&places.map(|place| values[place].clone()).collect::<Vec<_>>())
        } else if self.values.datum_type() == i64::datum_type() {
            let values = values.as_slice::<i64>()?;
            tensor1(&places.map(|place| values[place]).collect::<Vec<_>>())
        } else {
            let values = values.as_slice::<f32>()?;
            tensor1(&places.map(|place| values[place]).collect::<Vec<_>>())
        };
        Ok(tvec!(output.into_shape(input.shape())?.into_tvalue()))
    }
}

impl TypedOp for Lookup {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let are_texts = inputs[0].datum_type == String::datum_type();
        ensure!(are_texts == self.keys.are_texts(), "keys are of another type than the input");
        Ok(tvec!(self.values.datum_type().fact(inputs[0].shape.iter())))
    }

    as_op!();
}

impl Op for OneHot {
    fn name(&self) -> StaticName {
        "OneHot".into()
    }

    op_as_typed_op!();
}

impl EvalOp for OneHot {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let places = self.keys.find(&input)?;
        let mut columns = vec![0_f32; places.len() * self.count];
        for (row, place) in columns.chunks_exact_mut(self.count.max(1)).zip(places) {
            match place {
                Some(place) => row[place] = 1.0,
                None => ensure!(self.allows_others, "a value is none of the categories"),
            }
        }
        let shape = [input.shape(), &[self.count]].concat();
        Ok(tvec!(Tensor::from_shape(&shape, &columns)?.into_tvalue()))
    }
}

impl TypedOp for OneHot {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let are_texts = inputs[0].datum_type == String::datum_type();
        ensure!(
            are_texts == self.keys.are_texts(),
            "categories are of another type than the input"
        );
        let mut shape: TVec<TDim> = inputs[0].shape.to_tvec();
        shape.push(self.count.to_dim());
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}
