//! Parsing of JSON into values, with a limit on their number.
//!
//! A value takes many times the memory of its JSON, so that a body within its limit could fill hundreds of
//! megabytes. Parsing stops at the first value over the limit.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::{ApiError, ErrorCode};

/// The most values of a body; a field of an object counts twice, for its key. A million numbers are
/// six images of 224 × 224 × 3, or a minute of sound; at 72 bytes each they take 75 MB.
pub(super) const MAX_VALUES: usize = 1 << 20;

/// The cost of an object in addition to its fields, in values: its table has room for several fields.
const OBJECT_COST: usize = 5;

/// Why JSON could not be parsed.
#[derive(Debug)]
pub(super) enum JsonError {
    /// It is not JSON.
    Syntax(serde_json::Error),
    /// There are more than [`MAX_VALUES`].
    TooManyValues,
    /// An array in a field of the body has more elements than the rows that are allowed.
    TooManyRows,
    /// A key is in an object twice. Parsers differ in which of the two counts, and a proxy may have used
    /// another one than this.
    RepeatedKey,
}

/// Parse JSON. With `max_rows`, arrays that are fields of the outermost object are limited to that many
/// elements.
pub(super) fn parse(json: &[u8], max_rows: Option<usize>) -> Result<Value, JsonError> {
    parse_within(json, max_rows, &mut { MAX_VALUES })
}

/// Parse one of several texts that share a limit; `values` is how many more values are allowed.
pub(super) fn parse_within(
    json: &[u8],
    max_rows: Option<usize>,
    values: &mut usize,
) -> Result<Value, JsonError> {
    let mut budget = Budget { values: *values, error: None };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let tree = Tree { budget: &mut budget, place: Place::Body { max_rows } };
    let value = tree.deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    *values = budget.values;
    value.map_err(|error| budget.error.unwrap_or(JsonError::Syntax(error)))
}

/// The error for [`JsonError::RepeatedKey`].
pub(super) fn repeated_key() -> ApiError {
    ApiError::malformed("a key is in an object of the body twice")
}

