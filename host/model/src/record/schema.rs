//! JSON Schema (2020-12) of the JSON form of rows.
//!
//! [`super::decode`] accepts what a schema of inputs accepts, except for conditions that a schema
//! cannot express: nested arrays must not be ragged, rows of one batch must have the same shape,
//! and numbers must be exactly representable (no integers beyond 2^53 in floating-point notation,
//! no numbers beyond FP64). In the other direction, the schema is stricter in one case: white space
//! that would be stripped counts towards the length of a text.

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::encode;
use crate::{Constraint, Datatype, Field, Signature, Tensor};

/// White space according to Rust and to Unicode's `White_Space`; `\s` in patterns is a different
/// set.
const WHITE_SPACE: &str =
    r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";

/// Complete base64 groups, and a last one that is padded with zero bits only.
const BASE64: &str =
    "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

/// The schema of the inputs of one row.
pub fn inputs(signature: &Signature) -> Map<String, Value> {
    let required: Vec<_> = signature.required_inputs().map(|field| field.name.as_str()).collect();
    let properties = signature.inputs.iter().map(|field| {
        let mut schema = value(field, &input(field));
        if let Some(default) = default(field) {
            schema.insert("default".to_owned(), default);
        }
        (field.name.clone(), Value::Object(schema))
    });
    object(properties.collect(), &required)
}

/// The schema of the outputs of one row. Floats may be null if the model may return values that are
/// not finite.
pub fn outputs(signature: &Signature, accepts_non_finite: bool) -> Map<String, Value> {
    let required: Vec<_> = signature.outputs.iter().map(|field| field.name.as_str()).collect();
    let properties = signature.outputs.iter().map(|field| {
        let mut element = output(field);
        if is_float(field.datatype) && accepts_non_finite {
            element.insert("type".to_owned(), json!(["number", "null"]));
        }
        (field.name.clone(), Value::Object(value(field, &element)))
    });
    object(properties.collect(), &required)
}

/// An object with these properties and no others.
pub fn object(properties: Map<String, Value>, required: &[&str]) -> Map<String, Value> {
    let schema = json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    let Value::Object(schema) = schema else { unreachable!("it was written as an object") };
    schema
}

/// The schema of a value: the element's schema, nested in an array for each dimension of the row
/// shape.
fn value(field: &Field, element: &Map<String, Value>) -> Map<String, Value> {
    let mut schema = element.clone();
    for size in field.row_shape.iter().rev() {
        let mut array = Map::from_iter([
            ("type".to_owned(), json!("array")),
            ("items".to_owned(), Value::Object(schema)),
        ]);
        if let Some(size) = size {
            array.insert("minItems".to_owned(), json!(size));
            array.insert("maxItems".to_owned(), json!(size));
        }
        schema = array;
    }
    if !field.description.is_empty() {
        schema.insert("description".to_owned(), json!(field.description));
    }
    schema
}

fn input(field: &Field) -> Map<String, Value> {
    match field.datatype {
        Datatype::Bytes if field.is_text() => text(field, true),
        Datatype::Bytes => bytes(field),
        _ => plain(field),
    }
}

fn output(field: &Field) -> Map<String, Value> {
    match field.datatype {
        Datatype::Bytes if field.is_text() => text(field, false),
        Datatype::Bytes => bytes(field),
        _ => plain(field),
    }
}

/// The schema of an element that is not a string.
fn plain(field: &Field) -> Map<String, Value> {
    let Some((low, high)) = bounds(field.datatype) else {
        let kind = if field.datatype == Datatype::Bool { "boolean" } else { "number" };
        return ranged(field, kind, None);
    };
    let kind = if is_float(field.datatype) { "number" } else { "integer" };
    ranged(field, kind, Some((low, high)))
}

