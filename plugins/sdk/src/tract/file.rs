//! ONNX files before their graph is optimised.

mod outputs;

use std::fmt;

use tract_onnx::Onnx;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Size;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::pb::{ModelProto, TypeProto};
use tract_onnx::prelude::{Datum, DatumType, Framework as _, f16};

use super::{Dimension, ModelInput};
use crate::{Datatype, Error};

/// The most nodes that an error names.
const MAX_MISSING: usize = 10;

/// An ONNX file, to be given to [`ModelBuilder::build`](crate::ModelBuilder::build).
pub struct OnnxFile(pub(super) ModelProto);

/// An input or an output of a graph.
#[derive(Debug, Clone)]
pub struct GraphValue {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions, beginning with the outermost.
    pub shape: Vec<Dimension>,
}

impl OnnxFile {
    /// Parse a file.
    ///
    /// # Errors
    /// The bytes are not ONNX.
    pub fn read(reader: &mut dyn std::io::Read) -> Result<Self, Error> {
        let file = tract_onnx::onnx().proto_model_for_read(reader);
        let file = file.map_err(|error| Error::new(format!("it is not ONNX: {error:#}")))?;
        match &file.graph {
            Some(graph) if !graph.node.is_empty() => Ok(Self(file)),
            _ => Err(Error::new("it is not ONNX: it has no graph")),
        }
    }

    /// The inputs, without those that only give a weight another name. A dimension that the file
    /// does not name has a name of its own.
    ///
    /// # Errors
    /// An input is no tensor, its shape is not known, or its elements are of a type that
    /// signatures do not have.
    pub fn inputs(&self) -> Result<Vec<GraphValue>, Error> {
        let graph = self.0.graph.as_ref().ok_or_else(|| Error::new("it has no graph"))?;
        let is_weight =
            |name: &str| graph.initializer.iter().any(|initializer| initializer.name == name);
        let inputs = graph.input.iter().filter(|input| !is_weight(&input.name));
        inputs.map(|input| value(&input.name, input.r#type.as_ref())).collect()
    }

    /// Which nodes have operators that tract lacks; empty if there are none.
    pub(super) fn missing_operators(&self, onnx: &Onnx) -> String {
        let nodes = self.0.graph.iter().flat_map(|graph| &graph.node);
        let missing = nodes.filter(|node| !onnx.op_register.0.contains_key(&node.op_type));
        let missing = missing.map(|node| {
            let name =
                if node.name.is_empty() { node.output.join(", ") } else { node.name.clone() };
            format!("tract has no operator {} (node {name:?})", node.op_type)
        });
        missing.take(MAX_MISSING).collect::<Vec<_>>().join("; ")
    }

    /// Whether values are quantised by the range that they have in a call, so that the outputs of a
    /// row depend on the other rows of its batch.
    pub fn quantises_dynamically(&self) -> bool {
        let mut nodes = self.0.graph.iter().flat_map(|graph| &graph.node);
        nodes.any(|node| node.op_type == "DynamicQuantizeLinear")
    }

    /// How many rows a constant has from which an input selects some, as tokens select embeddings;
    /// `None` if the input selects none directly.
    pub fn embeddings(&self, input: &str) -> Option<usize> {
        let graph = self.0.graph.as_ref()?;
        let rows = graph.node.iter().filter_map(|node| match &node.input[..] {
            [table, index] if node.op_type == "Gather" && index == input => {
                let table = graph.initializer.iter().find(|constant| constant.name == *table)?;
                let axis = node.attribute.iter().find(|attribute| attribute.name == "axis");
                let is_first = axis.is_none_or(|axis| axis.i == 0);
                usize::try_from(*table.dims.first().filter(|_| is_first)?).ok()
            }
            _ => None,
        });
        rows.min()
    }

    /// The names of the outputs.
    pub fn outputs(&self) -> Vec<String> {
        let outputs = self.0.graph.iter().flat_map(|graph| &graph.output);
        outputs.map(|output| output.name.clone()).collect()
    }

    /// Let these values be the outputs, in this order, and remove what they do not depend on. They may
    /// be any values that are computed in the graph.
    ///
    /// # Errors
    /// The graph computes no value of such a name.
    pub fn keep_outputs(&mut self, names: &[String]) -> Result<(), Error> {
        let graph = self.0.graph.as_mut().ok_or_else(|| Error::new("it has no graph"))?;
        outputs::keep(graph, names).map_err(Error::new)
    }
}

impl fmt::Debug for OnnxFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OnnxFile").finish_non_exhaustive()
    }
}

