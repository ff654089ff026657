use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::{Value, json};

const PARTIAL: &str = "/v1/batch_predict?partial=true";

fn results(answer: &HttpResponse, status: u16) -> Vec<Value> {
    assert_eq!(answer.status, status, "{answer:?}");
    answer.body["results"].as_array().unwrap().clone()
}

fn is(answer: &HttpResponse) -> (u16, Option<&str>) {
    (answer.status, answer.error_code())
}

#[test]
fn invalid_rows_do_not_affect_valid_ones() {
    let server = Server::start(&Setup::toxicity());
    let texts: Vec<_> = (0..200).map(|number| json!(format!("You are nice {number}"))).collect();
    let whole = server.post(PARTIAL, &json!({ "texts": texts }));
    let wanted = results(&whole, 200);
    assert_eq!(wanted, results(&server.post("/v1/batch_predict", &json!({"texts": texts})), 200));
    let mut spoilt = texts.clone();
    for (row, bad) in
        [(0, json!("")), (7, json!(1)), (63, Value::Null), (64, json!(" ")), (199, json!([]))]
    {
        spoilt[row] = bad;
    }
    let answer = server.post(PARTIAL, &json!({ "texts": spoilt }));
    let rows = results(&answer, 207);
    assert_eq!(rows.len(), 200);
    for (row, result) in rows.iter().enumerate() {
        let code = match row {
            0 | 64 => "unacceptable_input",
            7 | 63 | 199 => "malformed_request",
            _ => {
                assert_eq!(result["label"], wanted[row]["label"], "{row}");
                // Batches are split at other rows, so sums may differ in their last bit.
                let score = |value: &Value| value["score"].as_f64().unwrap();
                assert!((score(result) - score(&wanted[row])).abs() < 1e-6, "{row}");
                continue;
            }
        };
        let error = &result["error"];
        assert_eq!(error["error_code"], code, "{row}: {result}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert_eq!(
            (&error["details"][0]["row"], &error["details"][0]["field"]),
            (&json!(row), &json!("text"))
        );
    }
    assert_eq!(answer.body["model_version"], "1.0.0");
    let line = server.wait_for("the log line", |line| line["status"] == 207);
    assert_eq!(line["rows"], 200);
}

#[test]
fn instances_that_are_not_objects_fail_as_rows() {
    let server = Server::start(&Setup::toxicity());
    let instances = json!([1, {"text": "You are nice"}, {}, {"text": "a", "other": 1}, null]);
    let body = json!({ "instances": instances });
    let rows = results(&server.post(PARTIAL, &body), 207);
    let codes: Vec<_> = rows.iter().map(|row| row["error"]["error_code"].as_str()).collect();
    let malformed = Some("malformed_request");
    assert_eq!(codes, [malformed, None, malformed, malformed, malformed]);
    assert_eq!(is(&server.post("/v1/batch_predict", &body)), (400, malformed));
}

#[test]
fn a_batch_without_a_valid_row_is_rejected() {
    let server = Server::start(&Setup::toxicity());
    let ask = |body: Value| server.post(PARTIAL, &body);
    let answer = ask(json!({"texts": [1, null]}));
    assert_eq!(is(&answer), (400, Some("malformed_request")));
    let answer = ask(json!({"texts": [1, ""]}));
    assert_eq!(is(&answer), (422, Some("unacceptable_input")));
    assert_eq!(answer.body["details"].as_array().unwrap().len(), 2);
    let answer = ask(json!({"texts": vec![""; 1000]}));
    assert_eq!(is(&answer), (422, Some("unacceptable_input")));
    assert_eq!(answer.body["details"].as_array().unwrap().len(), 20);
    assert_eq!(is(&ask(json!({"instances": [1, 2]}))), (400, Some("malformed_request")));
    // These errors concern the whole request.
    for (body, status) in [
        (json!({"texts": []}), 400),
        (json!({"texts": "a"}), 400),
        (json!({"others": ["a"]}), 400),
        (json!({"texts": vec!["a"; 1025]}), 422),
    ] {
        assert_eq!(ask(body).status, status);
    }
    let answer = server.send("POST", PARTIAL, &[], b"{");
    assert_eq!(is(&answer), (400, Some("malformed_request")));
}

#[test]
fn only_the_partial_query_parameter_is_accepted() {
    let server = Server::start(&Setup::toxicity());
    let (batch, single) = (json!({"texts": ["", "a"]}), json!({"text": "a"}));
    for (query, status) in
        [("partial=true", 207), ("partial=false", 422), ("", 422), ("partial=1", 400)]
    {
        let answer = server.post(&format!("/v1/batch_predict?{query}"), &batch);
        assert_eq!(answer.status, status, "{query}: {answer:?}");
    }
    for query in ["partial", "partial=", "partial=TRUE", "other=1", "partial=true&partial=true"] {
        let answer = server.post(&format!("/v1/batch_predict?{query}"), &batch);
        assert_eq!(is(&answer), (400, Some("malformed_request")), "{query}");
    }
    for query in ["partial=true", "partial=false", "a"] {
        let answer = server.post(&format!("/v1/predict?{query}"), &single);
        assert_eq!(is(&answer), (400, Some("malformed_request")), "{query}");
    }
    assert_eq!(server.post("/v1/predict?", &single).status, 200);
}

#[test]
fn rows_that_the_guest_rejects_fail_individually() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 20_000));
    let ask = |actions: &[&str]| {
        let path = "/models/misbehave/batch_predict?partial=true";
        server.post(path, &json!({ "actions": actions }))
    };
    let actions: Vec<_> = (0..40).map(|row| if row % 3 == 1 { "reject" } else { "echo" }).collect();
    let rows = results(&ask(&actions), 207);
    for (row, result) in rows.iter().enumerate() {
        if row % 3 == 1 {
            assert_eq!(result["error"]["error_code"], "unacceptable_input");
            assert_eq!(result["error"]["details"][0]["row"], row);
        } else {
            assert_eq!(result["done"], "echo", "{row}");
        }
    }
    assert_eq!(is(&ask(&["reject", "reject"])), (422, Some("unacceptable_input")));
    // A trap of the guest fails the whole request.
    assert_eq!(is(&ask(&["echo", "trap"])), (500, Some("model_failure")));
    server.assert_healthy();
}
