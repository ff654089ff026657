//! Renders the bodies of responses for people: lines of text, in columns and without decoration.
//!
//! The cells of tables are escaped for terminals here, because their width depends on it; other text is
//! escaped where it is printed.

use std::iter;

use guesthouse_control::rollout::Share;
use guesthouse_model::terminal::printable;
use serde_json::Value;

use guesthouse_server::api::OpenEnum;
use guesthouse_server::api::catalogue::Resolution;
use guesthouse_server::api::change::ModelChange;
use guesthouse_server::api::history::{History, HistoryEntry, Outcome};
use guesthouse_server::api::keys::{Key, KeyChange, KeyList};
use guesthouse_server::api::operation::{Deployment, Replay};
use guesthouse_server::api::status::{
    ArithmeticGrant, ModelStatus, Routing, Status, VersionStatus,
};

/// The hexadecimal digits of a digest that are shown, which are enough to distinguish versions.
const DIGEST_DIGITS: usize = 12;

/// Stands for a missing value.
const NOTHING: &str = "-";

pub(super) fn status(status: &Status) -> Vec<String> {
    let head = status.audit_head.as_deref().map_or(NOTHING, short_digest);
    let mut lines = vec![format!("revision {}, head of the audit log {head}", status.revision)];
    if status.models.is_empty() {
        lines.push("no model is deployed".to_owned());
    }
    for one in &status.models {
        lines.push(String::new());
        lines.extend(model(one));
    }
    lines
}

pub(super) fn model(model: &ModelStatus) -> Vec<String> {
    let Routing { shadow, promoted, .. } = &model.routing;
    let shadow = shadow.as_ref().map(|shadow| format!("{} {}", shadow.version, shadow.share));
    let back = promoted.last().map(ToString::to_string);
    let facts = [
        ("routing", Some(split(&model.routing))),
        ("shadow", shadow),
        // Where `rollback` leads, as long as no rollout is under way.
        ("before", back),
    ];
    let facts = facts.into_iter().filter_map(|(name, fact)| Some((name, fact?)));
    let mut lines = vec![format!("{}, revision {}", model.model, model.revision)];
    lines.extend(facts.map(|(name, fact)| format!("  {name:<7}  {fact}")));
    let heads = ["VERSION", "STATE", "DIGEST", "FLAGS"].map(str::to_owned);
    let rows = model.versions.iter().map(|version| {
        let digest = version.digest.map(|digest| digest.to_string());
        let digest = digest.as_deref().map_or(NOTHING, short_digest).to_owned();
        let flags = flags(version, &model.routing);
        [version.version.to_string(), version.state.to_string(), digest, flags]
    });
    let rows: Vec<_> = iter::once(heads).chain(rows).collect();
    lines.extend(table(&rows).map(|line| format!("  {line}")));
    lines
}

/// The properties of a version that its state does not tell.
fn flags(version: &VersionStatus, routing: &Routing) -> String {
    let shadow = routing.shadow.as_ref().map(|shadow| &shadow.version);
    let flags = [
        ("stable", routing.stable.as_ref() == Some(&version.version)),
        ("canary", routing.candidates.contains_key(&version.version)),
        ("shadow", shadow == Some(&version.version)),
        ("suspended", version.suspended),
        ("no arithmetic", version.arithmetic == Some(ArithmeticGrant::Denied.into())),
    ];
    let flags = flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.to_owned());
    let step = version.failed_step.as_ref().map(|step| format!("failed at {step}"));
    let flags: Vec<_> = flags.chain(step).chain(version.reason.clone()).collect();
    flags.join(", ")
}

pub(super) fn change(change: &ModelChange) -> Vec<String> {
    let ModelChange { model, revision, status, .. } = change;
    let first = match (change.dry_run, change.changed) {
        (true, true) => format!("{model}: {status} (a dry run, nothing was changed)"),
        (true, false) => format!("{model}: {status} (a dry run, and nothing would change)"),
        (false, true) => format!("{model}: {status}, now at revision {revision}"),
        (false, false) => format!("{model}: {status}, as it was, at revision {revision}"),
    };
    let before = change.before.as_ref().map(|before| format!("  before  {}", routing(before)));
    let after = change.after.as_ref().map(|after| format!("  after   {}", routing(after)));
    iter::once(first).chain(before).chain(after).collect()
}

pub(super) fn deployed(deployed: &Deployment) -> Vec<String> {
    let Deployment { change: ModelChange { model, dry_run, .. }, version, digest, .. } = deployed;
    let digest = digest.to_string();
    let ready = if *dry_run { "would be deployed" } else { "is deployed" };
    let mut lines = vec![format!("{model}@{version} {ready} ({})", short_digest(&digest))];
    lines.extend(deployed.replay.iter().flat_map(replay));
    lines.extend(change(&deployed.change));
    lines
}

