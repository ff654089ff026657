use std::path::{Path, PathBuf};

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What brings an artifact to be deployed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Upload,
    Folder,
    Restore,
    LoadByName,
}

const WAYS: [Way; 4] = [Way::Upload, Way::Folder, Way::Restore, Way::LoadByName];

/// One instance answers all golden examples, so that the second call of `count` gives another answer
/// than the first one.
const GENEROUS: &str =
    "[limits]\nthreads_per_version = 1\n[models.misbehave]\ninstance_memory_mib = 256\n";

/// The same with too little memory for a guest that leaks 40 MiB.
const STRICT: &str =
    "[limits]\nthreads_per_version = 1\n[models.misbehave]\ninstance_memory_mib = 32\n";

const COUNT: &str = r#"{"inputs": {"action": "count"}, "outputs": {"done": "1"}}"#;

/// A server that has 1.0.0, and an artifact that it has not yet or has yet to restore.
struct Case {
    way: Way,
    server: Server,
    artifact: PathBuf,
    _folder: TempDir,
}

impl Case {
    /// Prepare the deployment of a version with these golden examples, under this configuration.
    fn prepare(way: Way, golden: &'static str, config: &str) -> Self {
        let folder = temporary_folder();
        let pack = |version, golden| pack(folder.path(), version, golden);
        let config = match way {
            Way::Folder => config.replace("[limits]", "[limits]\nrepository_seconds = 1"),
            _ => config.replace("[limits]", "[limits]\nrepository_seconds = 0"),
        };
        let mut setup = Setup {
            artifacts: vec![pack("1.0.0", COUNT)],
            config: if way == Way::Restore { GENEROUS.to_owned() } else { config.clone() },
            state: Some(folder.path().join("state")),
            ..Setup::default()
        };
        let artifact = pack("1.1.0", golden);
        let mut server = Server::start(&setup);
        if way == Way::Restore {
            assert_eq!(server.deploy(&artifact)["state"], "done");
            assert!(server.stop().0.success());
            setup.artifacts.clear();
            setup.config = config;
            server = Server::start(&setup);
        }
        Self { way, server, artifact, _folder: folder }
    }

    /// Deploy the artifact; what an upload is answered.
    fn deploy(&self) -> Value {
        let put = || {
            // At once, as whoever does it well.
            std::fs::rename(&self.artifact, self.server.repository().join("next.wasm")).unwrap();
        };
        match self.way {
            Way::Upload => return self.server.deploy(&self.artifact),
            Way::Folder => put(),
            Way::Restore => {}
            Way::LoadByName => {
                put();
                let url = self.server.url("/v2/repository/models/misbehave/load");
                let key = [("X-API-Key", DEMO_ADMIN_KEY)];
                let answer = client::send("POST", &url, &key, b"{}");
                // The model is served, whatever becomes of the new version.
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
        Value::Null
    }

    /// How many deployments have ended so.
    fn count(&self, outcome: &str) -> u64 {
        let name = format!("guesthouse_deployments_total{{outcome=\"{outcome}\"}} ");
        let page = self.server.metrics();
        let value = page.lines().find_map(|line| line.strip_prefix(&name));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// The entries of the history about the new version.
    fn history(&self) -> Vec<Value> {
        let history = self.server.admin("GET", "history?model=misbehave", &Value::Null).body;
        let entries = history["entries"].as_array().unwrap().clone();
        entries.into_iter().filter(|entry| entry["version"] == "1.1.0").collect()
    }
}

fn pack(folder: &Path, version: &'static str, golden: &'static str) -> PathBuf {
    Misbehave { version, golden, ..Misbehave::default() }.pack(folder)
}

/// Leaks 40 MiB.
fn growing() -> &'static str {
    let example = r#"{"inputs": {"action": "grow"}, "outputs": {"done": "grow"}}"#;
    vec![example; 40].join("\n").leak()
}

#[test]
fn every_way_counts_and_compares_with_the_next_lower_version() {
    for way in WAYS {
        let case = Case::prepare(way, COUNT, GENEROUS);
        // A restore has deployed both versions by now.
        let expected = if way == Way::Restore { 2 } else { case.count("succeeded") + 1 };
        let answer = case.deploy();
        let ready = |line: &Value| line["message"] == "version ready" && line["version"] == "1.1.0";
        case.server.wait_for("1.1.0", ready);
        case.server.eventually("the count", |_| case.count("succeeded") == expected);
        assert_eq!(case.count("failed"), 0, "{way:?}");

        let replay = case.server.wait_for("the comparison", |line| {
            line["before"] == "1.0.0" && line["version"] == "1.1.0" && !line["different"].is_null()
        });
        assert_eq!((&replay["examples"], &replay["different"]), (&json!(1), &json!(1)), "{way:?}");
        let difference = replay["differences"].as_str().unwrap();
        assert!(difference.contains("golden example 1: `done` is"), "{way:?}: {replay}");
        if way == Way::Upload {
            let replay = &answer["result"]["replay"];
            assert_eq!(replay["of"], "1.0.0", "{answer}");
            assert_eq!(replay["differences"].as_array().unwrap().len(), 1, "{answer}");
        }
        let history = case.history();
        let [entry] = &history[..] else { panic!("{way:?}: {history:?}") };
        assert_eq!(
            (&entry["operation"], &entry["outcome"]),
            (&json!("deploy"), &json!("applied")),
            "{way:?}"
        );
    }
}

#[test]
fn every_way_refuses_a_version_whose_golden_example_fails() {
    for way in WAYS {
        let case = Case::prepare(way, growing(), STRICT);
        let before = if way == Way::Restore { 0 } else { case.count("failed") };
        let answer = case.deploy();
        let refused = |line: &Value| {
            line["level"] == "ERROR" && line["version"] == "1.1.0" && line["step"] == "golden"
        };
        case.server.wait_for("the refusal", refused);
        case.server.eventually("the count", |_| case.count("failed") == before + 1);
        if way == Way::Upload {
            assert_eq!(answer["error"]["error_code"], "unacceptable_artifact", "{answer}");
        }
        let path = "/models/misbehave/versions/1.1.0/predict";
        let pinned = case.server.post(path, &json!({"action": "echo"}));
        assert_ne!(pinned.status, 200, "{way:?}: {pinned:?}");
        let answer = case.server.post("/models/misbehave/predict", &json!({"action": "echo"}));
        assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.0.0")));

        let history = case.history();
        let [entry] = &history[..] else { panic!("{way:?}: {history:?}") };
        // A restore decides nothing: the history has the deployment that it repeats.
        let expected = if way == Way::Restore { "applied" } else { "failed" };
        assert_eq!(
            (&entry["operation"], &entry["outcome"]),
            (&json!("deploy"), &json!(expected)),
            "{way:?}"
        );
    }
}
