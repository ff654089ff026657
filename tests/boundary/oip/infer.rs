//! Valid requests.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::DeflateEncoder;
use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::encoding::{gzip, zlib};
use guesthouse_tests::{Server, Setup};
use reqwest::Method;
use serde_json::{Value, json};

use super::{LENGTH, element, post, post_raw, post_with_length, send};

const SIMPLE: &str = "/v2/models/simple/infer";

fn numbers(values: impl IntoIterator<Item = i32>) -> Vec<u8> {
    values.into_iter().flat_map(i32::to_le_bytes).collect()
}

fn simple_request() -> Value {
    let tensor = |name: &str, data: Vec<i32>| json!({"name": name, "shape": [1, 16], "datatype": "INT32", "data": data});
    json!({"inputs": [tensor("INPUT0", (0..16).collect()), tensor("INPUT1", vec![1; 16])]})
}

#[test]
fn json_requests_get_json_responses() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    let mut request = simple_request();
    let answer = post(&server, SIMPLE, &request);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header(LENGTH), None);
    assert_eq!(answer.header("x-model-version"), Some("1.0.0"));
    let output = |name: &str, data: Vec<i32>| json!({"name": name, "datatype": "INT32", "shape": [1, 16], "data": data});
    let (sum, difference) =
        (output("OUTPUT0", (1..17).collect()), output("OUTPUT1", (-1..15).collect()));
    let whole =
        json!({"model_name": "simple", "model_version": "1.0.0", "outputs": [sum, difference]});
    assert_eq!(answer.json(), whole);
    // Only the requested outputs, in the requested order; the id is returned; unknown fields are
    // ignored.
    request["id"] = json!("Ünï \"1\"");
    request["outputs"] = json!([{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]);
    request["model_name"] = json!({"repeated": [1, {"by": "some"}]});
    let answer = post(&server, SIMPLE, &request).json();
    assert_eq!(answer["id"], request["id"]);
    assert_eq!(answer["outputs"], json!([difference, sum]));
    request["outputs"] = json!([{"name": "OUTPUT1"}]);
    assert_eq!(post(&server, SIMPLE, &request).json()["outputs"], json!([difference]));
    // Nested data, fields in any order, and several rows.
    let rows: Vec<Vec<i32>> = (0..3).map(|row| (row..row + 16).collect()).collect();
    let text = format!(
        r#"{{"inputs": [{{"data": {}, "parameters": null, "shape": [3, 16], "datatype": "INT32", "name": "INPUT1"}},
            {{"name": "INPUT0", "datatype": "INT32", "data": {}, "shape": [3, 16]}}]}}"#,
        json!(rows),
        json!(vec![5; 48])
    );
    let answer = send(&server, Method::POST, SIMPLE, &[], text.into_bytes()).json();
    let expected: Vec<i32> = rows.concat().iter().map(|number| 5 - number).collect();
    assert_eq!(answer["outputs"][1]["data"], json!(expected));
    assert_eq!(answer["outputs"][1]["shape"], json!([3, 16]));
}