fn replay(replay: &Replay) -> Vec<String> {
    let Replay { examples, differences, .. } = replay;
    let examples = match examples {
        1 => "1 golden example".to_owned(),
        examples => format!("{examples} golden examples"),
    };
    let first = if differences.is_empty() {
        format!("answers {examples} of the version before as it did")
    } else {
        format!("answers {examples} of the version before, and differs:")
    };
    iter::once(first).chain(differences.iter().map(|one| format!("  {one}"))).collect()
}

pub(super) fn history(history: &History) -> Vec<String> {
    if history.entries.is_empty() {
        return vec!["nothing has been changed".to_owned()];
    }
    let rows: Vec<_> = history.entries.iter().map(entry).collect();
    table(&rows).collect()
}

fn entry(entry: &HistoryEntry) -> [String; 8] {
    let or_nothing = |text: Option<String>| text.unwrap_or_else(|| NOTHING.to_owned());
    let version = entry.version.as_ref();
    let outcome = match (&entry.outcome, &entry.status, &entry.error) {
        (OpenEnum::Known(Outcome::Applied), Some(status), _) => status.clone(),
        (outcome, _, Some(error)) => format!("{outcome}: {error}"),
        (outcome, _, None) => outcome.to_string(),
    };
    [
        entry.sequence.to_string(),
        entry.time.clone(),
        format!("revision {}", entry.revision),
        entry.actor.clone(),
        entry.operation.clone(),
        match (&entry.model, version, &entry.key) {
            (Some(model), Some(version), _) => format!("{model}@{version}"),
            (None, _, Some(key)) => format!("key {} {}", key.id, key.name),
            (model, ..) => or_nothing(model.as_ref().map(ToString::to_string)),
        },
        outcome,
        entry.reason.clone().unwrap_or_default(),
    ]
}

pub(super) fn resolution(resolution: &Resolution) -> Vec<String> {
    let Resolution { model, matches, .. } = resolution;
    let mut lines = Vec::new();
    if let Some(choice) = &resolution.choice {
        lines.push(format!("{model}@{} would answer ({})", choice.version, choice.reason));
    } else if matches.is_empty() {
        lines.push(format!("no version of {model} would answer"));
    } else {
        lines.push(format!("{model}: it depends on the caller"));
    }
    let rows: Vec<_> = matches
        .iter()
        .map(|one| [one.version.to_string(), one.reason.clone(), one.share.to_string()])
        .collect();
    lines.extend(table(&rows).map(|line| format!("  {line}")));
    lines
}

pub(super) fn keys(keys: &KeyList) -> Vec<String> {
    let heads = ["ID", "NAME", "STATE", "SCOPES", "EXPIRES", "RATE", "MADE BY"].map(str::to_owned);
    let row = |key: &Key| {
        let or_nothing = |text: Option<&String>| text.map_or(NOTHING, String::as_str).to_owned();
        let rate = key.rate.as_ref();
        [
            or_nothing(key.id.as_ref()),
            key.name.clone(),
            key.state.to_string(),
            key.scopes.join(","),
            or_nothing(key.expires.as_ref()),
            or_nothing(rate.map(|rate| format!("{}/s,{}", rate.per_second, rate.burst)).as_ref()),
            key.created_by.clone().unwrap_or_else(|| format!("({})", key.source)),
        ]
    };
    let rows: Vec<_> = iter::once(heads).chain(keys.keys.iter().map(row)).collect();
    table(&rows).collect()
}

pub(super) fn key_change(change: &KeyChange) -> Vec<String> {
    let KeyChange { key, revision, status, .. } = change;
    let id = key.id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
    let end = key.expires.as_ref().map(|end| format!(", until {end}")).unwrap_or_default();
    let what = match (change.dry_run, change.changed) {
        (true, true) => "a dry run, nothing was changed".to_owned(),
        (true, false) => "a dry run, and nothing would change".to_owned(),
        (false, true) => format!("at revision {revision}"),
        (false, false) => "as it was".to_owned(),
    };
    vec![format!("{status}: key{id} of {} for {}{end} ({what})", key.name, key.scopes.join(", "))]
}

/// Any JSON as an outline, for reports of which this program does not know the fields.
pub(super) fn outline(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let scalar = |value: &Value| !value.is_object() && !value.is_array();
            let names = fields.iter().filter(|(_, value)| scalar(value)).map(|(name, _)| name);
            let width = names.map(|name| name.chars().count()).max().unwrap_or_default();
            let field = |(name, value): (&String, &Value)| {
                if scalar(value) {
                    vec![format!("{name:<width$}  {}", plain(value))]
                } else {
                    iter::once(name.clone()).chain(indented(outline(value))).collect()
                }
            };
            fields.iter().flat_map(field).collect()
        }
        Value::Array(items) => items
            .iter()
            .flat_map(|item| {
                let lines = outline(item).into_iter().enumerate();
                lines.map(|(at, line)| format!("{} {line}", if at == 0 { "-" } else { " " }))
            })
            .collect(),
        scalar => vec![plain(scalar)],
    }
}