/// The schema of a number within the bounds of its datatype and of the signature.
fn ranged(field: &Field, kind: &str, bounds: Option<(Value, Value)>) -> Map<String, Value> {
    let mut schema = Map::from_iter([("type".to_owned(), json!(kind))]);
    if let Some((low, high)) = bounds {
        schema.insert("minimum".to_owned(), low);
        schema.insert("maximum".to_owned(), high);
    }
    for constraint in &field.constraints {
        let Constraint::Range { minimum, maximum } = constraint else { continue };
        tighten(&mut schema, "minimum", *minimum, f64::max);
        tighten(&mut schema, "maximum", *maximum, f64::min);
    }
    schema
}

/// Replace a bound if the new one is tighter, keeping the number's notation otherwise.
fn tighten(
    schema: &mut Map<String, Value>,
    key: &str,
    bound: Option<f64>,
    tighter: fn(f64, f64) -> f64,
) {
    let Some(bound) = bound.filter(|bound| bound.is_finite()) else { return };
    let before = schema.get(key).and_then(Value::as_f64);
    if before.is_none_or(|before| tighter(before, bound).total_cmp(&before).is_ne()) {
        schema.insert(key.to_owned(), json!(bound));
    }
}

/// The bounds of the datatype, if it is narrower than JSON's numbers.
fn bounds(datatype: Datatype) -> Option<(Value, Value)> {
    Some(match datatype {
        Datatype::Uint8 => (json!(0), json!(u8::MAX)),
        Datatype::Uint16 => (json!(0), json!(u16::MAX)),
        Datatype::Uint32 => (json!(0), json!(u32::MAX)),
        Datatype::Uint64 => (json!(0), json!(u64::MAX)),
        Datatype::Int8 => (json!(i8::MIN), json!(i8::MAX)),
        Datatype::Int16 => (json!(i16::MIN), json!(i16::MAX)),
        Datatype::Int32 => (json!(i32::MIN), json!(i32::MAX)),
        Datatype::Int64 => (json!(i64::MIN), json!(i64::MAX)),
        Datatype::Fp32 => (json!(f64::from(f32::MIN)), json!(f64::from(f32::MAX))),
        Datatype::Fp16 => (json!(f16::MIN.to_f64()), json!(f16::MAX.to_f64())),
        Datatype::Bf16 => (json!(bf16::MIN.to_f64()), json!(bf16::MAX.to_f64())),
        Datatype::Fp64 | Datatype::Bool | Datatype::Bytes => return None,
    })
}

fn is_float(datatype: Datatype) -> bool {
    use Datatype::{Bf16, Fp16, Fp32, Fp64};
    matches!(datatype, Fp16 | Bf16 | Fp32 | Fp64)
}

fn text(field: &Field, is_input: bool) -> Map<String, Value> {
    let mut schema = Map::from_iter([("type".to_owned(), json!("string"))]);
    let is_stripped = is_input && field.constraints.contains(&Constraint::Stripped);
    if let Some((minimum, maximum)) = length(field) {
        schema.insert("minLength".to_owned(), json!(minimum));
        schema.insert("maxLength".to_owned(), json!(maximum));
        if let (true, Some(pattern)) = (is_stripped, stripped_pattern(minimum)) {
            schema.insert("pattern".to_owned(), json!(pattern));
        }
    }
    // A label that would be stripped cannot match.
    let is_label = |label: &&String| !is_stripped || label.trim() == *label;
    let mut labels: Option<Vec<&String>> = None;
    for constraint in &field.constraints {
        let Constraint::OneOf(more) = constraint else { continue };
        let before = labels.take();
        let is_there = |label: &&String| before.as_ref().is_none_or(|all| all.contains(label));
        labels = Some(more.iter().filter(is_label).filter(is_there).collect());
    }
    if let Some(labels) = labels {
        schema.insert("enum".to_owned(), json!(labels));
    }
    schema
}

/// The bounds of the length that all constraints allow together.
fn length(field: &Field) -> Option<(u32, u32)> {
    let lengths = field.constraints.iter().filter_map(|constraint| match constraint {
        Constraint::Length { minimum, maximum } => Some((*minimum, *maximum)),
        _ => None,
    });
    lengths.reduce(|one, other| (one.0.max(other.0), one.1.min(other.1)))
}