#[test]
fn binary_tensors_are_accepted_and_returned() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple", "simple_string"]));
    let (one, other) = (numbers(0..16), numbers([1; 16]));
    let raw = |name: &str| json!({"name": name, "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": 64}});
    let mut request = json!({"id": "7", "inputs": [raw("INPUT1"), raw("INPUT0")]});
    let tensors = [&other[..], &one].concat();
    // By default, outputs are JSON.
    let answer = post_raw(&server, SIMPLE, &request, &tensors);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header(LENGTH), None);
    assert_eq!(answer.json()["outputs"][0]["data"], json!((1..17).collect::<Vec<_>>()));
    for (parameters, outputs, is_raw) in [
        (json!({"binary_data_output": true}), Value::Null, [true, true]),
        (json!({"binary_data_output": false}), Value::Null, [false, false]),
        (
            Value::Null,
            json!([{"name": "OUTPUT0", "parameters": {"binary_data": true}}, {"name": "OUTPUT1"}]),
            [true, false],
        ),
        (
            json!({"binary_data_output": true}),
            json!([{"name": "OUTPUT0", "parameters": {"binary_data": false}}, {"name": "OUTPUT1"}]),
            [false, true],
        ),
    ] {
        request["parameters"] = parameters;
        request["outputs"] = outputs;
        let answer = post_raw(&server, SIMPLE, &request, &tensors);
        assert_eq!(answer.status, 200, "{answer:?}");
        let media_type =
            if is_raw == [false; 2] { "application/json" } else { "application/octet-stream" };
        assert_eq!(answer.header("content-type"), Some(media_type));
        for (name, is_raw, expected) in
            [("OUTPUT0", is_raw[0], 1..17), ("OUTPUT1", is_raw[1], -1..15)]
        {
            if is_raw {
                assert_eq!(answer.raw(name), numbers(expected));
            } else {
                let outputs = answer.json()["outputs"].as_array().unwrap().clone();
                let output = outputs.iter().find(|output| output["name"] == name).unwrap();
                assert_eq!(output["data"], json!(expected.collect::<Vec<_>>()));
            }
        }
    }
    // Inputs in JSON and in raw form together, and byte strings.
    request = json!({"parameters": {"binary_data_output": true}, "inputs": [
        {"name": "INPUT0", "shape": [1, 16], "datatype": "INT32", "data": [(0..16).collect::<Vec<_>>()]},
        raw("INPUT1"),
    ]});
    assert_eq!(post_raw(&server, SIMPLE, &request, &other).raw("OUTPUT0"), numbers(1..17));
    let texts = (0..16).flat_map(|number: i32| element(number.to_string().as_bytes()));
    let texts: Vec<u8> = texts.collect();
    let size = texts.len();
    request = json!({"parameters": {"binary_data_output": true}, "inputs": [
        {"name": "INPUT0", "shape": [1, 16], "datatype": "BYTES", "parameters": {"binary_data_size": size}},
        {"name": "INPUT1", "shape": [1, 16], "datatype": "BYTES", "data": vec!["1"; 16]},
    ]});
    let answer = post_raw(&server, "/v2/models/simple_string/infer", &request, &texts);
    let expected = (1..17).flat_map(|number: i32| element(number.to_string().as_bytes()));
    assert_eq!(answer.raw("OUTPUT0"), expected.collect::<Vec<_>>());
}

/// Extreme elements of each datatype in raw form, and in JSON if JSON can represent them.
fn samples() -> Vec<(&'static str, Vec<u8>, Option<Value>)> {
    let raw = |elements: &[&[u8]]| elements.concat();
    let (large, small) = (f32::MAX, 7.038_531e-26_f32);
    vec![
        ("bool", vec![0, 1], Some(json!([false, true]))),
        ("uint8", vec![0, 255], Some(json!([0, 255]))),
        ("uint16", raw(&[&[0; 2], &[255; 2]]), Some(json!([0, u16::MAX]))),
        ("uint32", raw(&[&[0; 4], &[255; 4]]), Some(json!([0, u32::MAX]))),
        ("uint64", raw(&[&[0; 8], &[255; 8]]), Some(json!([0, u64::MAX]))),
        ("int8", vec![128, 127], Some(json!([i8::MIN, i8::MAX]))),
        (
            "int16",
            numbers_of(&[i16::MIN.to_le_bytes(), i16::MAX.to_le_bytes()]),
            Some(json!([i16::MIN, i16::MAX])),
        ),
        ("int32", numbers([i32::MIN, i32::MAX]), Some(json!([i32::MIN, i32::MAX]))),
        (
            "int64",
            numbers_of(&[i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes()]),
            Some(json!([i64::MIN, i64::MAX])),
        ),
        ("fp16", vec![0, 0x3c, 0xff, 0xfb], None),
        ("bf16", vec![0x80, 0x3f, 1, 0], None),
        (
            "fp32",
            numbers_of(&[large.to_le_bytes(), small.to_le_bytes()]),
            Some(json!([f64::from(large), f64::from(small)])),
        ),
        (
            "fp64",
            numbers_of(&[f64::MIN_POSITIVE.to_le_bytes(), 0.1_f64.to_le_bytes()]),
            Some(json!([f64::MIN_POSITIVE, 0.1])),
        ),
        (
            "bytes",
            [element(b""), element("ä\0\u{1F600}".as_bytes())].concat(),
            Some(json!(["", "ä\0\u{1F600}"])),
        ),
        (
            "text",
            [element(b" a "), element("ä\"\n".as_bytes())].concat(),
            Some(json!([" a ", "ä\"\n"])),
        ),
    ]
}

fn numbers_of<const N: usize>(elements: &[[u8; N]]) -> Vec<u8> {
    elements.concat()
}

