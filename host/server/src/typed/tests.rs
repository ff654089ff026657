//! Tests the service against independent compilers and readers of protobuf.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _, Value,
};
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use semver::Version;

use super::*;
use guesthouse_model::{Constraint, Tensor};

/// Keywords of the language, and names that only differ in case and `_`.
const ODD_NAMES: [&str; 40] = [
    "message",
    "rpc",
    "syntax",
    "import",
    "weak",
    "public",
    "package",
    "option",
    "inf",
    "nan",
    "repeated",
    "optional",
    "required",
    "bool",
    "string",
    "bytes",
    "float",
    "double",
    "int32",
    "uint64",
    "fixed32",
    "group",
    "oneof",
    "map",
    "extensions",
    "to",
    "max",
    "reserved",
    "enum",
    "extend",
    "service",
    "stream",
    "returns",
    "true",
    "false",
    "a_1",
    "a1",
    "a__1",
    "modelversion",
    "shape",
];

fn field_name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(&ODD_NAMES[..]).prop_map(str::to_owned),
        prop::sample::select(&ODD_NAMES[..]).prop_map(str::to_ascii_uppercase),
        "[a-zA-Z][a-zA-Z0-9_]{0,6}",
    ]
}

fn field() -> impl Strategy<Value = Field> {
    let sizes = prop::collection::vec(prop::option::of(0_u32..4), 0..4);
    let description = "[ -~\n\u{2028}\u{202e}ä/*]{0,30}";
    (field_name(), prop::sample::select(&Datatype::ALL[..]), sizes, description, any::<bool>())
        .prop_map(|(name, datatype, row_shape, description, is_text)| {
            let constraints = match datatype {
                Datatype::Bytes if is_text => {
                    vec![Constraint::Text, Constraint::OneOf(vec!["a\n*/".to_owned()])]
                }
                _ => vec![],
            };
            let mut field =
                Field { name, description, datatype, row_shape, constraints, default: None };
            if let (false, Some(size)) = (field.row_shape.contains(&None), datatype.element_size())
            {
                let elements: u32 = field.row_shape.iter().flatten().product();
                field.default = is_text.then(|| vec![0; elements as usize * size]);
            }
            field
        })
}

fn fields() -> impl Strategy<Value = Vec<Field>> {
    prop::collection::vec(field(), 1..8).prop_map(|fields| {
        let by_name = fields.into_iter().map(|field| (field.name.to_ascii_lowercase(), field));
        by_name.collect::<BTreeMap<_, _>>().into_values().collect()
    })
}

fn signature() -> impl Strategy<Value = Signature> {
    (fields(), fields()).prop_map(|(inputs, outputs)| Signature {
        inputs,
        outputs,
        max_batch_size: 8,
    })
}

fn model_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9_-]{0,12}",
        prop::sample::select(&ODD_NAMES[..]).prop_map(str::to_owned),
        Just("predict-request".to_owned()),
        Just("predict-stream-response".to_owned()),
        Just("int32_tensor".to_owned()),
    ]
}

fn service_of(model: &str, version: &str, signature: &Signature) -> ModelService {
    let version: Version = version.parse().unwrap();
    ModelService::new(&model.parse().unwrap(), CompatibleRange::from_version(&version), signature)
}

/// Compile the text.
fn compiled(text: &str, name: &str) -> FileDescriptorProto {
    let file = protox::file::File::from_source(name, text)
        .unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    struct Only(protox::file::File);
    impl protox::file::FileResolver for Only {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            if name == self.0.name() {
                Ok(self.0.clone())
            } else {
                Err(protox::Error::file_not_found(name))
            }
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Only(file));
    compiler.open_file(name).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    let set = compiler.file_descriptor_set();
    set.file.into_iter().find(|file| file.name() == name).unwrap()
}

/// A descriptor without comments and source positions.
fn essence(file: &FileDescriptorProto) -> FileDescriptorProto {
    FileDescriptorProto { source_code_info: None, ..file.clone() }
}

fn pool(service: &ModelService) -> DescriptorPool {
    let file = vec![service.descriptor().clone()];
    DescriptorPool::from_file_descriptor_set(FileDescriptorSet { file }).unwrap()
}

fn message(service: &ModelService, name: &str) -> MessageDescriptor {
    pool(service).get_message_by_name(&format!("{}.{name}", service.package)).unwrap()
}

