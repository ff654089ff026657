//! JSON to values, within bounds on what they take in memory.
//!
//! A value takes many times the bytes that it has in JSON: a body within its limit could otherwise
//! fill hundreds of megabytes before anybody looks at it. Reading stops at the first value too many.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::{ApiError, ErrorCode};

/// The most values of a body; a field of an object counts twice, for its key. A million numbers are
/// six images of 224 × 224 × 3, or a minute of sound; at 72 bytes each they take 75 MB.
pub(super) const MAX_VALUES: usize = 1 << 20;

/// What an object costs on top, in values: its table, and room for its first fields.
const OBJECT_COST: usize = 5;

/// Why there are no values.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not JSON.
    Syntax(serde_json::Error),
    /// There are more than [`MAX_VALUES`].
    TooManyValues,
    /// An array in a field of the body has more elements than the rows that are allowed.
    TooManyRows,
    /// A key is in an object twice. Readers differ in which of the two counts, and this one is not the
    /// only one that looks at a request on its way.
    RepeatedKey,
}

/// The value that the JSON is. With `max_rows`, an array right in a field of the outermost object
/// has at most that many elements.
pub(super) fn parse(json: &[u8], max_rows: Option<usize>) -> Result<Value, Refusal> {
    parse_within(json, max_rows, &mut { MAX_VALUES })
}

/// The same for one of several texts that share the values that are left.
pub(super) fn parse_within(
    json: &[u8],
    max_rows: Option<usize>,
    values: &mut usize,
) -> Result<Value, Refusal> {
    let mut budget = Budget { values: *values, refusal: None };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let tree = Tree { budget: &mut budget, place: Place::Body { max_rows } };
    let value = tree.deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    *values = budget.values;
    value.map_err(|error| budget.refusal.unwrap_or(Refusal::Syntax(error)))
}

/// What the caller is told of [`Refusal::RepeatedKey`].
pub(super) fn repeated_key() -> ApiError {
    ApiError::malformed("a key is in an object of the body twice")
}

/// What the caller is told of [`Refusal::TooManyValues`].
pub(super) fn too_many_values() -> ApiError {
    let message = format!("the body has over {MAX_VALUES} values");
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

struct Budget {
    /// How many more values there may be.
    values: usize,
    /// Why reading was stopped, which an error of serde cannot carry.
    refusal: Option<Refusal>,
}

impl Budget {
    fn take<E: serde::de::Error>(&mut self, values: usize) -> Result<(), E> {
        match self.values.checked_sub(values) {
            Some(left) => {
                self.values = left;
                Ok(())
            }
            None => Err(self.stop(Refusal::TooManyValues)),
        }
    }

    fn stop<E: serde::de::Error>(&mut self, refusal: Refusal) -> E {
        self.refusal = Some(refusal);
        E::custom("over a limit")
    }
}

/// Where a value is.
#[derive(Clone, Copy)]
enum Place {
    /// It is all of the body.
    Body { max_rows: Option<usize> },
    /// It is a field of the body.
    Field { max_rows: Option<usize> },
    /// It is deeper.
    Inside,
}

impl Place {
    /// Of a field of an object that is here.
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
                return Err(budget.stop(Refusal::TooManyRows));
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
                return Err(budget.stop(Refusal::RepeatedKey));
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
    fn rows_are_counted_in_fields_of_the_body_only() {
        let rows = |value: Value| parse(value.to_string().as_bytes(), Some(3));
        for good in [
            json!({"texts": [1, 2, 3], "others": [4, 5, 6]}),
            json!({"instances": [{"pixels": [1, 2, 3, 4, 5]}, [1, 2, 3, 4]]}),
            json!([1, 2, 3, 4]),
        ] {
            assert_eq!(rows(good.clone()).unwrap(), good);
        }
        assert!(matches!(rows(json!({"a": [1, 2, 3, 4]})), Err(Refusal::TooManyRows)));
        assert!(parse(b"{\"a\": [1, 2, 3, 4]}", None).is_ok());
    }

    #[test]
    fn values_are_counted_wherever_they_are() {
        let numbers = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert!(parse(numbers(MAX_VALUES - 1).as_bytes(), None).is_ok());
        let objects = format!("[{}{{}}]", "{\"\":0},".repeat(MAX_VALUES / 7 + 1));
        for bad in [numbers(MAX_VALUES), objects] {
            assert!(matches!(parse(bad.as_bytes(), None), Err(Refusal::TooManyValues)));
        }
    }

    #[test]
    fn a_key_is_in_an_object_once() {
        for twice in [
            r#"{"a": 1, "b": 2, "a": 1}"#,
            r#"{"instances": [{"a": 1}, {"a": 1, "\u0061": 2}]}"#,
            r#"{"": {"": {"": 0, "": 0}}}"#,
        ] {
            let refused = parse(twice.as_bytes(), Some(3));
            assert!(matches!(refused, Err(Refusal::RepeatedKey)), "{twice}");
        }
        assert!(parse(br#"{"a": {"a": [{"a": 1}, {"a": 1}]}, "A": 1}"#, None).is_ok());
    }

    #[test]
    fn a_refusal_outranks_what_comes_after_it() {
        assert!(matches!(parse(b"{\"a\": [1, 2, oops", Some(1)), Err(Refusal::TooManyRows)));
        assert!(matches!(parse(b"{\"a\": [1, oops", Some(1)), Err(Refusal::Syntax(_))));
        assert!(matches!(parse(b"{} {}", None), Err(Refusal::Syntax(_))));
    }

    proptest! {
        /// Whatever serde_json makes of a text by itself, it makes of it here.
        #[test]
        fn values_are_those_of_serde_json(text in r#"[\[\]{}:,"a0-9.eE+\-\\ ntrue]{0,24}"#) {
            let plain = serde_json::from_str::<Value>(&text);
            match (parse(text.as_bytes(), None), plain) {
                (Ok(bounded), Ok(plain)) => prop_assert_eq!(bounded, plain),
                (Err(Refusal::Syntax(bounded)), Err(plain)) => {
                    let place = |error: &serde_json::Error| (error.line(), error.column());
                    prop_assert_eq!(place(&bounded), place(&plain));
                    prop_assert_eq!(bounded.classify(), plain.classify());
                }
                // Which of the two was meant, serde_json does not ask.
                (Err(Refusal::RepeatedKey), _) => {
                    prop_assert!(text.matches(':').count() > 1, "{}", text);
                }
                (bounded, plain) => prop_assert!(false, "{:?} {:?}", bounded, plain),
            }
        }

        /// The same for values of every kind, nested.
        #[test]
        fn values_come_back(value in values()) {
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