#[test]
fn every_datatype_round_trips_bit_for_bit() {
    let folder = temporary_folder();
    let names: Vec<_> = samples().iter().map(|(name, ..)| format!("identity_{name}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let server = Server::start(&Setup::fixtures(folder.path(), &names));
    for (name, raw, values) in samples() {
        let path = format!("/v2/models/identity_{name}/infer");
        let described = super::get(&server, &format!("/v2/models/identity_{name}")).json();
        let dimensions = described["inputs"][0]["shape"].as_array().unwrap().len();
        let shape = if dimensions == 1 { json!([2]) } else { json!([1, 2]) };
        let datatype = described["inputs"][0]["datatype"].clone();
        let size = raw.len();
        let as_raw = json!({"name": "INPUT0", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}});
        let as_json = values.as_ref().map(|values| json!({"name": "INPUT0", "shape": shape, "datatype": datatype, "data": values}));
        for (input, tensors) in [(Some(as_raw), &raw[..]), (as_json, b"")] {
            let Some(input) = input else { continue };
            let mut request =
                json!({"inputs": [input], "parameters": {"binary_data_output": true}});
            let answer = post_raw(&server, &path, &request, tensors);
            assert_eq!(answer.status, 200, "{name} {answer:?}");
            assert_eq!(answer.raw("OUTPUT0"), raw, "{name}");
            request["parameters"] = Value::Null;
            let answer = post_raw(&server, &path, &request, tensors);
            match &values {
                Some(values) => {
                    let output = answer.json()["outputs"][0].clone();
                    assert_eq!((&output["datatype"], &output["shape"]), (&datatype, &shape));
                    // Compared as clients read them: as doubles converted to the datatype.
                    #[expect(clippy::cast_possible_truncation, reason = "what clients do")]
                    let number = |value: &Value| value.as_f64().map(|number| number as f32);
                    if name == "fp32" {
                        let read = output["data"].as_array().unwrap().iter().map(number);
                        let sent = values.as_array().unwrap().iter().map(number);
                        assert!(read.eq(sent), "{output}");
                    } else {
                        assert_eq!(&output["data"], values, "{name}");
                    }
                }
                None => {
                    assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()), "{name}")
                }
            }
        }
    }
}

#[test]
fn a_raw_body_is_the_only_input() {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["identity_fp32", "identity_bytes", "simple"]);
    setup.artifacts.extend(Setup::toxicity().artifacts);
    let server = Server::start(&setup);
    // A byte string is the body itself, without a length prefix.
    let answer =
        post_with_length(&server, "/v2/models/toxicity/versions/1/infer", "0", b"You are nice");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.raw("label"), element(b"clean"));
    assert_eq!(answer.raw("score").len(), 4);
    let floats: Vec<u8> = [1.5_f32, -2.5].iter().flat_map(|number| number.to_le_bytes()).collect();
    let described = super::get(&server, "/v2/models/identity_fp32").json();
    let is_vector = described["inputs"][0]["shape"] == json!([-1, -1]);
    let sent = if is_vector { &floats[..] } else { &floats[..4] };
    let answer = post_with_length(&server, "/v2/models/identity_fp32/infer", "0", sent);
    assert_eq!(answer.raw("OUTPUT0"), sent, "{answer:?}");
    for (path, body) in [
        ("/v2/models/identity_fp32/infer", &floats[..3]),
        ("/v2/models/simple/infer", &[0; 64]),
        ("/v2/models/simple/infer", b""),
    ] {
        let answer = post_with_length(&server, path, "0", body);
        assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()), "{path}");
    }
}

type Encode = fn(&[u8]) -> Vec<u8>;

fn raw_deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

const ENCODINGS: [(&str, Encode); 3] =
    [("gzip", gzip), ("deflate", zlib), ("deflate", raw_deflate)];

