//! Invalid requests, each with a single fault.

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::{Server, Setup};
use reqwest::Method;
use serde_json::{Value, json};

use super::{LENGTH, element, post, post_raw, post_with_length, send};

const SIMPLE: &str = "/v2/models/simple/infer";

fn malformed(what: &str, answer: &super::Reply) {
    assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()), "{what}: {answer:?}");
}

fn tensor(name: &str) -> Value {
    json!({"name": name, "shape": [1, 16], "datatype": "INT32", "data": (0..16).collect::<Vec<_>>()})
}

fn raw(name: &str) -> Value {
    json!({"name": name, "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": 64}})
}

/// A valid request whose first input is changed.
fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut request = json!({"inputs": [tensor("INPUT0"), tensor("INPUT1")]});
    change(&mut request["inputs"][0]);
    request
}

#[test]
fn invalid_inputs_are_rejected() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    assert_eq!(post(&server, SIMPLE, &with(|_| {})).status, 200);
    let set = |field: &'static str, value: Value| with(move |input| input[field] = value);
    for (what, request) in [
        ("a wrong datatype", set("datatype", json!("FP32"))),
        ("an unknown datatype", set("datatype", json!("int32"))),
        ("a datatype that is no text", set("datatype", json!(7))),
        ("an unknown name", set("name", json!("INPUT9"))),
        ("a name that is there twice", set("name", json!("INPUT1"))),
        ("a name that is no text", set("name", json!(null))),
        ("too few elements", set("data", json!([1, 2]))),
        ("too many elements", set("data", json!(vec![1; 17]))),
        ("no elements", set("data", json!([]))),
        ("an element that is none", set("data", json!(vec![json!(1.5); 16]))),
        ("an element beyond 32 bits", set("data", json!(vec![2_147_483_648_i64; 16]))),
        ("texts", set("data", json!(vec!["1"; 16]))),
        ("nothing for elements", set("data", json!(vec![Value::Null; 16]))),
        ("data that is no array", set("data", json!(1))),
        ("no data", set("data", Value::Null)),
        ("ragged rows", set("data", json!([[1, 2, 3], [4]]))),
        ("elements beside arrays", set("data", json!([1, [2]]))),
        ("another nesting", set("data", json!(vec![vec![1]; 16]))),
        ("a negative dimension", set("shape", json!([-1, 16]))),
        ("a dimension with a point", set("shape", json!([1.0, 16]))),
        ("a dimension beyond 64 bits", set("shape", json!([1, 1e30]))),
        ("a shape without a batch", set("shape", json!([]))),
        ("a shape without rows", set("shape", json!([0, 16]))),
        ("a shape of two rows", set("shape", json!([2, 8]))),
        ("a shape that overflows", set("shape", json!([u64::MAX, u64::MAX]))),
        (
            "a shape that overflows to the right size",
            set("shape", json!([1_u64 << 60, 1_u64 << 60, 16])),
        ),
        ("the largest signed dimension", set("shape", json!([i64::MAX, 16]))),
        ("a shape of many dimensions", set("shape", json!(vec![1; 1000]))),
        ("no shape", set("shape", Value::Null)),
        ("no datatype", set("datatype", Value::Null)),
        ("both data and its size", set("parameters", json!({"binary_data_size": 64}))),
        ("shared memory", set("parameters", json!({"shared_memory_region": "a"}))),
        ("a parameter that is an object", set("parameters", json!({"a": {}}))),
        ("parameters that are none", set("parameters", json!([]))),
        ("a missing input", json!({"inputs": [tensor("INPUT0")]})),
        ("no inputs", json!({"inputs": []})),
        ("no inputs at all", json!({})),
        ("an input that is none", json!({"inputs": [1]})),
        ("inputs that are none", json!({"inputs": {}})),
        ("three inputs", json!({"inputs": [tensor("INPUT0"), tensor("INPUT1"), tensor("INPUT1")]})),
        ("no object", json!([])),
    ] {
        malformed(what, &post(&server, SIMPLE, &request));
    }
}

#[test]
fn invalid_outputs_and_parameters_are_rejected() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    let asked = |outputs: Value| json!({"inputs": [tensor("INPUT0"), tensor("INPUT1")], "outputs": outputs});
    for (what, outputs) in [
        ("an unknown output", json!([{"name": "OUTPUT9"}])),
        ("an output twice", json!([{"name": "OUTPUT0"}, {"name": "OUTPUT0"}])),
        ("an output without a name", json!([{}])),
        ("an output that is none", json!(["OUTPUT0"])),
        ("outputs that are none", json!("OUTPUT0")),
        (
            "a binary_data that is none",
            json!([{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]),
        ),
        (
            "shared memory",
            json!([{"name": "OUTPUT0", "parameters": {"shared_memory_region": "a"}}]),
        ),
    ] {
        malformed(what, &post(&server, SIMPLE, &asked(outputs)));
    }
    for (field, value) in [
        ("id", json!(7)),
        ("parameters", json!("none")),
        ("parameters", json!({"binary_data_output": "yes"})),
        ("parameters", json!({"a": [1]})),
    ] {
        let mut request = asked(json!([]));
        request[field] = value;
        malformed(field, &post(&server, SIMPLE, &request));
    }
    let many: serde_json::Map<_, _> =
        (0..65).map(|number| (number.to_string(), json!(1))).collect();
    let mut request = asked(json!([]));
    request["parameters"] = many.into();
    malformed("too many parameters", &post(&server, SIMPLE, &request));
}

