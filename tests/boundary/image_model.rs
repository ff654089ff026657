use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::{Value, json};

const PREDICT: &str = "/models/text-direction/predict";
const BATCH_PREDICT: &str = "/models/text-direction/batch_predict";

/// The tolerance for PNG files: the pixels are equal, and only the sums of the network differ.
const PNG_TOLERANCE: f64 = 5e-5;

/// The tolerance for JPEG files: decoders round differently and upsample colours differently, and
/// most of these pictures look similar when they are rotated.
const JPEG_TOLERANCE: f64 = 0.03;

/// The files with their expected results.
fn files(name: &str) -> Vec<Value> {
    let path = format!("{}/data/text-direction/{name}", env!("CARGO_MANIFEST_DIR"));
    let lines = fs::read_to_string(path).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn bytes(file: &Value) -> Vec<u8> {
    BASE64.decode(file["image"].as_str().unwrap()).unwrap()
}

fn is_jpeg(file: &Value) -> bool {
    bytes(file).starts_with(&[0xff, 0xd8])
}

fn instance(file: &Value) -> Value {
    json!({ "image": file["image"] })
}

fn assert_predicted(answer: &Value, file: &Value) {
    let tolerance = if is_jpeg(file) { JPEG_TOLERANCE } else { PNG_TOLERANCE };
    let probability_of_turned = |value: &Value| {
        let score = value["score"].as_f64().unwrap();
        if value["label"] == "180" { score } else { 1.0 - score }
    };
    let (is, wanted) = (probability_of_turned(answer), probability_of_turned(file));
    assert!((is - wanted).abs() <= tolerance, "{}: {is}, not {wanted}", file["name"]);
    if (wanted - 0.5).abs() > tolerance {
        assert_eq!(answer["label"], file["label"], "{}", file["name"]);
    }
    assert!(answer["score"].as_f64().unwrap() >= 0.5, "{}", file["name"]);
}

fn refused_rows(answer: &HttpResponse) -> Vec<u64> {
    assert_eq!((answer.status, answer.error_code()), (422, Some("unacceptable_input")));
    let details = answer.body["details"].as_array().unwrap();
    assert!(details.iter().all(|detail| detail["field"] == "image"), "{details:?}");
    details.iter().map(|detail| detail["row"].as_u64().unwrap()).collect()
}

fn assert_no_faults(server: Server) {
    server.assert_healthy();
    let (status, lines) = server.stop();
    assert!(status.success());
    let faults: Vec<_> = lines.iter().filter(|line| line["target"] == "fault").collect();
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn predictions_equal_rapidocr_alone_and_in_batches() {
    let server = Server::start(&Setup::text_direction());
    let files = files("oracle.jsonl");
    assert_eq!(files.len(), 60);
    assert!(files.iter().filter(|file| is_jpeg(file)).count() >= 16);
    for file in &files {
        let answer = server.post(PREDICT, &instance(file));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_predicted(&answer.body, file);
    }
    // The guest takes 16 rows per call; 60 are split into four calls.
    for size in [16, 60] {
        for files in files.chunks(size) {
            let instances: Vec<_> = files.iter().map(instance).collect();
            let answer = server.post(BATCH_PREDICT, &json!({ "instances": instances }));
            assert_eq!(answer.status, 200, "{answer:?}");
            let results = answer.body["results"].as_array().unwrap();
            assert_eq!(results.len(), files.len());
            results.iter().zip(files).for_each(|(result, file)| assert_predicted(result, file));
        }
    }
    assert_no_faults(server);
}

#[test]
fn invalid_and_oversized_pictures_are_rejected_by_row() {
    let server = Server::start(&Setup::text_direction());
    let (good, bad) = (files("oracle.jsonl").remove(0), files("bad.jsonl"));
    assert!(bad.len() >= 16);
    for file in &bad {
        let answer = server.post(PREDICT, &instance(file));
        assert_eq!(refused_rows(&answer), [0], "{}: {answer:?}", file["name"]);
        let rows = [&good, file, &good, file].map(instance);
        let answer = server.post(BATCH_PREDICT, &json!({ "instances": rows }));
        assert_eq!(refused_rows(&answer), [1, 3], "{}: {answer:?}", file["name"]);
    }
    for image in [json!("not base64!"), json!(1), json!(["QQ=="]), Value::Null] {
        let answer = server.post(PREDICT, &json!({ "image": image }));
        let is = (answer.status, answer.error_code());
        assert_eq!(is, (400, Some("malformed_request")), "{answer:?}");
    }
    assert_no_faults(server);
}

#[test]
fn damaged_pictures_are_predicted_or_rejected() {
    let server = Server::start(&Setup::text_direction());
    for (number, file) in files("oracle.jsonl").iter().enumerate() {
        let whole = bytes(file);
        for part in 0..8 {
            let mut damaged = whole.clone();
            let place = (whole.len() * part / 8 + number) % whole.len();
            damaged[place] = damaged[place].wrapping_add(1 + u8::try_from(number).unwrap());
            let image = BASE64.encode(damaged);
            let answer = server.post(PREDICT, &json!({ "image": image }));
            assert!(matches!(answer.status, 200 | 422), "{} {place}: {answer:?}", file["name"]);
        }
    }
    assert_no_faults(server);
}