/// The pattern of texts that have this minimum length after stripping.
fn stripped_pattern(minimum: u32) -> Option<String> {
    let visible = format!("[^{WHITE_SPACE}]");
    match minimum {
        0 => None,
        1 => Some(visible),
        _ => Some(format!("{visible}[\\s\\S]{{{},}}{visible}", minimum - 2)),
    }
}

fn bytes(field: &Field) -> Map<String, Value> {
    let mut schema = Map::from_iter([
        ("type".to_owned(), json!("string")),
        ("contentEncoding".to_owned(), json!("base64")),
    ]);
    let pattern = match length(field) {
        None => BASE64.to_owned(),
        Some((minimum, maximum)) => {
            schema.insert("minLength".to_owned(), json!(4 * minimum.div_ceil(3)));
            schema.insert("maxLength".to_owned(), json!(4 * maximum.div_ceil(3)));
            base64_of(minimum, maximum)
        }
    };
    schema.insert("pattern".to_owned(), json!(pattern));
    schema
}

/// The pattern of base64 for this number of bytes: complete groups of three, and the remainder.
fn base64_of(minimum: u32, maximum: u32) -> String {
    let forms = [(0, ""), (1, "[A-Za-z0-9+/][AQgw]=="), (2, "[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=")];
    let forms = forms.into_iter().filter(|(rest, _)| maximum >= *rest).map(|(rest, form)| {
        let (least, most) = (minimum.saturating_sub(rest).div_ceil(3), (maximum - rest) / 3);
        // Unsatisfiable, so this form is left out.
        if least > most { "[]".to_owned() } else { groups(least, most) + form }
    });
    let forms: Vec<_> = forms.filter(|form| form != "[]").collect();
    format!("^(?:{})$", forms.join("|"))
}

/// The pattern of this number of groups. Counts that regular expression engines reject are omitted;
/// the length is bounded separately.
fn groups(least: u32, most: u32) -> String {
    let group = "(?:[A-Za-z0-9+/]{4})";
    if most <= 1000 {
        format!("{group}{{{least},{most}}}")
    } else if least <= 1000 {
        format!("{group}{{{least},}}")
    } else {
        format!("{group}*")
    }
}

