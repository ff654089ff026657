//! The schemas of bodies.

use serde_json::{Map, Value, json};

use crate::edge::error::ErrorCode;
use crate::edge::idempotency::KEY_FIELD;
use crate::edge::policy::Policy;
use guesthouse_model::record::schema;
use guesthouse_model::{Datatype, Field, Signature};
use guesthouse_runtime::version::ServableVersion;

/// The schemas of one version.
pub(super) struct Schemas<'a> {
    version: &'a ServableVersion,
    max_rows: usize,
    /// The field of the body that tells callers apart.
    sticky: Option<&'a str>,
}

/// A reference to a schema of the document.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

impl<'a> Schemas<'a> {
    pub(super) fn new(policy: &'a Policy, version: &'a ServableVersion) -> Self {
        let sticky = policy.sticky.get(&version.id().name);
        let sticky = sticky.and_then(|sticky| sticky.field.as_deref());
        Self { version, max_rows: policy.limits.batch_rows, sticky }
    }

    fn signature(&self) -> &'a Signature {
        self.version.signature()
    }

    /// The name of a schema of this version in the document.
    pub(super) fn name(&self, what: &str) -> String {
        // Names have letters, digits, dots, hyphens and underscores only.
        let id = self.version.id();
        format!("{}-{}-{what}", id.name, id.version).replace('+', "_")
    }

    /// All of them, for the document.
    pub(super) fn named(&self) -> [(String, Value); 4] {
        [
            (self.name("request"), self.request()),
            (self.name("response"), self.response()),
            (self.name("batch-request"), self.batch_request()),
            (self.name("batch-response"), self.batch_response()),
        ]
    }

    pub(super) fn request(&self) -> Value {
        let mut row = schema::inputs(self.signature());
        self.add_beside(&mut row);
        Value::Object(row)
    }

    pub(super) fn response(&self) -> Value {
        let mut answer = self.outputs();
        add(&mut answer, self.told());
        Value::Object(answer)
    }

    pub(super) fn batch_request(&self) -> Value {
        let rows = |items: Value| json!({"type": "array", "items": items, "minItems": 1, "maxItems": self.max_rows});
        let instances = rows(Value::Object(schema::inputs(self.signature())));
        let mut forms = vec![("instances".to_owned(), instances)];
        let required: Vec<&Field> = self.signature().required_inputs().collect();
        if let [only] = required[..] {
            let inputs = schema::inputs(self.signature());
            forms.push((format!("{}s", only.name), rows(inputs["properties"][&only.name].clone())));
        }
        let forms = forms.into_iter().map(|(name, rows)| {
            let properties = Map::from_iter([(name.clone(), rows)]);
            let mut form = schema::object(properties, &[&name]);
            self.add_beside(&mut form);
            Value::Object(form)
        });
        json!({"anyOf": forms.collect::<Value>()})
    }

    pub(super) fn batch_response(&self) -> Value {
        let failed = json!({
            "type": "object",
            "properties": {"error": reference("RowError")},
            "required": ["error"],
            "additionalProperties": false,
        });
        let row = json!({"anyOf": [Value::Object(self.outputs()), failed]});
        let results = json!({"type": "array", "items": row});
        let mut answer =
            schema::object(Map::from_iter([("results".to_owned(), results)]), &["results"]);
        add(&mut answer, self.told());
        Value::Object(answer)
    }

    /// The inputs that are files, with their descriptions, and whether it is the only one that is needed.
    pub(super) fn files(&self) -> impl Iterator<Item = &'a Field> {
        let is_file = |field: &&Field| field.datatype == Datatype::Bytes && !field.is_text();
        self.signature().inputs.iter().filter(is_file)
    }

    pub(super) fn inputs(&self) -> &'a [Field] {
        &self.signature().inputs
    }

    fn outputs(&self) -> Map<String, Value> {
        schema::outputs(self.signature(), self.version.limits().instance.accept_non_finite)
    }

    /// What every answer says beside its outputs.
    fn told(&self) -> [(&'static str, Value); 3] {
        let id = self.version.id();
        [
            ("model", json!({"const": id.name.as_str()})),
            ("model_version", json!({"type": "string", "description": "semver"})),
            ("request_id", json!({"type": "string"})),
        ]
    }

    /// What may stand beside the inputs.
    fn add_beside(&self, schema: &mut Map<String, Value>) {
        let word = |pattern: &str, description: &str| {
            json!({
                "type": "string", "minLength": 1, "maxLength": 128, "pattern": pattern,
                "description": description,
            })
        };
        let mut beside = vec![
            ("request_id", word("^[!-~]*$", "comes back, and stands in the log")),
            (KEY_FIELD, word("^[ -~]*$", "names the request: asked again, its answer comes back")),
        ];
        if let Some(field) = self.sticky {
            let integer = json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX});
            let caller = json!({"anyOf": [{"type": "string"}, integer], "description": "tells callers apart"});
            beside.push((field, caller));
        }
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        let properties = properties.expect("every object schema has properties");
        for (name, value) in beside {
            // An input of that name is meant, if there is one.
            properties.entry(name.to_owned()).or_insert(value);
        }
    }
}

fn add(schema: &mut Map<String, Value>, fields: [(&str, Value); 3]) {
    for (name, value) in fields {
        schema["properties"][name] = value;
        schema["required"].as_array_mut().expect("names").push(json!(name));
    }
}

/// The schemas that every document has.
pub(super) fn common() -> Map<String, Value> {
    let codes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    let details = json!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "row": {"type": "integer", "minimum": 0},
                "field": {"type": "string"},
                "reason": {"type": "string"},
            },
            "required": ["row", "field", "reason"],
        },
    });
    let fields = |more: Value| {
        let mut properties = json!({
            "error_code": {"enum": codes},
            "message": {"type": "string"},
            "details": details,
        });
        let (Some(all), Value::Object(more)) = (properties.as_object_mut(), more) else {
            unreachable!("both were written as objects");
        };
        all.extend(more);
        properties
    };
    let error = json!({
        "type": "object",
        "properties": fields(json!({"request_id": {"type": "string"}})),
        "required": ["error_code", "message", "request_id"],
    });
    let problem = json!({
        "type": "object",
        "description": "RFC 9457",
        "properties": fields(json!({
            "request_id": {"type": "string"},
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string"},
        })),
        "required": ["type", "title", "status", "detail", "error_code", "message", "request_id"],
    });
    let row = json!({
        "type": "object",
        "properties": fields(json!({})),
        "required": ["error_code", "message"],
    });
    let named = [
        ("ProtocolError", super::protocol::error_schema(&error)),
        ("Error", error),
        ("Problem", problem),
        ("RowError", row),
        ("Model", model_state()),
    ];
    let all = named.into_iter().chain(super::protocol::schemas());
    all.map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// A model with its versions and what goes to them.
fn model_state() -> Value {
    let states = ["loading", "ready", "parked", "draining", "retired", "failed"];
    let version = json!({
        "type": "object",
        "properties": {
            "version": {"type": "string"},
            "state": {"enum": states},
            "suspended": {"type": "boolean"},
            "failed_step": {"type": "string"},
        },
        "required": ["version", "state"],
    });
    json!({
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "stable": {"type": ["string", "null"]},
            "candidates": {"type": "object", "additionalProperties": {"type": "integer"}},
            "versions": {"type": "array", "items": version},
        },
        "required": ["model", "stable", "candidates", "versions"],
    })
}