proptest! {
    /// Compiling the text results in the descriptor.
    #[test]
    fn the_proto_text_compiles_to_the_descriptor(
        signature in signature(),
        model in model_name(),
        version in prop::sample::select(&["1.2.3", "0.1.0", "0.0.7", "12.0.0-rc.1"][..]),
    ) {
        let service = service_of(&model, version, &signature);
        let descriptor = service.descriptor();
        let file = compiled(&service.proto(), descriptor.name());
        prop_assert_eq!(essence(&file), essence(descriptor));
        let found = pool(&service).get_service_by_name(&service.full_name()).is_some();
        prop_assert!(found);
    }

    /// Messages that another implementation has encoded are decoded to the same values.
    #[test]
    fn rows_of_other_implementations_are_decoded(
        (signature, rows) in signature().prop_flat_map(|signature| {
            let rows = signature.inputs.iter().map(row).collect::<Vec<_>>();
            (Just(signature), rows)
        }),
    ) {
        let service = service_of("m", "1.0.0", &signature);
        let mut message = DynamicMessage::new(message(&service, "PredictRequest"));
        for ((field, tensor), number) in signature.inputs.iter().zip(&rows).zip(1..) {
            if let Some(tensor) = tensor {
                set(&mut message, number, field, tensor);
            }
        }
        let bytes = prost::Message::encode_to_vec(&message);
        let read = service.decode_request(&bytes).unwrap();
        // An empty row and an omitted one have the same encoding.
        let given = |(field, tensor): (&Field, Option<Tensor>)| match tensor {
            None if FieldEncoding::from_field(field) == FieldEncoding::Single || FieldEncoding::from_field(field) == FieldEncoding::Shaped => None,
            None if !field.row_shape.contains(&None) && !field.row_shape.contains(&Some(0)) => None,
            None => Some(empty(field)),
            tensor => tensor,
        };
        let wanted: Vec<_> = signature.inputs.iter().zip(rows).filter_map(given).collect();
        prop_assert_eq!(read, wanted);
    }

    /// Encoded messages are decoded by another implementation to the same values.
    #[test]
    fn encoded_rows_are_decoded_by_other_implementations(
        (signature, rows) in signature().prop_flat_map(|signature| {
            let rows = signature.outputs.iter().map(row).collect::<Vec<_>>();
            (Just(signature), rows)
        }),
    ) {
        let service = service_of("m", "1.0.0", &signature);
        let outputs: Vec<_> = rows.iter().flatten().cloned().collect();
        prop_assume!(!outputs.is_empty());
        let written: Vec<_> = service.encode_rows(&Version::new(1, 2, 3), &outputs).map(Result::unwrap).collect();
        prop_assert_eq!(written.len(), 1);
        let descriptor = message(&service, "PredictResponse");
        let is = DynamicMessage::decode(descriptor.clone(), &written[0][..]).unwrap();
        let mut wanted = DynamicMessage::new(descriptor);
        for ((field, tensor), number) in signature.outputs.iter().zip(&rows).zip(1..) {
            if let Some(tensor) = tensor {
                set(&mut wanted, number, field, tensor);
            }
        }
        wanted.set_field_by_number(MODEL_VERSION, Value::String("1.2.3".to_owned()));
        // Compared by bytes, which distinguish NaNs and signed zeros.
        prop_assert_eq!(prost::Message::encode_to_vec(&is), prost::Message::encode_to_vec(&wanted));
        prop_assert_eq!(is.unknown_fields().count(), 0);
    }

    /// Decoding arbitrary bytes does not panic, and the resulting tensors are valid and bounded.
    #[test]
    fn arbitrary_bytes_are_decoded_or_rejected(
        signature in signature(),
        bytes in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let service = service_of("m", "1.0.0", &signature);
        if let Ok(tensors) = service.decode_request(&bytes) {
            for tensor in &tensors {
                prop_assert_eq!(tensor.check(), Ok(()));
                prop_assert!(tensor.data.len() <= bytes.len() * 8);
            }
        }
        let _ = decode_batch(&bytes, 3);
    }
}

fn empty(field: &Field) -> Tensor {
    let mut shape = vec![1];
    shape.extend(field.row_shape.iter().map(|size| size.map_or(0, u64::from)));
    Tensor { name: field.name.clone(), datatype: field.datatype, shape, data: vec![].into() }
}

