//! The reference of the configuration file, as Markdown: every key with its type, its default and its
//! meaning. Types and meanings come from the schema of [`ConfigFile`], defaults from the validated
//! empty file.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{ConfigFile, Settings};
use guesthouse_runtime::guest::InstanceLimits;
use guesthouse_runtime::pool::ReuseLimits;
use guesthouse_runtime::version::Batching;

/// One section of the file.
struct Section {
    /// The path of its keys: empty at the top level.
    path: String,
    /// The header in TOML.
    header: String,
    meaning: String,
    keys: Vec<Key>,
}

/// One key of a section.
struct Key {
    name: String,
    kind: String,
    meaning: String,
}

/// The reference as Markdown, one table for each section.
///
/// # Panics
/// If a default is not valid, which the tests exclude.
pub fn reference() -> String {
    let settings = ConfigFile::default().validate().expect("the defaults are valid");
    let defaults = defaults(&settings);
    let mut text = String::new();
    for section in sections() {
        let title = if section.path.is_empty() { "Top level" } else { &section.header };
        writeln!(text, "## {title}\n\n{}\n", section.meaning).expect("a string takes it");
        text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for Key { name, kind, meaning } in section.keys {
            let path = join(&section.path, &name);
            let known = defaults.iter().find(|(key, _)| *key == path);
            let default = known.map_or("", |(_, default)| default);
            writeln!(text, "| `{name}` | {kind} | {default} | {meaning} |")
                .expect("a string takes it");
        }
        text.push('\n');
    }
    text
}

/// All sections with their keys, in the order of their types.
fn sections() -> Vec<Section> {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<ConfigFile>().to_value();
    let mut sections = Vec::new();
    add_section(&mut sections, "", "", &schema);
    // Its description is that of the type.
    sections[0].meaning = "Keys outside of any section.".to_owned();
    sections
}

fn add_section(sections: &mut Vec<Section>, path: &str, header: &str, schema: &Value) {
    let at = sections.len();
    let (path, header) = (path.to_owned(), header.to_owned());
    let meaning = meaning(schema);
    sections.push(Section { path: path.clone(), header, meaning, keys: Vec::new() });
    for (name, property) in properties(schema).into_iter().flatten() {
        let inner = join(&path, name);
        if properties(property).is_some() {
            add_section(sections, &inner, &header_of(&inner), property);
        } else if let Some(items) = property.get("items").filter(|it| properties(it).is_some()) {
            add_section(sections, &inner, &format!("`[[{inner}]]`"), items);
        } else if let Some(items) =
            property.get("additionalProperties").filter(|it| properties(it).is_some())
        {
            let inner = format!("{inner}.NAME");
            add_section(sections, &inner, &header_of(&inner), items);
        } else {
            let (kind, meaning) = (kind(name, property), self::meaning(property));
            sections[at].keys.push(Key { name: name.clone(), kind, meaning });
            // A value that can be a table has keys of its own.
            let tables = alternatives(property).filter_map(properties).flatten();
            for (table, schema) in tables.filter(|(_, schema)| properties(schema).is_some()) {
                let inner = format!("{inner}.{table}");
                add_section(sections, &inner, &header_of(&inner), schema);
            }
        }
    }
}

