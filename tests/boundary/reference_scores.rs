use std::fs;

use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

const TOLERANCE: f64 = 1e-4;

fn oracle(file: &str) -> Vec<(String, f64)> {
    let path = format!("{}/data/toxicity/{file}", env!("CARGO_MANIFEST_DIR"));
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        (row["text"].as_str().unwrap().to_owned(), row["score"].as_f64().unwrap())
    };
    fs::read_to_string(path).unwrap().lines().map(row).collect()
}

fn assert_scored(answer: &Value, text: &str, score: f64, threshold: f64) {
    let is = answer["score"].as_f64().unwrap();
    assert!((is - score).abs() <= TOLERANCE, "{text:?} scores {is}, not {score}");
    if (score - threshold).abs() > TOLERANCE {
        let label = if score >= threshold { "toxic" } else { "clean" };
        assert_eq!(answer["label"], label, "{text:?}");
    }
}

#[test]
fn single_predictions_equal_scikit_learn() {
    let server = Server::start(&Setup::toxicity());
    let texts = oracle("oracle.jsonl");
    assert_eq!(texts.len(), 398);
    for (text, score) in &texts {
        for (path, threshold) in [("/v1/predict", 0.5), ("/v2/predict", 0.8)] {
            let answer = server.post(path, &json!({ "text": text }));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_scored(&answer.body, text, *score, threshold);
        }
    }
}

#[test]
fn batches_equal_scikit_learn_at_all_batch_sizes() {
    let server = Server::start(&Setup::toxicity());
    for file in ["oracle.jsonl", "unicode.jsonl"] {
        // The guest takes 64 rows per call; 1000 rows are split into many calls.
        for size in [1, 64, 65, 1000] {
            for rows in oracle(file).chunks(size).take(40) {
                let texts: Vec<_> = rows.iter().map(|(text, _)| text).collect();
                let instances: Vec<_> = texts.iter().map(|text| json!({ "text": text })).collect();
                for body in [json!({ "texts": texts }), json!({ "instances": instances })] {
                    let answer = server.post("/v1/batch_predict", &body);
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let results = answer.body["results"].as_array().unwrap();
                    assert_eq!(results.len(), rows.len());
                    for (result, (text, score)) in results.iter().zip(rows) {
                        assert_scored(result, text, *score, 0.5);
                    }
                }
            }
        }
    }
}