/// A row of a field, or `None`.
fn row(field: &Field) -> impl Strategy<Value = Option<Tensor>> + use<> {
    let field = field.clone();
    let sizes: Vec<_> =
        field.row_shape.iter().map(|size| size.map_or(0..4, |size| size..size + 1)).collect();
    let row = sizes.prop_flat_map(move |sizes| {
        let elements = sizes.iter().product::<u32>() as usize;
        let (name, datatype, is_text) = (field.name.clone(), field.datatype, field.is_text());
        let shape: Vec<_> = [1].into_iter().chain(sizes.into_iter().map(u64::from)).collect();
        let element = any::<[u8; 8]>().prop_map(move |bytes| match datatype {
            Datatype::Bool => vec![bytes[0] & 1],
            Datatype::Bytes if is_text => [&3_u32.to_le_bytes()[..], b"a\xc3\xa4"].concat(),
            Datatype::Bytes => [&2_u32.to_le_bytes()[..], &bytes[..2]].concat(),
            // Narrowing makes NaNs quiet.
            Datatype::Fp16 => {
                (u16::from_le_bytes([bytes[0], bytes[1]]) & 0xbfff).to_le_bytes().to_vec()
            }
            Datatype::Bf16 => {
                (u16::from_le_bytes([bytes[0], bytes[1]]) & 0xbfff).to_le_bytes().to_vec()
            }
            datatype => bytes[..datatype.element_size().unwrap()].to_vec(),
        });
        prop::collection::vec(element, elements).prop_map(move |data| {
            let (name, shape, data) = (name.clone(), shape.clone(), data.concat());
            Tensor { name, datatype, shape, data: data.into() }
        })
    });
    prop::option::weighted(0.8, row)
}

/// Set a field to a row by reflection.
fn set(message: &mut DynamicMessage, number: u32, field: &Field, tensor: &Tensor) {
    let values = values(field, tensor);
    let value = match FieldEncoding::from_field(field) {
        FieldEncoding::Single => values.into_iter().next().unwrap(),
        FieldEncoding::Flat(_) => Value::List(values),
        FieldEncoding::Shaped => {
            let kind = message.descriptor().get_field(number).unwrap().kind();
            let mut shaped = DynamicMessage::new(kind.as_message().unwrap().clone());
            let shape = tensor.shape[1..].iter().map(|size| Value::U64(*size)).collect();
            shaped.set_field_by_name("shape", Value::List(shape));
            shaped.set_field_by_name("values", Value::List(values));
            Value::Message(shaped)
        }
    };
    message.set_field_by_number(number, value);
}

fn values(field: &Field, tensor: &Tensor) -> Vec<Value> {
    macro_rules! each {
        ($type:ty, $value:expr) => {
            tensor
                .data
                .as_chunks()
                .0
                .iter()
                .map(|bytes| $value(<$type>::from_le_bytes(*bytes)))
                .collect()
        };
    }
    let narrow = |value: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "it has been wider before")]
        Value::F32(value as f32)
    };
    match tensor.datatype {
        Datatype::Bool => tensor.data.iter().map(|flag| Value::Bool(*flag == 1)).collect(),
        Datatype::Uint8 => each!(u8, |value| Value::U32(u32::from(value))),
        Datatype::Uint16 => each!(u16, |value| Value::U32(u32::from(value))),
        Datatype::Uint32 => each!(u32, Value::U32),
        Datatype::Uint64 => each!(u64, Value::U64),
        Datatype::Int8 => each!(i8, |value| Value::I32(i32::from(value))),
        Datatype::Int16 => each!(i16, |value| Value::I32(i32::from(value))),
        Datatype::Int32 => each!(i32, Value::I32),
        Datatype::Int64 => each!(i64, Value::I64),
        Datatype::Fp16 | Datatype::Bf16 => tensor.numbers().map(narrow).collect(),
        Datatype::Fp32 => each!(f32, Value::F32),
        Datatype::Fp64 => each!(f64, Value::F64),
        Datatype::Bytes => guesthouse_model::bytes_elements(&tensor.data)
            .map(|bytes| match field.is_text() {
                true => Value::String(String::from_utf8(bytes.to_vec()).unwrap()),
                false => Value::Bytes(bytes.to_vec().into()),
            })
            .collect(),
    }
}

fn plain(name: &str, datatype: Datatype, row_shape: &[Option<u32>]) -> Field {
    let (name, row_shape) = (name.to_owned(), row_shape.to_vec());
    let (description, constraints) = (String::new(), Vec::new());
    Field { name, description, datatype, row_shape, constraints, default: None }
}