fn indented(lines: Vec<String>) -> impl Iterator<Item = String> {
    lines.into_iter().map(|line| format!("  {line}"))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The split and the shadow.
fn routing(routing: &Routing) -> String {
    let shadow = routing.shadow.as_ref();
    let shadow = shadow.map(|shadow| format!("shadow {} {}", shadow.version, shadow.share));
    iter::once(split(routing)).chain(shadow).collect::<Vec<_>>().join(", ")
}

/// The versions that answer requests, with their shares.
fn split(routing: &Routing) -> String {
    let candidates = &routing.candidates;
    let rest = Share::remainder(candidates.values().copied());
    let stable = routing.stable.iter().map(|version| format!("stable {version} {rest}"));
    // The newest first, as everywhere.
    let candidates = candidates.iter().rev();
    let canaries = candidates.map(|(version, share)| format!("canary {version} {share}"));
    let parts: Vec<_> = stable.chain(canaries).collect();
    if parts.is_empty() { "nothing is served".to_owned() } else { parts.join(", ") }
}

fn short_digest(digest: &str) -> &str {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    digits.char_indices().nth(DIGEST_DIGITS).map_or(digits, |(end, _)| &digits[..end])
}

/// Align cells in columns. The last cell of a row is not padded.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> impl Iterator<Item = String> {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.into_iter().map(move |row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    fn parse<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn routing(version: &str) -> Value {
        json!({"stable": version, "candidates": {}, "shadow": null, "promoted": []})
    }

    fn toxicity() -> Value {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        json!({
            "model": "toxicity", "revision": 12, "stable": "1.0.0",
            "candidates": {"2.0.0": 100_000}, "shadow": {"version": "2.0.0", "share": 1_000_000},
            "promoted": ["0.8.0", "0.9.0"],
            "versions": [
                {"version": "2.0.0", "digest": digest("a"), "state": "ready", "suspended": true,
                 "failed_step": null, "reason": null},
                {"version": "1.0.0", "digest": digest("b"), "state": "ready", "suspended": false,
                 "arithmetic": "denied"},
                {"version": "0.7.0", "digest": digest("c"), "state": "failed",
                 "failed_step": "prove", "reason": "a\x1b]0;b"},
                {"version": "0.6.0", "digest": null, "state": "failed",
                 "failed_step": "contract", "reason": "b"},
            ],
            "of another time": 1,
        })
    }

    #[test]
    fn a_models_state_is_summarised() {
        let value =
            json!({"revision": 13, "audit_head": "0123456789abcdef", "models": [toxicity()]});
        let lines = status(&parse(value));
        let shown = [
            "revision 13, head of the audit log 0123456789ab",
            "",
            "toxicity, revision 12",
            "  routing  stable 1.0.0 90 %, canary 2.0.0 10 %",
            "  shadow   2.0.0 100 %",
            "  before   0.9.0",
            "  VERSION  STATE   DIGEST        FLAGS",
            "  2.0.0    ready   aaaaaaaaaaaa  canary, shadow, suspended",
            "  1.0.0    ready   bbbbbbbbbbbb  stable, no arithmetic",
            r"  0.7.0    failed  cccccccccccc  failed at prove, a\u{1b}]0;b",
            "  0.6.0    failed  -             failed at contract, b",
        ];
        assert_eq!(lines, shown);
        let empty = json!({"revision": 0, "audit_head": null, "models": []});
        let shown = ["revision 0, head of the audit log -", "no model is deployed"];
        assert_eq!(status(&parse(empty)), shown);
    }

    #[test]
    fn a_change_shows_the_routing_before_and_after() {
        let before = json!({"stable": "1.0.0", "candidates": {"2.0.0": 5_000}, "promoted": [],
            "shadow": {"version": "2.0.0", "share": 1}});
        let mut value = json!({"model": "toxicity", "revision": 13, "changed": true,
            "dry_run": false, "status": "Promoted", "before": before, "after": routing("2.0.0")});
        let shown = [
            "toxicity: Promoted, now at revision 13",
            "  before  stable 1.0.0 99.5 %, canary 2.0.0 0.5 %, shadow 2.0.0 0.0001 %",
            "  after   stable 2.0.0 100 %",
        ];
        assert_eq!(change(&parse(value.clone())), shown);
        value["dry_run"] = json!(true);
        let first = &change(&parse(value.clone()))[0];
        assert_eq!(first, "toxicity: Promoted (a dry run, nothing was changed)");
        value["changed"] = json!(false);
        value["dry_run"] = json!(false);
        let first = &change(&parse(value))[0];
        assert_eq!(first, "toxicity: Promoted, as it was, at revision 13");
    }

    #[test]
    fn a_deployment_shows_replay_differences() {
        let difference = "example 1: `score` is 0.7, not 0.03";
        let value = json!({"model": "toxicity", "revision": 2, "changed": true, "dry_run": false,
            "status": "Deployed", "before": null, "after": {"stable": null}, "version": "1.1.0",
            "digest": format!("sha256:{}", "0123456789abcdef".repeat(4)),
            "replay": {"examples": 2, "differences": [difference]}});
        let shown = [
            "toxicity@1.1.0 is deployed (0123456789ab)",
            "answers 2 golden examples of the version before, and differs:",
            "  example 1: `score` is 0.7, not 0.03",
            "toxicity: Deployed, now at revision 2",
            "  after   nothing is served",
        ];
        assert_eq!(deployed(&parse(value)), shown);
    }

    #[test]
    fn the_history_has_a_line_for_each_entry() {
        let value = json!({"entries": [
            {"sequence": 10, "revision": 13, "time": "2026-11-22T21:00:01.000Z", "actor": "ci",
             "operation": "promote", "model": "toxicity", "version": "2.0.0", "outcome": "failed",
             "error": "not\nready", "reason": null},
            {"sequence": 9, "revision": 13, "time": "2026-11-22T21:00:00.123Z", "actor": "ci",
             "operation": "rollback", "model": "toxicity", "version": null, "outcome": "applied",
             "error": null, "status": "RolledBack", "reason": "too slow"},
        ]});
        let shown = [
            "10  2026-11-22T21:00:01.000Z  revision 13  ci  promote   toxicity@2.0.0  \
             failed: not\\nready",
            "9   2026-11-22T21:00:00.123Z  revision 13  ci  rollback  toxicity        \
             RolledBack          too slow",
        ];
        assert_eq!(history(&parse(value)), shown);
        assert_eq!(history(&parse(json!({"entries": []}))), ["nothing has been changed"]);
    }

    #[test]
    fn keys_are_listed_without_secrets() {
        let value = json!({"keys": [
            {"id": null, "name": "ci", "scopes": ["predict:*"], "state": "active", "expires": null,
             "rate": null, "source": "configuration", "created_by": null},
            {"id": "0123456789ab", "name": "ann", "scopes": ["admin", "predict:m"],
             "state": "revoked", "expires": "2027-01-01T00:00:00Z", "source": "ledger",
             "rate": {"per_second": 0.5, "burst": 2}, "created_by": "root"},
        ]});
        let shown = [
            "ID            NAME  STATE    SCOPES           EXPIRES               RATE     MADE BY",
            "-             ci    active   predict:*        -                     -        \
             (configuration)",
            "0123456789ab  ann   revoked  admin,predict:m  2027-01-01T00:00:00Z  0.5/s,2  root",
        ];
        assert_eq!(keys(&parse(value.clone())), shown);
        let mut change = json!({"key": value["keys"][1], "revision": 7, "changed": true,
            "dry_run": false, "status": "KeyRevoked"});
        let first = "KeyRevoked: key 0123456789ab of ann for admin, predict:m, \
                     until 2027-01-01T00:00:00Z (at revision 7)";
        assert_eq!(key_change(&parse(change.clone())), [first]);
        change["changed"] = json!(false);
        assert!(key_change(&parse(change))[0].ends_with("(as it was)"));
    }

    #[test]
    fn a_resolution_shows_one_version_or_the_shares() {
        let one = json!({"model": "m", "selector": "stable", "version": "1.0.0",
            "reason": "channel", "matches": []});
        assert_eq!(resolution(&parse(one)), ["m@1.0.0 would answer (channel)"]);
        let many = json!({"model": "m", "selector": null, "reason": "split", "matches": [
            {"version": "1.0.0", "reason": "split", "share": 900_000},
            {"version": "2.0.0-rc.1", "reason": "split", "share": 100_000},
        ]});
        let shown = [
            "m: it depends on the caller",
            "  1.0.0       split  90 %",
            "  2.0.0-rc.1  split  10 %",
        ];
        assert_eq!(resolution(&parse(many)), shown);
        let none = json!({"model": "m", "matches": []});
        assert_eq!(resolution(&parse(none)), ["no version of m would answer"]);
    }

    #[test]
    fn arbitrary_reports_are_printed() {
        let value = json!({"version": "2.0.0", "requests": 7, "latency": {"p50": 1.5, "best": null},
            "examples": [{"row": 1, "why": "x"}, "plain"]});
        let shown = [
            "version   2.0.0",
            "requests  7",
            "latency",
            "  p50   1.5",
            "  best  -",
            "examples",
            "  - row  1",
            "    why  x",
            "  - plain",
        ];
        assert_eq!(outline(&value), shown);
    }
}
