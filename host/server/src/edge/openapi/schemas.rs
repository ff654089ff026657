//! The schemas of prediction bodies, which follow from the signature of a version.

use serde_json::{Map, Value, json};

use crate::api::catalogue::{Model, Resolution, VersionDetails, VersionSchemas};
use crate::api::error::{ErrorBody, Problem, ProtocolError, RowError};
use crate::api::schema as api_schema;
use crate::edge::idempotency::KEY_FIELD;
use crate::edge::policy::Policy;
use guesthouse_model::record::schema;
use guesthouse_model::{Datatype, Field, Signature};
use guesthouse_runtime::version::ServableVersion;

/// The schemas of one version.
pub(super) struct Schemas<'a> {
    version: &'a ServableVersion,
    max_rows: usize,
    /// The field of the body whose value keeps a caller on a version.
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

    /// The name of one of the version's schemas in the document.
    pub(super) fn name(&self, what: &str) -> String {
        // Names have letters, digits, dots, hyphens and underscores only.
        let id = self.version.id();
        format!("{}-{}-{what}", id.name, id.version).replace('+', "_")
    }

    /// All schemas of the version with their names in the document.
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
        self.add_request_fields(&mut row);
        Value::Object(row)
    }

    pub(super) fn response(&self) -> Value {
        let mut answer = self.outputs();
        add(&mut answer, self.common_fields());
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
            self.add_request_fields(&mut form);
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
        add(&mut answer, self.common_fields());
        Value::Object(answer)
    }

    /// The inputs that are byte strings and not texts.
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

    /// The fields of every response beside its outputs.
    fn common_fields(&self) -> [(&'static str, Value); 3] {
        let id = self.version.id();
        [
            ("model", json!({"const": id.name.as_str()})),
            ("model_version", json!({"type": "string", "description": "semver"})),
            ("request_id", json!({"type": "string"})),
        ]
    }

    /// Add the fields that may stand beside the inputs.
    fn add_request_fields(&self, schema: &mut Map<String, Value>) {
        let word = |pattern: &str, description: &str| {
            json!({
                "type": "string", "minLength": 1, "maxLength": 128, "pattern": pattern,
                "description": description,
            })
        };
        let mut fields = vec![
            ("request_id", word("^[!-~]*$", "returned in the response and logged")),
            (
                KEY_FIELD,
                word("^[ -~]*$", "the idempotency key: a retry gets the first response again"),
            ),
        ];
        if let Some(field) = self.sticky {
            let integer = json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX});
            let caller = json!({"anyOf": [{"type": "string"}, integer], "description": "keeps the caller on a version"});
            fields.push((field, caller));
        }
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        let properties = properties.expect("every object schema has properties");
        for (name, value) in fields {
            // An input of that name takes precedence.
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

/// The schemas of bodies that do not depend on what is loaded.
pub(super) fn common() -> Map<String, Value> {
    let mut generator = api_schema::components();
    generator.subschema_for::<ErrorBody>();
    generator.subschema_for::<Problem>();
    generator.subschema_for::<ProtocolError>();
    generator.subschema_for::<RowError>();
    generator.subschema_for::<Model>();
    generator.subschema_for::<VersionDetails>();
    generator.subschema_for::<VersionSchemas>();
    generator.subschema_for::<Resolution>();
    api_schema::definitions(generator)
}
