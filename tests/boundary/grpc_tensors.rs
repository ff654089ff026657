use std::collections::HashMap;

use guesthouse_tests::artifacts::{fixture_names, temporary_folder};
use guesthouse_tests::grpc::infer_parameter::ParameterChoice;
use guesthouse_tests::grpc::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use guesthouse_tests::grpc::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
};
use guesthouse_tests::{Server, Setup};
use tonic::Code;

use crate::grpc::{Client, assert_refused, client, keyed, raw_texts};

fn server(names: &[&str]) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    (Server::start(&Setup::fixtures(folder.path(), names)), folder)
}

/// A request with one input.
fn one(model: &str, datatype: &str, shape: &[i64]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: "INPUT0".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    }
}

async fn ask(client: &mut Client, message: ModelInferRequest) -> ModelInferResponse {
    client.model_infer(keyed(message)).await.unwrap().into_inner()
}

/// Elements of a datatype with its extreme values: in raw form, and in the typed form if there is
/// one.
fn samples(datatype: &str) -> (Vec<u8>, Option<InferTensorContents>) {
    let mut contents = InferTensorContents::default();
    macro_rules! numbers {
        ($type:ty, $field:ident, $values:expr) => {{
            let values: [$type; 4] = $values;
            contents.$field = values.iter().map(|value| (*value).into()).collect();
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        }};
    }
    let raw: Vec<u8> = match datatype {
        "BOOL" => {
            contents.bool_contents = vec![true, false, false, true];
            vec![1, 0, 0, 1]
        }
        "INT8" => numbers!(i8, int_contents, [i8::MIN, -1, 0, i8::MAX]),
        "INT16" => numbers!(i16, int_contents, [i16::MIN, -1, 0, i16::MAX]),
        "INT32" => numbers!(i32, int_contents, [i32::MIN, -1, 0, i32::MAX]),
        "INT64" => numbers!(i64, int64_contents, [i64::MIN, -1, 0, i64::MAX]),
        "UINT8" => numbers!(u8, uint_contents, [0, 1, 2, u8::MAX]),
        "UINT16" => numbers!(u16, uint_contents, [0, 1, 2, u16::MAX]),
        "UINT32" => numbers!(u32, uint_contents, [0, 1, 2, u32::MAX]),
        "UINT64" => numbers!(u64, uint64_contents, [0, 1, 2, u64::MAX]),
        "FP32" => numbers!(f32, fp32_contents, [f32::MIN, -0.0, 1e-45, f32::INFINITY]),
        "FP64" => numbers!(f64, fp64_contents, [f64::MAX, -0.0, 5e-324, f64::NEG_INFINITY]),
        "BYTES" => {
            let elements: [&[u8]; 4] = [b"", b"\xff\x00", b"a", &[7; 300]];
            contents.bytes_contents = elements.map(<[u8]>::to_vec).to_vec();
            let length = |element: &[u8]| u32::try_from(element.len()).unwrap().to_le_bytes();
            elements.iter().flat_map(|it| [&length(it)[..], it].concat()).collect()
        }
        // One, the smallest subnormal, infinity, and a NaN with a payload.
        "FP16" => return (vec![0x00, 0x3c, 0x01, 0x00, 0x00, 0x7c, 0x55, 0x7e], None),
        "BF16" => return (vec![0x80, 0x3f, 0x01, 0x00, 0x80, 0x7f, 0x55, 0x7f], None),
        other => panic!("{other} is no datatype"),
    };
    (raw, Some(contents))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_round_trips_in_raw_and_typed_form() {
    let (server, _folder) = server(&[]);
    let mut client = client(&server).await;
    let names = fixture_names().into_iter().filter(|name| name.starts_with("identity_"));
    let mut seen = 0;
    for model in names.filter(|name| name != "identity_text") {
        let datatype = model.trim_start_matches("identity_").to_uppercase();
        let (raw, contents) = samples(&datatype);
        for shape in [[1, 4], [2, 2], [4, 1]] {
            let mut message = one(&model, &datatype, &shape);
            message.raw_input_contents = vec![raw.clone()];
            let answer = ask(&mut client, message).await;
            let output = &answer.outputs[0];
            assert_eq!((&output.datatype, &output.shape[..]), (&datatype, &shape[..]));
            assert_eq!(
                (&output.contents, &answer.raw_output_contents[..]),
                (&None, std::slice::from_ref(&raw))
            );
            let Some(contents) = &contents else { continue };
            let mut message = one(&model, &datatype, &shape);
            message.inputs[0].contents = Some(contents.clone());
            let answer = ask(&mut client, message).await;
            // Some clients read the typed contents, others the raw ones.
            assert_eq!(answer.outputs[0].contents.as_ref(), Some(contents), "{datatype}");
            assert_eq!(
                answer.raw_output_contents.as_slice(),
                std::slice::from_ref(&raw),
                "{datatype}"
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 14);
    let mut message = one("identity_fp16", "FP16", &[1, 1]);
    message.inputs[0].contents =
        Some(InferTensorContents { fp32_contents: vec![1.0], ..InferTensorContents::default() });
    let refused = client.model_infer(keyed(message)).await;
    assert_refused(refused, Code::InvalidArgument, "malformed_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_have_the_requested_order_and_form() {
    let (server, _folder) = server(&["simple"]);
    let mut client = client(&server).await;
    let input = |name: &str, value: i32| InferInputTensor {
        name: name.to_owned(),
        datatype: "INT32".to_owned(),
        shape: vec![1, 16],
        contents: Some(InferTensorContents { int_contents: vec![value; 16], ..Default::default() }),
        ..InferInputTensor::default()
    };
    let requested = |name: &str| InferRequestedOutputTensor {
        name: name.to_owned(),
        ..InferRequestedOutputTensor::default()
    };
    let message = ModelInferRequest {
        model_name: "simple".to_owned(),
        inputs: vec![input("INPUT1", 3), input("INPUT0", 10)],
        outputs: vec![requested("OUTPUT1"), requested("OUTPUT0")],
        ..ModelInferRequest::default()
    };
    let numbers = |answer: &ModelInferResponse| -> Vec<(String, i32)> {
        let each = answer.outputs.iter().map(|output| {
            (output.name.clone(), output.contents.as_ref().unwrap().int_contents[15])
        });
        each.collect()
    };
    let answer = ask(&mut client, message.clone()).await;
    assert_eq!(numbers(&answer), [("OUTPUT1".to_owned(), 7), ("OUTPUT0".to_owned(), 13)]);
    let form = |is_raw| {
        let choice = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(is_raw)) };
        let parameters = HashMap::from([("binary_data_output".to_owned(), choice)]);
        ModelInferRequest { parameters, ..message.clone() }
    };
    let typed = ask(&mut client, form(false)).await;
    assert!(typed.raw_output_contents.is_empty());
    assert_eq!(numbers(&typed), numbers(&answer));
    let raw = ask(&mut client, form(true)).await;
    assert_eq!(raw.raw_output_contents, answer.raw_output_contents);
    assert!(raw.outputs.iter().all(|output| output.contents.is_none()));
    let only = ModelInferRequest { outputs: vec![requested("OUTPUT0")], ..message.clone() };
    assert_eq!(numbers(&ask(&mut client, only).await), [("OUTPUT0".to_owned(), 13)]);
    for outputs in [vec!["OUTPUT2"], vec!["OUTPUT0", "OUTPUT0"]] {
        let outputs = outputs.into_iter().map(requested).collect();
        let refused =
            client.model_infer(keyed(ModelInferRequest { outputs, ..message.clone() })).await;
        assert_refused(refused, Code::InvalidArgument, "malformed_request");
    }
}

/// A request with one input of raw contents.
fn raw(model: &str, datatype: &str, shape: &[i64], raw: &[&[u8]]) -> ModelInferRequest {
    let mut message = one(model, datatype, shape);
    message.raw_input_contents = raw.iter().map(|raw| raw.to_vec()).collect();
    message
}

/// A request with one INT8 input of typed contents.
fn typed(contents: InferTensorContents) -> ModelInferRequest {
    let mut message = one("identity_int8", "INT8", &[1, 1]);
    message.inputs[0].contents = Some(contents);
    message
}

fn ints(int_contents: Vec<i32>) -> InferTensorContents {
    InferTensorContents { int_contents, ..InferTensorContents::default() }
}

type Bad = Vec<(&'static str, ModelInferRequest)>;

/// Requests whose parts contradict each other or are missing.
fn ill_composed() -> Bad {
    let (model, kind) = ("identity_int8", "INT8");
    let mut both = raw(model, kind, &[1, 1], &[b"a"]);
    both.inputs[0].contents = Some(ints(vec![1]));
    let mut twice = raw(model, kind, &[1, 1], &[b"a", b"a"]);
    twice.inputs.push(twice.inputs[0].clone());
    let mut half_raw = twice.clone();
    half_raw.raw_input_contents.pop();
    let mut unknown = raw(model, kind, &[1, 1], &[b"a"]);
    unknown.inputs[0].name = "INPUT1".to_owned();
    let mut shared = one(model, kind, &[0, 1]);
    let region = Some(ParameterChoice::StringParam("region".to_owned()));
    let region = InferParameter { parameter_choice: region };
    shared.inputs[0].parameters.insert("shared_memory_region".to_owned(), region);
    let mut valueless = raw(model, kind, &[1, 1], &[b"a"]);
    valueless.parameters.insert("priority".to_owned(), InferParameter::default());
    let mut crowded = raw(model, kind, &[1, 1], &[b"a"]);
    let value = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    crowded.parameters = (0..100).map(|number| (number.to_string(), value.clone())).collect();
    let mut several = ints(vec![1]);
    several.fp32_contents = vec![1.0];
    vec![
        ("fewer raw contents than inputs", half_raw),
        ("an input that is there twice", twice),
        ("contents and raw contents", both),
        ("an unknown input", unknown),
        ("an input in shared memory", shared),
        ("contents of two types", typed(several)),
        ("a parameter without a value", valueless),
        ("too many parameters", crowded),
    ]
}

/// Requests with invalid bytes, shapes or numbers.
fn ill_formed() -> Bad {
    let (model, kind) = ("identity_int8", "INT8");
    vec![
        ("more raw contents than inputs", raw(model, kind, &[1, 1], &[b"a", b"a"])),
        ("no contents at all", one(model, kind, &[1, 1])),
        ("no inputs at all", ModelInferRequest { inputs: Vec::new(), ..one(model, kind, &[]) }),
        ("another datatype", raw(model, "UINT8", &[1, 1], &[b"a"])),
        ("an unknown datatype", raw(model, "INT7", &[1, 1], &[b"a"])),
        ("no datatype", raw(model, "", &[1, 1], &[b"a"])),
        ("a negative dimension", raw(model, kind, &[1, -1], &[b"a"])),
        ("the least dimension", raw(model, kind, &[i64::MIN, 1], &[b"a"])),
        ("a shape that overflows", raw(model, kind, &[1 << 40, 1 << 40], &[b"a"])),
        ("a shape that is too large", raw(model, kind, &[i64::MAX, i64::MAX], &[b"a"])),
        ("no shape", raw(model, kind, &[], &[b"a"])),
        ("no rows", raw(model, kind, &[0, 1], &[b""])),
        ("a row too many", raw(model, kind, &[2, 1], &[b"a"])),
        ("a byte too many", raw(model, kind, &[1, 1], &[b"ab"])),
        ("a dimension too many", raw(model, kind, &[1, 1, 1], &[b"a"])),
        ("a number out of range", typed(ints(vec![128]))),
        ("a number below the range", typed(ints(vec![-129]))),
        ("too many numbers", typed(ints(vec![1, 2]))),
        ("a flag that is neither", raw("identity_bool", "BOOL", &[1, 1], &[b"\x02"])),
        ("a length past the end", raw("identity_bytes", "BYTES", &[1, 1], &[b"\x02\0\0\0a"])),
        ("the greatest length", raw("identity_bytes", "BYTES", &[1, 1], &[b"\xff\xff\xff\xffa"])),
        ("half a length", raw("identity_bytes", "BYTES", &[1, 1], &[b"\x01\0"])),
        ("bytes behind the last", raw("identity_bytes", "BYTES", &[1, 1], &[b"\x01\0\0\0ab"])),
    ]
}

/// The server keeps serving after each of them.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_tensors_are_rejected() {
    let (server, _folder) = server(&["identity_int8", "identity_bytes", "identity_bool"]);
    let mut client = client(&server).await;
    for (what, message) in ill_composed().into_iter().chain(ill_formed()) {
        let outcome = client.model_infer(keyed(message)).await;
        let status = outcome.map(drop).expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        let word = crate::grpc::reason(&status);
        assert!(["malformed_request", "unacceptable_input"].contains(&&*word), "{what}: {word}");
        for internal in ["/src/", ".rs", "prost", "tonic", "panic"] {
            assert!(!status.message().contains(internal), "{what}: {status:?}");
        }
    }
    let message = raw("identity_bytes", "BYTES", &[1, 1], &[&raw_texts(&["good"])]);
    assert_eq!(ask(&mut client, message).await.raw_output_contents, [raw_texts(&["good"])]);
}