fn header_of(path: &str) -> String {
    format!("`[{path}]`")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// The description, as one line of a table.
fn meaning(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The schemas of which one holds.
fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["anyOf", "oneOf"].into_iter().filter_map(|word| schema.get(word)?.as_array());
    lists.flatten()
}

/// The type of a value and its unit, which the name of the key ends in.
fn kind(name: &str, schema: &Value) -> String {
    let words: Vec<_> = match schema.get("enum").and_then(Value::as_array) {
        Some(words) => words.iter().filter(|word| !word.is_null()).map(quoted).collect(),
        None => match schema.get("type") {
            Some(Value::String(word)) => vec![type_word(word, schema)],
            Some(Value::Array(words)) => {
                let words = words.iter().filter_map(Value::as_str);
                words.filter(|word| *word != "null").map(|word| type_word(word, schema)).collect()
            }
            _ => alternatives(schema)
                .filter(|one| one["type"] != "null")
                .map(|one| match one.get("const") {
                    Some(word) => quoted(word),
                    None => kind("", one),
                })
                .collect(),
        },
    };
    let units = [
        ("_bytes", "bytes"),
        ("_kib", "KiB"),
        ("_mib", "MiB"),
        ("_microseconds", "microseconds"),
        ("milliseconds", "milliseconds"),
        ("seconds", "seconds"),
    ];
    let unit = units.iter().find(|(ending, _)| name.trim_end_matches("_at_most").ends_with(ending));
    let unit = unit.map(|(_, unit)| format!(", {unit}")).unwrap_or_default();
    format!("{}{unit}", words.join(" or "))
}

fn quoted(word: &Value) -> String {
    format!("`{word}`")
}

fn type_word(word: &str, schema: &Value) -> String {
    match word {
        "array" => {
            let items = schema.get("items").map(|items| kind("", items)).unwrap_or_default();
            format!("array of {items}s")
        }
        "object" => "table".to_owned(),
        word => word.to_owned(),
    }
}

/// The default of each key: a value in TOML, or words where there is none or it depends.
fn defaults(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut all = top_level_defaults(settings);
    all.extend(limits_defaults(settings));
    all.extend(model_defaults(settings));
    all
}

fn value(value: impl ToString) -> String {
    format!("`{}`", value.to_string())
}

fn text(text: impl std::fmt::Display) -> String {
    format!("`\"{text}\"`")
}

fn words(words: &str) -> String {
    words.to_owned()
}

fn top_level_defaults(settings: &Settings) -> Vec<(&'static str, String)> {
    let super::GrpcListen::At(grpc) = &settings.grpc_listen else {
        unreachable!("gRPC is served by default")
    };
    let metrics = match settings.metrics.listener {
        super::MetricsListener::Public => "public",
        super::MetricsListener::Admin => "admin",
    };
    vec![
        ("listen", text(&settings.listen)),
        ("grpc_listen", text(grpc)),
        ("admin_listen", text(&settings.admin_listen)),
        ("repository", text(settings.repository.display())),
        ("state", text(settings.state.display())),
        ("default_model", words("the only model")),
        ("server.name", text(&settings.server.name)),
        ("server.repository_changes", value(settings.server.repository_changes)),
        ("tls.certificate", words("required")),
        ("tls.key", words("required")),
        ("cors.origins", words("none")),
        ("proxy.trusted", words("none")),
        ("keys.name", words("required")),
        ("keys.sha256", words("required")),
        ("keys.scopes", value("[\"predict:*\"]")),
        ("keys.expires", words("never")),
        ("keys.rate.per_second", words("as `[rate_limit]`")),
        ("keys.rate.burst", words("`per_second`, rounded up")),
        ("rate_limit.requests_per_second", words("unlimited")),
        ("rate_limit.burst", words("`requests_per_second`, rounded up")),
        ("idempotency.seconds", value(settings.answers.time.as_secs())),
        ("idempotency.memory_mib", value(settings.answers.bytes >> 20)),
        ("metrics.listener", text(metrics)),
        ("metrics.key", value(settings.metrics.needs_key)),
        ("tracing.endpoint", words("none")),
        ("tracing.sample", value(settings.tracing.sample)),
        ("tracing.service", text(&settings.tracing.service)),
        ("capture.folder", words("`captures` in the state folder")),
        ("capture.file_mib", value(settings.capture.file_bytes >> 20)),
        ("capture.files", value(settings.capture.files)),
        ("arithmetic.granted", value(settings.arithmetic.granted)),
        ("arithmetic.backend", text("auto")),
        ("arithmetic.use_idle_cores", value(settings.arithmetic.use_idle_cores)),
    ]
}

fn limits_defaults(settings: &Settings) -> Vec<(&'static str, String)> {
    let limits = &settings.limits;
    let seconds = |time: std::time::Duration| value(time.as_secs());
    vec![
        ("limits.body_bytes", value(limits.body_bytes)),
        ("limits.bodies_in_flight_bytes", value(limits.bodies_in_flight_bytes)),
        ("limits.batch_rows", value(limits.batch_rows)),
        ("limits.body_seconds", seconds(limits.body_time)),
        ("limits.connections", value(limits.connections)),
        ("limits.head_seconds", seconds(limits.head_time)),
        ("limits.idle_seconds", seconds(limits.idle_time)),
        ("limits.predict_milliseconds", value(limits.model.predict_time.as_millis())),
        ("limits.predict_milliseconds_at_most", value(limits.max_predict_time.as_millis())),
        ("limits.linger_seconds", seconds(limits.linger_time)),
        ("limits.drain_seconds", seconds(limits.drain_time)),
        ("limits.repository_seconds", seconds(limits.repository_interval.unwrap_or_default())),
        ("limits.threads_per_version", words("the cores, or what the CPU quota is worth")),
        ("limits.inference_threads", words("four times `threads_per_version`")),
        ("limits.queued_batches", value(limits.inference.queued_per_version)),
        ("limits.instances", words("`inference_threads` and 32 times `threads_per_version`")),
        ("limits.instance_memory_mib", value(limits.model.instance.memory_bytes >> 20)),
        ("limits.memory_mib", words("the memory of the machine or of the container")),
        ("limits.preinit_cpu_seconds", seconds(limits.preinit.cpu_time)),
        ("limits.preinit_memory_mib", value(limits.preinit.memory_bytes >> 20)),
        ("limits.preinit_priority", text("idle")),
        ("limits.start_seconds", seconds(limits.preinit.start_time)),
        ("limits.traffic_log_seconds", seconds(limits.traffic_log_interval)),
    ]
}

fn model_defaults(settings: &Settings) -> Vec<(&'static str, String)> {
    let instance: &InstanceLimits = &settings.limits.model.instance;
    let (reuse, batching) = (ReuseLimits::default(), Batching::default());
    let general = || words("as `[limits]`");
    vec![
        ("models.NAME.split", words("none")),
        ("models.NAME.sticky_header", words("none")),
        ("models.NAME.sticky_field", words("none")),
        ("models.NAME.parked_versions", value(guesthouse_control::control::DEFAULT_PARKED)),
        ("models.NAME.rate.per_second", words("unlimited")),
        ("models.NAME.rate.burst", words("`per_second`, rounded up")),
        ("models.NAME.shadow_capture", value(false)),
        ("models.NAME.capture_share", value(0)),
        ("models.NAME.isolation", words("`{ reuse = {} }`")),
        ("models.NAME.isolation.reuse.max_batches", value(reuse.max_batches)),
        ("models.NAME.isolation.reuse.max_memory_growth_mib", value(reuse.max_memory_growth >> 20)),
        ("models.NAME.isolation.reuse.max_age_seconds", value(reuse.max_age.as_secs())),
        ("models.NAME.predict_milliseconds", general()),
        ("models.NAME.instance_memory_mib", general()),
        ("models.NAME.table_elements", value(instance.table_elements)),
        ("models.NAME.output_mib", value(instance.transfer_bytes >> 20)),
        ("models.NAME.log_kib", value(instance.log_bytes >> 10)),
        ("models.NAME.stack_kib", value(instance.stack_bytes >> 10)),
        ("models.NAME.instances", words("`limits.threads_per_version`")),
        ("models.NAME.accept_non_finite", value(instance.accept_non_finite)),
        ("models.NAME.arithmetic", words("as `[arithmetic]`")),
        ("models.NAME.batching.enabled", value(batching.is_enabled)),
        ("models.NAME.batching.max_batch_size", words("as the signature")),
        (
            "models.NAME.batching.max_queue_delay_microseconds",
            value(batching.max_queue_delay.as_micros()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_has_a_meaning_a_type_and_a_default() {
        let settings = ConfigFile::default().validate().unwrap();
        let defaults = defaults(&settings);
        let with_default: BTreeSet<_> = defaults.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(with_default.len(), defaults.len(), "a key is there twice");
        let mut keys = BTreeSet::new();
        for section in sections() {
            assert!(!section.meaning.is_empty(), "{}", section.path);
            for Key { name, kind, meaning } in section.keys {
                let path = join(&section.path, &name);
                assert!(!meaning.is_empty() && !kind.is_empty(), "{path}: {kind}: {meaning}");
                keys.insert(path);
            }
        }
        assert_eq!(keys, with_default);
    }

    #[test]
    fn the_reference_shows_types_units_and_defaults() {
        let text = reference();
        for row in [
            "## `[[keys]]`",
            "## `[models.NAME.batching]`",
            "| `body_bytes` | integer, bytes | `8388608` | The largest body",
            "| `listener` | `\"public\"` or `\"admin\"` | `\"public\"` | The listener",
            "| `origins` | array of strings | none |",
            "| `isolation` | `\"fresh\"` or table |",
            "| `split` | table |",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
    }
}
