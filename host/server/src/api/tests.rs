//! The types of the API have the JSON of the values that the ledger stores and that other crates define.

use std::collections::BTreeMap;

use guesthouse_artifact::{ArtifactMetadata, Digest};
use guesthouse_control::control::{ChangeReport, DeployReport, KeyChangeReport, Replay};
use guesthouse_control::keys::{Key as StoredKey, KeyView};
use guesthouse_control::ledger;
use guesthouse_control::rollout;
use guesthouse_model::{Constraint, Datatype, Field, Signature};
use serde::Serialize;
use serde_json::{Value, json};

use super::catalogue::VersionDetails;
use super::change::{ModelChange, parse_stored};
use super::history::HistoryEntry;
use super::keys::KeyChange;
use super::operation::Deployment;
use super::schema;

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn routing() -> rollout::Routing {
    let version = |text: &str| text.parse().unwrap();
    rollout::Routing {
        stable: Some(version("1.0.0")),
        candidates: BTreeMap::from([(version("2.0.0-rc.1"), 100_000)]),
        shadow: Some(rollout::ShadowShare { version: version("2.0.0"), share: 1 }),
        promoted: vec![version("0.9.0")],
    }
}

fn changed(deploy: Option<DeployReport>) -> ChangeReport {
    ChangeReport {
        model: "toxicity".parse().unwrap(),
        revision: 7,
        changed: true,
        dry_run: false,
        status: rollout::Status::RolledBack,
        before: routing(),
        after: rollout::Routing::default(),
        deploy,
    }
}

#[test]
fn a_change_has_the_json_that_the_ledger_stores() {
    let changed = changed(None);
    let change = ModelChange::from(&changed);
    assert_eq!(text(&change), text(&changed));
    let stored: ModelChange = parse_stored(&text(&changed)).unwrap();
    assert_eq!(text(&stored), text(&changed));
}

#[test]
fn a_deployment_has_the_json_that_the_ledger_stores() {
    let digest = Digest::from_content(b"artifact");
    let replay = Replay {
        of: "0.9.0".parse().unwrap(),
        examples: 2,
        differences: vec!["example 1: …".to_owned()],
    };
    for replay in [None, Some(replay)] {
        let report = DeployReport { version: "1.0.0".parse().unwrap(), digest, replay };
        let changed = changed(Some(report));
        let deployment = Deployment::new(&changed).unwrap();
        assert_eq!(text(&deployment), text(&changed));
        let stored: Deployment = parse_stored(&text(&changed)).unwrap();
        assert_eq!(text(&stored), text(&changed));
    }
}

#[test]
fn a_change_of_keys_has_the_json_that_the_ledger_stores() {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let shown = StoredKey::demo_admin().view(now);
    let key = KeyView {
        id: Some("0123456789ab".to_owned()),
        rate: serde_json::from_value(json!({"per_second": 2.5, "burst": 3})).unwrap(),
        expires: Some("2027-01-01T00:00:00Z".parse().unwrap()),
        source: "ledger",
        ..shown
    };
    let secret = Some("secret".to_owned());
    let status = "KeyCreated";
    let change =
        KeyChangeReport { key, revision: 3, changed: true, dry_run: false, status, secret };
    let written = text(&change);
    assert_eq!(text(&KeyChange::from(change)), written);
    let stored: KeyChange = parse_stored(&written).unwrap();
    assert_eq!(text(&stored), written);
}

#[test]
fn history_entries_have_the_json_of_the_ledger() {
    let entry = json!({
        "sequence": 2, "revision": 1, "time": "2027-01-01T00:00:00.000Z", "actor": "ci",
        "reason": null, "operation": "promote", "model": "toxicity", "version": "1.0.0",
        "digest": Digest::from_content(b"artifact"), "outcome": "applied", "status": "Promoted",
        "error": null, "before": routing(), "after": routing(), "previous_hash": "0", "hash": "1",
    });
    let key = json!({
        "sequence": 3, "revision": 2, "time": "2027-01-01T00:00:00.000Z", "actor": "ci",
        "reason": "why", "operation": "create_key",
        "key": {"id": "a", "name": "ann", "scopes": ["admin", "predict:*"], "expires": null},
        "version": null, "digest": null, "outcome": "failed", "status": null, "error": "no",
        "previous_hash": "1",
    });
    for value in [entry, key] {
        let entry: ledger::Entry = serde_json::from_value(value).unwrap();
        let written = text(&entry);
        assert_eq!(text(&HistoryEntry::from(entry)), written);
    }
}

/// Asserts that the value has the properties that the schema requires, and no others.
fn assert_described(schema: &Value, components: &Value, value: &Value) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => &components[reference.rsplit('/').next().unwrap()],
        None => schema,
    };
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    {
        for (name, value) in fields {
            let schema = properties.get(name).unwrap_or_else(|| panic!("{name} is not described"));
            assert_described(schema, components, value);
        }
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for name in required {
            assert!(fields.contains_key(name.as_str().unwrap()), "{name} is missing");
        }
    }
    for item in value.as_array().into_iter().flatten() {
        assert_described(&schema["items"], components, item);
    }
}

#[test]
fn the_schema_of_a_version_describes_its_signature() {
    let field = |default| Field {
        name: "text".to_owned(),
        description: String::new(),
        datatype: Datatype::Bytes,
        row_shape: vec![None, Some(3)],
        constraints: vec![Constraint::Text, Constraint::Length { minimum: 1, maximum: 2 }],
        default,
    };
    let details = VersionDetails {
        model: "toxicity".parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        digest: Digest::from_content(b"artifact"),
        snapshot: true,
        metadata: ArtifactMetadata::default(),
        signature: Signature {
            inputs: vec![field(Some(vec![1]))],
            outputs: vec![field(None)],
            max_batch_size: 1,
        },
    };
    let mut generator = schema::components();
    let root = generator.subschema_for::<VersionDetails>().to_value();
    let components = Value::Object(schema::definitions(generator));
    assert_described(&root, &components, &serde_json::to_value(details).unwrap());
}