#[test]
fn malformed_json_is_rejected() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    let good = with(|_| {}).to_string();
    let deep = |open: &str, depth: usize| open.repeat(depth);
    let bomb = |inside: String| good.replacen("\"data\":", &format!("\"data\":{inside},\"x\":"), 1);
    for (what, text) in [
        ("nothing", String::new()),
        ("half of it", good[..good.len() / 2].to_owned()),
        ("something behind it", format!("{good} {{}}")),
        ("a number that JSON does not know", good.replacen("[0,", "[NaN,", 1)),
        ("infinity", good.replacen("[0,", "[Infinity,", 1)),
        ("a field twice", good.replacen('{', "{\"id\":\"a\",\"id\":\"b\",", 1)),
        ("the inputs twice", good.replacen('{', "{\"inputs\":[],", 1)),
        ("arrays that never end", deep("[", 1_000_000)),
        ("objects that never end", deep("{\"a\":", 1_000_000)),
        ("nested data", bomb(deep("[", 1_000_000))),
        ("nested data that ends", bomb(format!("{}{}", deep("[", 1000), deep("]", 1000)))),
        (
            "nesting in what is passed over",
            good.replacen('{', &format!("{{\"x\":{}{},", deep("[", 1000), deep("]", 1000)), 1),
        ),
        (
            "nesting in parameters",
            good.replacen('{', &format!("{{\"parameters\":{{\"a\":{}", deep("[", 100_000)), 1),
        ),
    ] {
        let answer = send(&server, Method::POST, SIMPLE, &[], text.into_bytes());
        malformed(what, &answer);
    }
    malformed("no UTF-8", &send(&server, Method::POST, SIMPLE, &[], b"{\"id\":\"\xff\"}".to_vec()));
    // The server keeps serving.
    assert_eq!(post(&server, SIMPLE, &with(|_| {})).status, 200);
}

#[test]
fn binary_data_must_match_the_declared_sizes() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple", "simple_string"]));
    let request = json!({"inputs": [raw("INPUT0"), raw("INPUT1")]});
    let tensors = [1; 128];
    assert_eq!(post_raw(&server, SIMPLE, &request, &tensors).status, 200);
    for (what, bytes) in [("too few", &tensors[..127]), ("none", b""), ("too many", &[1; 129])] {
        malformed(what, &post_raw(&server, SIMPLE, &request, bytes));
    }
    let json = request.to_string();
    let body = [json.as_bytes(), &tensors].concat();
    let beyond = (body.len() + 1).to_string();
    let short = (json.len() - 1).to_string();
    let all = body.len().to_string();
    for length in
        [&beyond, &short, &all, "-1", "+5", "1.5", "x", "", "99999999999999999999", "0x10"]
    {
        malformed(length, &post_with_length(&server, SIMPLE, length, &body));
    }
    let length = json.len().to_string();
    let twice = [(LENGTH, length.as_str()), (LENGTH, length.as_str())];
    malformed("two lengths", &send(&server, Method::POST, SIMPLE, &twice, body.clone()));
    // Without the header, the whole body is JSON.
    malformed("no length", &send(&server, Method::POST, SIMPLE, &[], body));
    let set = |field: &'static str, value: Value| {
        let mut request = json!({"inputs": [raw("INPUT0"), raw("INPUT1")]});
        request["inputs"][0][field] = value;
        request
    };
    let sized = |size: Value| set("parameters", json!({"binary_data_size": size}));
    for (what, request) in [
        ("a size beyond the end", sized(json!(u64::MAX))),
        ("a size beyond the end", sized(json!(i64::MAX))),
        ("a negative size", sized(json!(-64))),
        ("a size with a point", sized(json!(64.0))),
        ("a size that is a text", sized(json!("64"))),
        ("sizes that are shifted", sized(json!(60))),
        ("another shape", set("shape", json!([1, 15]))),
        ("two rows", set("shape", json!([2, 16]))),
        ("another datatype", set("datatype", json!("INT64"))),
        ("a shape that overflows", set("shape", json!([1_u64 << 62, 16]))),
        ("both", set("data", json!([1]))),
    ] {
        malformed(what, &post_raw(&server, SIMPLE, &request, &tensors));
    }
    // Byte strings with wrong lengths.
    let strings = |size: usize| {
        let input = |name: &str| json!({"name": name, "shape": [1, 16], "datatype": "BYTES", "parameters": {"binary_data_size": size}});
        json!({"inputs": [input("INPUT0"), input("INPUT1")]})
    };
    let path = "/v2/models/simple_string/infer";
    let good = element(b"1").repeat(16);
    let answer = post_raw(&server, path, &strings(good.len()), &good.repeat(2));
    assert_eq!(answer.status, 200, "{answer:?}");
    let past = [&element(b"1").repeat(15)[..], &[200, 0, 0, 0, b'1']].concat();
    let huge = [&element(b"1").repeat(15)[..], &[0xff; 4], b"1"].concat();
    let cut = [&element(b"1").repeat(15)[..], &[1, 0]].concat();
    let fewer = element(b"1").repeat(15);
    let more = element(b"1").repeat(17);
    for (what, bytes) in [
        ("past the end", past),
        ("4 GiB", huge),
        ("half a length", cut),
        ("fewer", fewer),
        ("more", more),
    ] {
        malformed(what, &post_raw(&server, path, &strings(bytes.len()), &bytes.repeat(2)));
    }
}