#[test]
fn requests_and_responses_can_be_compressed() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    let raw = |name: &str| json!({"name": name, "shape": [64, 16], "datatype": "INT32", "parameters": {"binary_data_size": 4096}});
    let request = json!({"parameters": {"binary_data_output": true}, "inputs": [raw("INPUT0"), raw("INPUT1")]});
    let json = request.to_string();
    let (one, other) = (numbers(0..1024), numbers([1; 1024]));
    let body = [json.as_bytes(), &one, &other].concat();
    let length = json.len().to_string();
    for (encoding, encode) in ENCODINGS {
        let headers = [
            (LENGTH, length.as_str()),
            ("Content-Encoding", encoding),
            ("Accept-Encoding", encoding),
        ];
        let mut answer = send(&server, Method::POST, SIMPLE, &headers, encode(&body));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-encoding"), Some(encoding));
        let mut inflated = Vec::new();
        match encoding {
            "gzip" => GzDecoder::new(&answer.body[..]).read_to_end(&mut inflated).unwrap(),
            _ => ZlibDecoder::new(&answer.body[..]).read_to_end(&mut inflated).unwrap(),
        };
        answer.body = inflated;
        assert_eq!(answer.raw("OUTPUT0"), numbers(1..1025));
        // Decompression stops at the limit.
        let bomb = encode(&vec![b' '; 64 << 20]);
        let headers = [("Content-Encoding", encoding)];
        let answer = send(&server, Method::POST, SIMPLE, &headers, bomb);
        assert_eq!(answer.refusal(), (413, "payload_too_large".to_owned()));
        // Truncated data and trailing bytes are rejected.
        let whole = encode(&body);
        for bad in [&whole[..whole.len() - 1], &whole[..3], &[&whole[..], b"x"].concat()] {
            let headers = [(LENGTH, length.as_str()), ("Content-Encoding", encoding)];
            let answer = send(&server, Method::POST, SIMPLE, &headers, bad.to_vec());
            assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()), "{encoding}");
        }
    }
}

/// Clients of the protocol decompress only the encodings that it names.
#[test]
fn only_tensors_are_compressed_with_known_encodings() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &[]));
    let tensor = |name: &str| json!({"name": name, "shape": [64, 16], "datatype": "INT32", "data": vec![1; 1024]});
    let request = json!({"inputs": [tensor("INPUT0"), tensor("INPUT1")]}).to_string().into_bytes();
    for (accepted, encoding) in [
        ("gzip, deflate, br", Some("gzip")),
        ("br, zstd, deflate;q=0.5", Some("deflate")),
        ("zstd", None),
        ("*", None),
        ("br", None),
        ("gzip;q=0", None),
    ] {
        let headers = [("Accept-Encoding", accepted)];
        let answer = send(&server, Method::POST, SIMPLE, &headers, request.clone());
        assert_eq!(
            (answer.status, answer.header("content-encoding")),
            (200, encoding),
            "{accepted}"
        );
    }
    let headers = [("Accept-Encoding", "gzip, deflate, br")];
    let stats = send(&server, Method::GET, "/v2/models/stats", &headers, Vec::new());
    assert!(stats.body.len() > 2048, "too small to be compressed in any case");
    assert_eq!((stats.status, stats.header("content-encoding")), (200, None));
    // Long errors are not compressed either.
    let path = "/v2/models/identity_bool/infer";
    let input = json!({"name": "INPUT0", "shape": [1, 999], "datatype": "BOOL", "parameters": {"binary_data_size": 999}});
    let json = json!({"inputs": [input]}).to_string();
    let length = json.len().to_string();
    let headers = [(LENGTH, length.as_str()), headers[0]];
    let body = [json.as_bytes(), &[2; 999]].concat();
    let refused = send(&server, Method::POST, path, &headers, body);
    assert_eq!(refused.refusal(), (400, "malformed_request".to_owned()));
    assert_eq!(refused.header("content-encoding"), None);
}

#[test]
fn classification_returns_the_largest_first() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    let mut request = simple_request();
    request["outputs"] = json!([{"name": "OUTPUT0", "parameters": {"classification": 2}}]);
    let output = post(&server, SIMPLE, &request).json()["outputs"][0].clone();
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([1, 2])));
    assert_eq!(output["data"], json!(["16.000000:15", "15.000000:14"]));
    for bad in [json!(-1), json!("2"), json!(1.5)] {
        request["outputs"][0]["parameters"]["classification"] = bad;
        let answer = post(&server, SIMPLE, &request);
        assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()));
    }
}

#[test]
fn scheduling_parameters_are_validated() {
    let server = Server::start(&Setup::toxicity());
    let path = "/v2/models/toxicity/infer";
    let input =
        json!({"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["You are nice"]});
    for parameters in [json!({"priority": 1, "timeout": 60_000_000}), json!({"priority": "2"})] {
        let answer = post(&server, path, &json!({"inputs": [input], "parameters": parameters}));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["outputs"][0]["data"], json!(["clean"]));
    }
    for parameters in [
        json!({"priority": -1}),
        json!({"timeout": "soon"}),
        json!({"timeout": 0.5}),
        json!({"sequence_id": 5}),
    ] {
        let answer = post(&server, path, &json!({"inputs": [input], "parameters": parameters}));
        assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()), "{parameters}");
    }
}