/// The error for [`JsonError::TooManyValues`].
pub(super) fn too_many_values() -> ApiError {
    let message = format!("the body has over {MAX_VALUES} values");
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

struct Budget {
    /// How many more values are allowed.
    values: usize,
    /// Why parsing was stopped, which an error of serde cannot carry.
    error: Option<JsonError>,
}

impl Budget {
    fn take<E: serde::de::Error>(&mut self, values: usize) -> Result<(), E> {
        match self.values.checked_sub(values) {
            Some(left) => {
                self.values = left;
                Ok(())
            }
            None => Err(self.stop(JsonError::TooManyValues)),
        }
    }

    fn stop<E: serde::de::Error>(&mut self, error: JsonError) -> E {
        self.error = Some(error);
        E::custom("over a limit")
    }
}

/// The position of a value.
#[derive(Clone, Copy)]
enum Place {
    /// The whole body.
    Body { max_rows: Option<usize> },
    /// A field of the body.
    Field { max_rows: Option<usize> },
    /// Anything deeper.
    Inside,
}

impl Place {
    /// The position of a field of an object at this position.
    fn field(self) -> Self {
        match self {
            Self::Body { max_rows } => Self::Field { max_rows },
            Self::Field { .. } | Self::Inside => Self::Inside,
        }
    }

    fn max_elements(self) -> usize {
        match self {
            Self::Field { max_rows: Some(max_rows) } => max_rows,
            Self::Body { .. } | Self::Field { max_rows: None } | Self::Inside => usize::MAX,
        }
    }
}

/// A value that is still to be read. serde_json bounds how deep values are nested.
struct Tree<'a> {
    budget: &'a mut Budget,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.budget.take(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let most = self.place.max_elements();
        let budget = self.budget;
        let mut values = Vec::new();
        while let Some(value) =
            elements.next_element_seed(Tree { budget: &mut *budget, place: Place::Inside })?
        {
            if values.len() == most {
                return Err(budget.stop(JsonError::TooManyRows));
            }
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let (budget, place) = (self.budget, self.place.field());
        budget.take(OBJECT_COST)?;
        let mut object = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            budget.take(1)?;
            let value = fields.next_value_seed(Tree { budget: &mut *budget, place })?;
            if object.insert(key, value).is_some() {
                return Err(budget.stop(JsonError::RepeatedKey));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_counted_in_fields_of_the_body() {
        let rows = |value: Value| parse(value.to_string().as_bytes(), Some(3));
        for good in [
            json!({"texts": [1, 2, 3], "others": [4, 5, 6]}),
            json!({"instances": [{"pixels": [1, 2, 3, 4, 5]}, [1, 2, 3, 4]]}),
            json!([1, 2, 3, 4]),
        ] {
            assert_eq!(rows(good.clone()).unwrap(), good);
        }
        assert!(matches!(rows(json!({"a": [1, 2, 3, 4]})), Err(JsonError::TooManyRows)));
        assert!(parse(b"{\"a\": [1, 2, 3, 4]}", None).is_ok());
    }

    #[test]
    fn values_are_counted_at_every_depth() {
        let numbers = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert!(parse(numbers(MAX_VALUES - 1).as_bytes(), None).is_ok());
        let objects = format!("[{}{{}}]", "{\"\":0},".repeat(MAX_VALUES / 7 + 1));
        for bad in [numbers(MAX_VALUES), objects] {
            assert!(matches!(parse(bad.as_bytes(), None), Err(JsonError::TooManyValues)));
        }
    }

    #[test]
    fn a_repeated_key_is_rejected() {
        for twice in [
            r#"{"a": 1, "b": 2, "a": 1}"#,
            r#"{"instances": [{"a": 1}, {"a": 1, "\u0061": 2}]}"#,
            r#"{"": {"": {"": 0, "": 0}}}"#,
        ] {
            let refused = parse(twice.as_bytes(), Some(3));
            assert!(matches!(refused, Err(JsonError::RepeatedKey)), "{twice}");
        }
        assert!(parse(br#"{"a": {"a": [{"a": 1}, {"a": 1}]}, "A": 1}"#, None).is_ok());
    }

    #[test]
    fn the_first_error_is_reported() {
        assert!(matches!(parse(b"{\"a\": [1, 2, oops", Some(1)), Err(JsonError::TooManyRows)));
        assert!(matches!(parse(b"{\"a\": [1, oops", Some(1)), Err(JsonError::Syntax(_))));
        assert!(matches!(parse(b"{} {}", None), Err(JsonError::Syntax(_))));
    }

    proptest! {
        /// Values and errors are those of serde_json.
        #[test]
        fn values_are_those_of_serde_json(text in r#"[\[\]{}:,"a0-9.eE+\-\\ ntrue]{0,24}"#) {
            let plain = serde_json::from_str::<Value>(&text);
            match (parse(text.as_bytes(), None), plain) {
                (Ok(bounded), Ok(plain)) => prop_assert_eq!(bounded, plain),
                (Err(JsonError::Syntax(bounded)), Err(plain)) => {
                    let place = |error: &serde_json::Error| (error.line(), error.column());
                    prop_assert_eq!(place(&bounded), place(&plain));
                    prop_assert_eq!(bounded.classify(), plain.classify());
                }
                // serde_json accepts repeated keys.
                (Err(JsonError::RepeatedKey), _) => {
                    prop_assert!(text.matches(':').count() > 1, "{}", text);
                }
                (bounded, plain) => prop_assert!(false, "{:?} {:?}", bounded, plain),
            }
        }

        /// The same for values of every kind, nested.
        #[test]
        fn values_round_trip(value in values()) {
            prop_assert_eq!(parse(value.to_string().as_bytes(), None).unwrap(), value);
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e6..1e6_f64).prop_map(|number| Value::from((number * 8.0).round() / 8.0)),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }
}
