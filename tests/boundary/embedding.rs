use std::path::Path;

use guesthouse_runtime::embed::{Compiler, OpenError, RowsError, Runtime, RuntimeOptions};
use guesthouse_tests::artifacts::{self, temporary_folder};
use guesthouse_tests::{Server, Setup, environment};
use serde_json::{Map, Value, json};

fn rows(rows: &[Value]) -> Vec<Map<String, Value>> {
    rows.iter().map(|row| row.as_object().unwrap().clone()).collect()
}

fn open(state: &Path, compiler: Compiler) -> Runtime {
    Runtime::open(state, RuntimeOptions { compiler, ..RuntimeOptions::default() }).unwrap()
}

#[test]
fn an_embedded_runtime_predicts_like_the_server() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["row_sum", "simple_string"]));
    let texts = |text: &'static str| vec![text; 16];
    let cases = [
        ("row_sum", vec![json!({"INPUT0": [1, 2, 3.5]}), json!({"INPUT0": [-0.0, 4, 1]})]),
        ("simple_string", vec![json!({"INPUT0": texts("12"), "INPUT1": texts("-7")})]),
    ];
    for compiler in [Compiler::InProcess, Compiler::Child(environment::host())] {
        let state = folder.path().join(format!("state-{}", compiler == Compiler::InProcess));
        let runtime = open(&state, compiler);
        for (name, given) in &cases {
            let model = runtime.load(&folder.path().join(format!("{name}-1.0.0.wasm"))).unwrap();
            assert_eq!(model.id().to_string(), format!("{name}@1.0.0"));
            let embedded = model.predict(&rows(given)).unwrap();
            assert_eq!(embedded.len(), given.len());
            for (row, outputs) in given.iter().zip(embedded) {
                let served = server.post(&format!("/models/{name}/predict"), row);
                assert_eq!(served.status, 200, "{served:?}");
                for (output, value) in outputs {
                    assert_eq!(served.body[&output], value, "{name} {row}");
                }
            }
        }
    }
}

#[test]
fn an_embedded_runtime_reuses_compiled_code_and_reports_errors() {
    let folder = temporary_folder();
    let artifact = artifacts::fixture("row_sum", folder.path());
    let state = folder.path().join("state");
    drop(open(&state, Compiler::InProcess).load(&artifact).unwrap());
    // A compiler that cannot be started is not needed any more.
    let runtime = open(&state, Compiler::Child(folder.path().join("absent")));
    let model = runtime.load(&artifact).unwrap();
    let unknown = model.predict(&rows(&[json!({"OTHER": 1})]));
    assert!(matches!(unknown, Err(RowsError::Rows(_))), "{unknown:?}");
    let many = vec![json!({"INPUT0": [1]}); 65];
    let many = model.predict(&rows(&many));
    assert!(matches!(many, Err(RowsError::TooManyRows { rows: 65, most: 64 })), "{many:?}");
    std::fs::write(&artifact, b"no artifact").unwrap();
    assert!(matches!(runtime.load(&artifact), Err(OpenError::Artifact(_))));
}