/// The default of an input, as JSON.
fn default(field: &Field) -> Option<Value> {
    let data = field.default.clone()?.into();
    let sizes = field.row_shape.iter().map(|size| size.map_or(0, u64::from));
    let shape = std::iter::once(1).chain(sizes).collect();
    let tensor = Tensor { name: field.name.clone(), datatype: field.datatype, shape, data };
    let output = Field { default: None, ..field.clone() };
    let signature = Signature { inputs: vec![], outputs: vec![output], max_batch_size: 1 };
    let mut records = encode(&signature, &[tensor]).ok()?;
    records.pop()?.remove(&field.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(
        datatype: Datatype,
        row_shape: Vec<Option<u32>>,
        constraints: Vec<Constraint>,
    ) -> Field {
        let (name, description) = ("x".to_owned(), "a value".to_owned());
        Field { name, description, datatype, row_shape, constraints, default: None }
    }

    fn signature(field: Field) -> Signature {
        Signature { inputs: vec![field.clone()], outputs: vec![field], max_batch_size: 8 }
    }

    fn input_schema(field: Field) -> Value {
        let mut schema = inputs(&signature(field))["properties"]["x"].clone();
        schema.as_object_mut().unwrap().remove("description");
        schema
    }

    // The conformance checks test with a property-based tool that schemas and the decoder agree.
    #[test]
    fn every_kind_of_value_has_a_schema() {
        let length = |minimum, maximum| Constraint::Length { minimum, maximum };
        let range = |minimum, maximum| Constraint::Range { minimum, maximum };
        let visible = format!("[^{WHITE_SPACE}]");
        for (field, expected) in [
            (
                field(Datatype::Bytes, vec![], vec![Constraint::Text, length(2, 5)]),
                json!({"type": "string", "minLength": 2, "maxLength": 5}),
            ),
            (
                field(
                    Datatype::Bytes,
                    vec![],
                    vec![Constraint::Text, Constraint::Stripped, length(1, 5)],
                ),
                json!({"type": "string", "minLength": 1, "maxLength": 5, "pattern": visible}),
            ),
            (
                field(Datatype::Bytes, vec![], vec![length(1, 100)]),
                json!({
                    "type": "string", "contentEncoding": "base64", "minLength": 4, "maxLength": 136,
                    "pattern": base64_of(1, 100),
                }),
            ),
            (
                field(Datatype::Int8, vec![None], vec![range(Some(-200.0), Some(5.0))]),
                json!({
                    "type": "array",
                    "items": {"type": "integer", "minimum": -128, "maximum": 5.0},
                }),
            ),
            (
                field(Datatype::Fp64, vec![Some(2), None], vec![range(None, Some(1.5))]),
                json!({
                    "type": "array", "minItems": 2, "maxItems": 2,
                    "items": {"type": "array", "items": {"type": "number", "maximum": 1.5}},
                }),
            ),
            (field(Datatype::Bool, vec![], vec![]), json!({"type": "boolean"})),
            (
                field(Datatype::Fp16, vec![], vec![]),
                json!({"type": "number", "minimum": -65504.0, "maximum": 65504.0}),
            ),
        ] {
            assert_eq!(input_schema(field.clone()), expected, "{field:?}");
        }
    }

    #[test]
    fn base64_patterns_bound_the_number_of_bytes() {
        // 4 and 5 bytes are one group and a remainder.
        assert_eq!(
            base64_of(4, 5),
            "^(?:(?:[A-Za-z0-9+/]{4}){1,1}[A-Za-z0-9+/][AQgw]==\
             |(?:[A-Za-z0-9+/]{4}){1,1}[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)$"
        );
        assert_eq!(base64_of(1, 1), "^(?:(?:[A-Za-z0-9+/]{4}){0,0}[A-Za-z0-9+/][AQgw]==)$");
        assert_eq!(base64_of(3, 3), "^(?:(?:[A-Za-z0-9+/]{4}){1,1})$");
        assert!(base64_of(0, 8_000_000).starts_with("^(?:(?:[A-Za-z0-9+/]{4}){0,}|"));
    }

    #[test]
    fn constraints_of_a_text_are_combined() {
        let labels = |labels: &[&str]| {
            Constraint::OneOf(labels.iter().map(|label| (*label).to_owned()).collect())
        };
        let length = |minimum, maximum| Constraint::Length { minimum, maximum };
        let constraints = vec![
            Constraint::Text,
            Constraint::Stripped,
            labels(&["a", "b", " c"]),
            labels(&["b", " c", "d"]),
            length(0, 5),
            length(1, 9),
        ];
        let schema = input_schema(field(Datatype::Bytes, vec![], constraints));
        assert_eq!((&schema["enum"], &schema["maxLength"]), (&json!(["b"]), &json!(5)));
        assert_eq!(schema["minLength"], 1);
    }

    #[test]
    fn outputs_are_nullable_if_non_finite_is_accepted() {
        let signature = signature(field(Datatype::Fp32, vec![], vec![]));
        let kind = |accepts| outputs(&signature, accepts)["properties"]["x"]["type"].clone();
        assert_eq!((kind(false), kind(true)), (json!("number"), json!(["number", "null"])));
    }

    #[test]
    fn optional_inputs_have_a_default() {
        let mut optional = field(Datatype::Fp32, vec![Some(2)], vec![]);
        optional.default = Some([2.5_f32, 1.0].map(f32::to_le_bytes).concat());
        let schema = inputs(&signature(optional));
        assert_eq!(schema["properties"]["x"]["default"], json!([2.5, 1.0]));
        assert_eq!(schema["required"], json!([]));
    }
}