#[test]
fn invalid_headers_and_paths_are_rejected() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    let body = with(|_| {}).to_string().into_bytes();
    let ask = |headers: &[(&str, &str)]| send(&server, Method::POST, SIMPLE, headers, body.clone());
    for media_type in ["application/json; charset=utf-8", "application/octet-stream"] {
        assert_eq!(ask(&[("Content-Type", media_type)]).status, 200, "{media_type}");
    }
    for (name, value) in [
        ("Content-Type", "text/xml"),
        ("Content-Type", "multipart/form-data; boundary=a"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Encoding", "br"),
        ("Content-Encoding", "gzip, deflate"),
    ] {
        let refused = ask(&[(name, value)]).refusal();
        assert_eq!(refused, (415, "unsupported_media_type".to_owned()), "{value}");
    }
    for (name, value) in [
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "deflate"),
        ("X-Request-Timeout-Ms", "soon"),
    ] {
        malformed(value, &ask(&[(name, value)]));
    }
    let too_large = send(&server, Method::POST, SIMPLE, &[], vec![b' '; 9 << 20]);
    assert_eq!(too_large.refusal(), (413, "payload_too_large".to_owned()));
    let unknown = send(&server, Method::POST, "/v2/models/absent/infer", &[], body.clone());
    assert_eq!(unknown.refusal(), (404, "not_found".to_owned()));
    let error = unknown.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("Request for unknown model"), "{error}");
    let version =
        send(&server, Method::POST, "/v2/models/simple/versions/9/infer", &[], body.clone());
    assert_eq!(version.refusal(), (404, "not_found".to_owned()));
    let nobody = send(&server, Method::POST, SIMPLE, &[("X-API-Key", "")], body);
    assert_eq!(nobody.refusal(), (401, "unauthorized".to_owned()));
}

#[test]
fn unacceptable_values_are_reported_by_row() {
    let server = Server::start(&Setup::toxicity());
    let input = json!({"name": "text", "shape": [3], "datatype": "BYTES", "data": ["You are nice", " ", "ok"]});
    let answer = post(&server, "/v2/models/toxicity/infer", &json!({"inputs": [input]}));
    assert_eq!(answer.refusal(), (422, "unacceptable_input".to_owned()));
    let details = answer.json()["details"].clone();
    assert_eq!((&details[0]["row"], &details[0]["field"]), (&json!(1), &json!("text")));
    // There are no outputs.
    assert!(answer.json()["outputs"].is_null());
    let rows: Vec<_> = (0..1025).map(|_| "a").collect();
    let input = json!({"name": "text", "shape": [1025], "datatype": "BYTES", "data": rows});
    let answer = post(&server, "/v2/models/toxicity/infer", &json!({"inputs": [input]}));
    assert_eq!(answer.refusal(), (422, "unacceptable_input".to_owned()));
}

/// JSON has no NaN, no infinities and no binary strings; the binary form does.
#[test]
fn non_finite_and_binary_outputs_need_binary_form() {
    let folder = temporary_folder();
    let models = ["identity_fp32", "identity_fp64", "identity_bytes"];
    let server = Server::start(&Setup::fixtures(folder.path(), &models));
    for (model, datatype, data) in [
        ("identity_fp32", "FP32", f32::NAN.to_le_bytes().to_vec()),
        ("identity_fp32", "FP32", f32::NEG_INFINITY.to_le_bytes().to_vec()),
        ("identity_fp64", "FP64", f64::INFINITY.to_le_bytes().to_vec()),
        ("identity_bytes", "BYTES", element(b"\xff\xfe")),
    ] {
        let path = format!("/v2/models/{model}/infer");
        let size = data.len();
        let input = json!({"name": "INPUT0", "shape": [1, 1], "datatype": datatype, "parameters": {"binary_data_size": size}});
        let mut request = json!({"inputs": [input]});
        malformed(datatype, &post_raw(&server, &path, &request, &data));
        request["parameters"] = json!({"binary_data_output": true});
        assert_eq!(post_raw(&server, &path, &request, &data).raw("OUTPUT0"), data);
    }
}
