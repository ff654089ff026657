//! JSON Schemas of values whose types belong to modules that know no schemas, and the generators for
//! OpenAPI documents.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use guesthouse_control::router::Reason;
use guesthouse_model::Datatype as DatatypeOfModel;

/// The pattern of semantic versions. `[0-9]` and not `\d`, which in some implementations of patterns
/// matches the digits of other scripts.
pub(crate) const VERSION: &str = r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[a-z][0-9a-z]{0,8}(\.(0|[1-9][0-9]{0,8}))?)?$";

/// Channels, versions, and ranges of one comparator. There are further selectors, which a pattern cannot
/// express.
const SELECTOR: &str = r"^(?:stable|canary|[=^~]?(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){0,2}|=?(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){2}-[a-z][0-9a-z]{0,8}(?:\.(?:0|[1-9][0-9]{0,8}))?)$";

/// The schema of a selector.
pub(crate) fn selector() -> Value {
    json!({"type": "string", "pattern": SELECTOR, "examples": ["stable", "1.0.0", "^1"]})
}

/// Types that stand for others in `#[schemars(with = …)]`.
macro_rules! stand_ins {
    ($($(#[$doc:meta])* $name:ident: $schema:tt;)*) => {
        $($(#[$doc])*
        pub(super) enum $name {}

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

stand_ins! {
    /// The name of a model.
    ModelName: {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,63}$"};
    /// A semantic version.
    Version: {"type": "string", "pattern": VERSION};
    /// A selector of versions.
    Selector: {"type": "string", "pattern": SELECTOR};
    /// A semantic version in a response, which may have any pre-release and build metadata.
    AnyVersion: {"type": "string"};
    /// A number that is not negative and has at most 64 bits.
    Unsigned: {"type": "integer", "minimum": 0, "maximum": (u64::MAX)};
    /// A share in parts per million.
    Share: {"type": "integer", "minimum": 0, "maximum": 1_000_000};
    /// A share in a request: parts per million, or a percentage.
    ShareWithUnit: {"anyOf": [
        {"type": "integer", "minimum": 0, "maximum": 1_000_000},
        {"type": "string", "pattern": r"^[0-9]{1,2}(\.[0-9]{1,4})?%$", "examples": ["10%"]},
    ]};
    /// The digest of an artifact.
    Digest: {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"};
    /// A point in time (RFC 3339).
    Time: {"type": "string", "format": "date-time"};
    /// The name of a key.
    KeyName: {"type": "string", "pattern": "^[A-Za-z0-9_.@-]{1,64}$"};
    /// What a key is good for.
    Scopes: {
        "type": "array", "minItems": 1, "maxItems": 64,
        "items": {"type": "string", "pattern": r"^(admin|predict:(\*|[a-z][a-z0-9_-]{0,63}))$"},
    };
    /// The words of [`Reason`].
    RouteReason: {
        "type": "string",
         "enum": (reasons()),
    };
    /// The words of the datatypes of tensors.
    Datatype: {"type": "string", "enum": (DatatypeOfModel::ALL.map(DatatypeOfModel::as_str))};
    /// A JSON object of any members.
    Object: {"type": "object"};
}

fn reasons() -> [&'static str; 5] {
    [Reason::Pin, Reason::Channel, Reason::Range, Reason::Split, Reason::Default]
        .map(Reason::as_str)
}

/// A generator for the components of an OpenAPI document, of what the server writes.
pub(crate) fn components() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.into_generator()
}

/// The schema of what the server reads, without references.
pub(crate) fn request<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.to_value()
}

/// The components that the generator has collected, by name.
pub(crate) fn definitions(mut generator: SchemaGenerator) -> Map<String, Value> {
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(remove_defaults);
    definitions
}

/// Remove defaults: in responses they say only that an older server's may lack a field, and some are no
/// values of its type. A field that is called `default` has a schema, which is an object.
fn remove_defaults(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| name != "default" || value.is_object());
            fields.values_mut().for_each(remove_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_defaults),
        _ => {}
    }
}