#[test]
fn the_proto_file_is_readable() {
    let mut text = plain("text", Datatype::Bytes, &[]);
    text.description = "the text to judge".to_owned();
    text.constraints = vec![
        Constraint::Text,
        Constraint::Stripped,
        Constraint::Length { minimum: 1, maximum: 2000 },
    ];
    let mut label = plain("label", Datatype::Bytes, &[]);
    label.constraints =
        vec![Constraint::Text, Constraint::OneOf(vec!["clean".to_owned(), "toxic".to_owned()])];
    let outputs = vec![
        label,
        plain("score", Datatype::Fp32, &[]),
        plain("map", Datatype::Fp64, &[None, None]),
    ];
    let signature = Signature { inputs: vec![text], outputs, max_batch_size: 8 };
    let text = service_of("toxicity", "1.0.0", &signature).proto();
    let parts = [
        "syntax = \"proto3\";\n\npackage guesthouse.toxicity.v1;\n",
        "service Toxicity {\n  // One row.\n  rpc Predict(PredictRequest) returns (PredictResponse);\n",
        "  rpc PredictStream(stream PredictRequest) returns (stream PredictStreamResponse);\n",
        "  rpc BatchPredict(BatchPredictRequest) returns (BatchPredictResponse);\n}\n",
        "message PredictRequest {\n  // the text to judge\n  // (BYTES; white space at both ends is removed; \
         length 1 to 2000)\n  optional string text = 1;\n}\n",
        "  // (BYTES; one of clean, toxic)\n  optional string label = 1;\n",
        "  optional float score = 2;\n  // (FP64[any, any])\n  DoubleTensor map = 3;\n",
        "  // The version that answers.\n  string model_version = 2000;\n}\n",
        "  oneof outcome {\n    // The row has been predicted.\n    PredictResponse response = 1;\n",
        "  repeated uint64 shape = 1;\n",
    ];
    for part in parts {
        assert!(text.contains(part), "{part}\n is not in\n{text}");
    }
}

#[test]
fn numbers_out_of_range_are_rejected() {
    let read = |datatype, bytes: &[u8]| {
        let inputs = vec![plain("x", datatype, &[])];
        let outputs = vec![plain("y", Datatype::Bool, &[])];
        service_of("m", "1.0.0", &Signature { inputs, outputs, max_batch_size: 1 })
            .decode_request(bytes)
    };
    let varint = |value: i64| {
        let mut bytes = vec![0x08];
        wire::put_varint(u64::from_le_bytes(value.to_le_bytes()), &mut bytes);
        bytes
    };
    let is_unacceptable = |outcome: Result<Vec<Tensor>, DecodeError>| {
        matches!(
            outcome,
            Err(DecodeError::Row(guesthouse_model::record::RecordError::Unacceptable(_)))
        )
    };
    for (datatype, good, bad) in [
        (Datatype::Uint8, vec![0, 255], vec![256, -1]),
        (Datatype::Int8, vec![-128, 127], vec![128, -129]),
        (Datatype::Uint16, vec![65535], vec![65536]),
        (Datatype::Int16, vec![-32768, 32767], vec![32768]),
        // Truncated, as protobuf requires, and never rejected.
        (Datatype::Uint32, vec![i64::from(u32::MAX), i64::MIN], vec![]),
        (Datatype::Int32, vec![i64::from(i32::MIN), i64::MIN], vec![]),
        (Datatype::Bool, vec![0, 1, 2, -1], vec![]),
    ] {
        for value in good {
            let tensors = read(datatype, &varint(value)).unwrap();
            assert_eq!(tensors[0].check(), Ok(()), "{datatype:?} {value}");
        }
        for value in bad {
            assert!(is_unacceptable(read(datatype, &varint(value))), "{datatype:?} {value}");
        }
    }
    let float = |value: f32| [&[0x0d][..], &value.to_le_bytes()].concat();
    let narrow = |datatype, value: f32| {
        let read = read(datatype, &float(value)).map(|mut tensors| tensors.remove(0).data);
        read.map(|data| u16::from_le_bytes(data[..].try_into().unwrap()))
    };
    let (half, brain) = (Datatype::Fp16, Datatype::Bf16);
    for (datatype, value, bits) in [
        (half, 1.5, 0x3e00_u16),
        (half, 65519.996, 0x7bff),
        (half, f32::NEG_INFINITY, 0xfc00),
        // Ties round to even.
        (half, 1.0 + 2_f32.powi(-11), 0x3c00),
        (half, 1.0 + 3.0 * 2_f32.powi(-11), 0x3c02),
        (half, 2_f32.powi(-25), 0),
        (half, 3.0 * 2_f32.powi(-25), 2),
        (half, -1e-30, 0x8000),
        (brain, 1.0 + 2_f32.powi(-8), 0x3f80),
        (brain, 1.0 + 3.0 * 2_f32.powi(-8), 0x3f82),
        (brain, f32::INFINITY, 0x7f80),
    ] {
        assert_eq!(narrow(datatype, value), Ok(bits), "{datatype:?} {value}");
    }
    for (datatype, value) in [(half, 65520.0), (half, -1e6), (brain, f32::MAX)] {
        assert!(narrow(datatype, value).is_err(), "{datatype:?} {value}");
    }
    assert!(narrow(half, f32::NAN).unwrap() & 0x7fff > 0x7c00);
    // The last value counts, and unknown fields are skipped.
    let twice = [varint(1), vec![0xa2, 0x06, 1, 0], varint(7)].concat();
    assert_eq!(read(Datatype::Uint8, &twice).unwrap()[0].data[..], [7]);
    assert_eq!(read(Datatype::Uint8, &[0x0a, 1, 7]), Err(DecodeError::Wire(WireError::Type)));
}

