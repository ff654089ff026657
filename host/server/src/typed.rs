//! Makes a gRPC service of a signature: its names and field numbers, its `.proto` file, and the
//! conversion of its messages to and from tensors. The service is created when a version is loaded,
//! without a compiler.
//!
//! | of the signature | in protobuf |
//! |---|---|
//! | model `text-direction`, versions `^1` | package `guesthouse.text_direction.v1`, service `TextDirection` |
//! | the n-th input or output | field number n |
//! | what the host adds | numbers from [`FIRST_HOST_FIELD_NUMBER`] on |
//! | BOOL; UINT8, UINT16, UINT32; UINT64 | `bool`; `uint32`; `uint64` |
//! | INT8, INT16, INT32; INT64 | `int32`; `int64` |
//! | FP16, BF16, FP32; FP64 | `float`; `double` |
//! | BYTES that are texts; others | `string`; `bytes` |
//! | a row without dimensions | `optional`: explicit presence distinguishes a zero from an omitted value |
//! | a row whose shape follows from the number of its elements | `repeated`, row-major |
//! | any other row | a message with `shape` and `values` |
//!
//! Field numbers are positions, so positions are part of the contract between versions
//! ([`guesthouse_model::contract`]). Messages are decoded and encoded directly in the wire format,
//! without a tree of values in between, which could be dozens of times as large as the message.

mod decode;
mod descriptor;
mod encode;
mod names;
mod print;
mod range;
#[cfg(test)]
mod tests;
mod wire;

use prost_types::FileDescriptorProto;
use prost_types::field_descriptor_proto::Type;
use wire::WireType;

pub use decode::{DecodeError, decode_batch};
pub use encode::{
    EncodedRows, MessageTooLarge, encode_batch, encode_stream_error, encode_stream_response,
};
pub use names::package_root;
pub use range::CompatibleRange;
pub use wire::WireError;

use guesthouse_model::{Datatype, Field, MAX_FIELDS, ModelName, Signature};

/// The number of the first field that the host adds: higher than any position in a signature, and
/// lower than 2048, from which on a field number takes another byte.
pub const FIRST_HOST_FIELD_NUMBER: u32 = 2000;

const _: () = assert!(
    MAX_FIELDS < FIRST_HOST_FIELD_NUMBER as usize,
    "a place is never a number of the host's"
);

/// The field number of `model_version`.
const MODEL_VERSION: u32 = FIRST_HOST_FIELD_NUMBER;

/// The gRPC service of compatible versions of a model.
#[derive(Debug, Clone)]
pub struct ModelService {
    package: String,
    name: String,
    inputs: Vec<MessageField>,
    outputs: Vec<MessageField>,
    file: FileDescriptorProto,
}

/// A field of the signature as a field of a message. Its number is its position, from 1 on.
#[derive(Debug, Clone)]
struct MessageField {
    /// The name in protobuf.
    name: String,
    /// The name in the signature.
    of: String,
    datatype: Datatype,
    scalar: Scalar,
    form: FieldEncoding,
}

/// How the elements of a row are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FieldEncoding {
    /// A single value.
    Single,
    /// A repeated field; the row has this shape.
    Flat(Vec<Option<u32>>),
    /// A message with the shape and the values.
    Shaped,
}

/// The protobuf type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scalar {
    Bool,
    Uint32,
    Uint64,
    Int32,
    Int64,
    Float,
    Double,
    String,
    Bytes,
}

impl ModelService {
    /// Create the service of compatible versions from the signature of one of them.
    pub fn new(model: &ModelName, class: CompatibleRange, signature: &Signature) -> Self {
        let (package, name) = (names::package(model, class), names::service(model));
        let inputs = members(&signature.inputs, &[]);
        let outputs = members(&signature.outputs, &[descriptor::MODEL_VERSION_NAME]);
        let mut service =
            Self { package, name, inputs, outputs, file: FileDescriptorProto::default() };
        service.file = descriptor::file(&service, model, class, signature);
        service
    }

    /// The name with the package: `guesthouse.toxicity.v1.Toxicity`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }

    /// The descriptor for reflection; texts of the signature are comments.
    pub fn descriptor(&self) -> &FileDescriptorProto {
        &self.file
    }

    /// The `.proto` file.
    pub fn proto(&self) -> String {
        print::file(&self.file)
    }
}

fn members(fields: &[Field], own: &[&str]) -> Vec<MessageField> {
    let names = names::fields(fields.iter().map(|field| field.name.as_str()), own);
    let member = |(field, name): (&Field, String)| MessageField {
        name,
        of: field.name.clone(),
        datatype: field.datatype,
        scalar: Scalar::from_field(field),
        form: FieldEncoding::from_field(field),
    };
    fields.iter().zip(names).map(member).collect()
}

impl FieldEncoding {
    fn from_field(field: &Field) -> Self {
        if field.row_shape.is_empty() {
            Self::Single
        } else if field.shape_follows_from_count() {
            Self::Flat(field.row_shape.clone())
        } else {
            Self::Shaped
        }
    }
}

impl Scalar {
    const ALL: [Self; 9] = [
        Self::Bool,
        Self::Uint32,
        Self::Uint64,
        Self::Int32,
        Self::Int64,
        Self::Float,
        Self::Double,
        Self::String,
        Self::Bytes,
    ];

    fn from_field(field: &Field) -> Self {
        match field.datatype {
            Datatype::Bool => Self::Bool,
            Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => Self::Uint32,
            Datatype::Uint64 => Self::Uint64,
            Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => Self::Int32,
            Datatype::Int64 => Self::Int64,
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 => Self::Float,
            Datatype::Fp64 => Self::Double,
            Datatype::Bytes if field.is_text() => Self::String,
            Datatype::Bytes => Self::Bytes,
        }
    }

    fn kind(self) -> Type {
        match self {
            Self::Bool => Type::Bool,
            Self::Uint32 => Type::Uint32,
            Self::Uint64 => Type::Uint64,
            Self::Int32 => Type::Int32,
            Self::Int64 => Type::Int64,
            Self::Float => Type::Float,
            Self::Double => Type::Double,
            Self::String => Type::String,
            Self::Bytes => Type::Bytes,
        }
    }

    /// The name of the message with the shape and the values.
    fn shaped(self) -> &'static str {
        match self {
            Self::Bool => "BoolTensor",
            Self::Uint32 => "Uint32Tensor",
            Self::Uint64 => "Uint64Tensor",
            Self::Int32 => "Int32Tensor",
            Self::Int64 => "Int64Tensor",
            Self::Float => "FloatTensor",
            Self::Double => "DoubleTensor",
            Self::String => "StringTensor",
            Self::Bytes => "BytesTensor",
        }
    }

    fn wire(self) -> WireType {
        match self {
            Self::Bool | Self::Uint32 | Self::Uint64 | Self::Int32 | Self::Int64 => {
                WireType::Varint
            }
            Self::Float => WireType::Fixed32,
            Self::Double => WireType::Fixed64,
            Self::String | Self::Bytes => WireType::Delimited,
        }
    }

    /// Whether repeated values are packed.
    fn is_packed(self) -> bool {
        !matches!(self, Self::String | Self::Bytes)
    }
}