fn value(name: &str, of: Option<&TypeProto>) -> Result<GraphValue, Error> {
    let wrong = |what: &str| Error::new(format!("input {name:?} {what}"));
    let Some(Type::TensorType(tensor)) = of.and_then(|of| of.value.as_ref()) else {
        return Err(wrong("is no tensor"));
    };
    let elements = DataType::try_from(tensor.elem_type).unwrap_or(DataType::Undefined);
    let datatype = datatype(elements).ok_or_else(|| {
        wrong(&format!("has elements of type {}, which are not served", elements.as_str_name()))
    })?;
    let shape = tensor.shape.as_ref().ok_or_else(|| wrong("has no shape"))?;
    let dimensions = shape.dim.iter().enumerate().map(|(axis, dimension)| match &dimension.value {
        Some(Size::DimValue(size)) if *size > 0 => {
            usize::try_from(*size).map(Dimension::Fixed).map_err(|_error| wrong("is too large"))
        }
        Some(Size::DimParam(symbol)) if !symbol.is_empty() => Ok(Dimension::Named(symbol.clone())),
        _ => Ok(Dimension::Named(format!("{name}_{axis}"))),
    });
    Ok(GraphValue { name: name.to_owned(), datatype, shape: dimensions.collect::<Result<_, _>>()? })
}

fn datatype(elements: DataType) -> Option<Datatype> {
    Some(match elements {
        DataType::Bool => Datatype::Bool,
        DataType::Uint8 => Datatype::Uint8,
        DataType::Int8 => Datatype::Int8,
        DataType::Uint16 => Datatype::Uint16,
        DataType::Int16 => Datatype::Int16,
        DataType::Uint32 => Datatype::Uint32,
        DataType::Int32 => Datatype::Int32,
        DataType::Uint64 => Datatype::Uint64,
        DataType::Int64 => Datatype::Int64,
        DataType::Float16 => Datatype::Fp16,
        DataType::Float => Datatype::Fp32,
        DataType::Double => Datatype::Fp64,
        DataType::String => Datatype::Bytes,
        _ => return None,
    })
}

impl GraphValue {
    /// The declaration of this input for a [`ModelBuilder`](crate::ModelBuilder).
    pub fn model_input(&self) -> ModelInput {
        ModelInput { datum_type: self.datum_type(), shape: self.shape.clone() }
    }

    /// The type of its elements in tract.
    pub fn datum_type(&self) -> DatumType {
        datum_type(self.datatype)
    }
}

/// The type of tract's tensors. Byte strings are texts.
fn datum_type(datatype: Datatype) -> DatumType {
    match datatype {
        Datatype::Bool => bool::datum_type(),
        Datatype::Uint8 => u8::datum_type(),
        Datatype::Int8 => i8::datum_type(),
        Datatype::Uint16 => u16::datum_type(),
        Datatype::Int16 => i16::datum_type(),
        Datatype::Uint32 => u32::datum_type(),
        Datatype::Int32 => i32::datum_type(),
        Datatype::Uint64 => u64::datum_type(),
        Datatype::Int64 => i64::datum_type(),
        Datatype::Fp16 => f16::datum_type(),
        Datatype::Fp32 | Datatype::Bf16 => f32::datum_type(),
        Datatype::Fp64 => f64::datum_type(),
        Datatype::Bytes => String::datum_type(),
    }
}