#[test]
fn the_number_of_elements_determines_flat_shapes() {
    let read = |row_shape: &[Option<u32>], count: usize| {
        let inputs = vec![plain("x", Datatype::Uint8, row_shape)];
        let outputs = vec![plain("y", Datatype::Bool, &[])];
        let service = service_of("m", "1.0.0", &Signature { inputs, outputs, max_batch_size: 1 });
        let mut bytes = Vec::new();
        wire::put_delimited(1, &vec![1; count], &mut bytes);
        let tensors = service.decode_request(&bytes);
        tensors.map(|tensors| tensors.first().map(|tensor| tensor.shape.clone()))
    };
    assert_eq!(read(&[Some(2), Some(3)], 6), Ok(Some(vec![1, 2, 3])));
    assert_eq!(read(&[Some(2), None], 6), Ok(Some(vec![1, 2, 3])));
    assert_eq!(read(&[None, Some(2)], 0), Ok(Some(vec![1, 0, 2])));
    // As if it were absent: its default may apply.
    assert_eq!(read(&[Some(2)], 0), Ok(None));
    for (shape, count) in [(&[Some(2), Some(3)][..], 5), (&[Some(2), None], 5), (&[Some(2)], 3)] {
        let outcome = read(shape, count);
        assert!(matches!(outcome, Err(DecodeError::Row(_))), "{shape:?} {count} {outcome:?}");
    }
    assert!(matches!(
        FieldEncoding::from_field(&plain("x", Datatype::Bool, &[None, Some(0)])),
        FieldEncoding::Shaped
    ));
}

#[test]
fn new_fields_do_not_change_existing_ones() {
    let old = Signature {
        inputs: vec![plain("a_1", Datatype::Fp32, &[])],
        outputs: vec![plain("y", Datatype::Fp32, &[])],
        max_batch_size: 1,
    };
    let mut new = old.clone();
    let optional = Field { default: Some(vec![0; 4]), ..plain("a1", Datatype::Fp32, &[]) };
    new.inputs.push(optional);
    new.outputs.push(plain("z", Datatype::Fp32, &[]));
    let (old, new) = (service_of("m", "1.0.0", &old), service_of("m", "1.1.0", &new));
    assert_eq!(old.full_name(), new.full_name());
    for name in ["PredictRequest", "PredictResponse"] {
        let fields = |service: &ModelService| -> BTreeMap<i32, _> {
            let messages = &service.descriptor().message_type;
            let message: &DescriptorProto = messages.iter().find(|it| it.name() == name).unwrap();
            message.field.iter().map(|field| (field.number(), field.clone())).collect()
        };
        let (old, new) = (fields(&old), fields(&new));
        assert_eq!(new.len(), old.len() + 1);
        for (number, field) in old {
            assert_eq!(new[&number].name(), field.name());
            assert_eq!(new[&number].r#type(), field.r#type());
        }
    }
}
