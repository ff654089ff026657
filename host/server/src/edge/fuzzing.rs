//! Functions that parse callers' bytes, for the fuzzer. This module is not part of the server.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::body::{self, Bodies, RequestBody};
use super::codec::rest::record::{self as body_record, Media};
use super::codec::rest::{BodyRow, field_value};
use super::codec::{Multiplicity, oip};
use super::json::{self, JsonError};
use super::request_id::RequestId;
use super::{access, idempotency, query, request_headers, target};
use crate::config::{ConfigFile, Limits};
use guesthouse_control::keys::Keys;
use guesthouse_model::record;
use guesthouse_model::{Constraint, Datatype, Field, ModelName, Signature};

pub(crate) const MAX_VALUES: usize = json::MAX_VALUES;

/// Small limits, so that the fuzzer's inputs reach them.
static LIMITS: LazyLock<Limits> = LazyLock::new(|| {
    let settings = ConfigFile::default().validate().expect("the defaults make sense");
    Limits {
        body_bytes: 1 << 14,
        bodies_in_flight_bytes: 1 << 15,
        batch_rows: 8,
        ..settings.limits
    }
});

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime without threads or sockets")
});

/// The result of parsing JSON.
pub(crate) enum Parsed {
    Value(Value),
    Syntax,
    TooManyValues,
    RepeatedKey,
    TooManyRows,
}

/// Parse JSON.
pub(crate) fn value(json: &[u8], max_rows: Option<usize>) -> Parsed {
    match json::parse(json, max_rows) {
        Ok(value) => Parsed::Value(value),
        Err(JsonError::Syntax(_)) => Parsed::Syntax,
        Err(JsonError::TooManyValues) => Parsed::TooManyValues,
        Err(JsonError::RepeatedKey) => Parsed::RepeatedKey,
        Err(JsonError::TooManyRows) => Parsed::TooManyRows,
    }
}

/// Parse a body of the Open Inference Protocol; `length` is the length of its JSON, if a header has one.
pub(crate) fn tensors(body: &[u8], length: Option<usize>) {
    oip::fuzz_body(body, length);
}

/// Parse the rows of a JSON body.
pub(crate) fn rows(json: &[u8], is_batch: bool, signature: &Signature) -> Option<Vec<BodyRow>> {
    let bodies = Bodies::new(LIMITS.bodies_in_flight_bytes);
    let (headers, body) = (HeaderMap::new(), Body::from(json.to_vec()));
    let received = RUNTIME.block_on(body::read(&headers, body, &LIMITS, &bodies)).ok()?;
    rows_of(&received, &Media::Json, is_batch, signature)
}

/// Parse the rows of a body of any media type.
fn rows_of(
    received: &RequestBody,
    media: &Media,
    is_batch: bool,
    signature: &Signature,
) -> Option<Vec<BodyRow>> {
    let multiplicity = if is_batch { Multiplicity::Batch } else { Multiplicity::Single };
    let mut id = RequestId::parse("before").expect("an id");
    let mut record =
        body_record::parse(&received.bytes, media, multiplicity, &LIMITS, &mut id).ok()?;
    assert!(record.get("request_id").is_none());
    assert_eq!(
        RequestId::parse(id.as_str()).map(|id| id.as_str().to_owned()).as_deref(),
        Some(id.as_str())
    );
    let key = body_record::take_beside_inputs(
        &mut record,
        idempotency::KEY_FIELD,
        multiplicity,
        signature,
    );
    if let Some(Ok(key)) = key.map(|key| idempotency::key_from_field(field_value(&key))) {
        assert!(!key.is_empty() && key.is_ascii());
    }
    let rows = body_record::rows(record, multiplicity, signature, LIMITS.batch_rows).ok()?;
    assert!(!rows.is_empty() && (is_batch || rows.len() == 1));
    assert!(rows.len() <= LIMITS.batch_rows);
    Some(rows)
}

/// Signatures for forms and plain bytes: a file; and a file, a text and a number.
static SIGNATURES: LazyLock<[Signature; 2]> = LazyLock::new(|| {
    let field = |name: &str, datatype, constraints| Field {
        name: name.to_owned(),
        description: String::new(),
        datatype,
        row_shape: vec![],
        constraints,
        default: None,
    };
    let file = field("file", Datatype::Bytes, vec![]);
    let text = field("text", Datatype::Bytes, vec![Constraint::Text, Constraint::Stripped]);
    let number = field("number", Datatype::Fp32, vec![]);
    [vec![file.clone()], vec![file, text, number]].map(|inputs| Signature {
        outputs: inputs.clone(),
        inputs,
        max_batch_size: 4,
    })
});

/// Parse a request: header lines up to an empty one, then the body, as the headers describe it.
pub(crate) fn request(bytes: &[u8]) {
    let end = bytes.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((bytes, &[][..]), |end| (&bytes[..end], &bytes[end + 2..]));
    let headers = headers(head);
    request_headers::fuzz(&headers);
    assert!(access::authenticate(&Keys::default(), &headers).is_err(), "no key is valid");
    if let Ok(Some(key)) = idempotency::key_from_headers(&headers) {
        assert!(!key.is_empty() && key.is_ascii());
    }
    let bodies = Bodies::new(LIMITS.bodies_in_flight_bytes);
    let read = body::read(&headers, Body::from(body.to_vec()), &LIMITS, &bodies);
    if let (Ok(media), Ok(received)) = (body_record::media(&headers), RUNTIME.block_on(read)) {
        assert!(received.bytes.len() <= LIMITS.body_bytes);
        for (signature, is_batch) in SIGNATURES.iter().flat_map(|it| [(it, false), (it, true)]) {
            let Some(rows) = rows_of(&received, &media, is_batch, signature) else { continue };
            let rows: Vec<_> = rows.iter().collect();
            if let Ok(tensors) = record::decode(signature, &rows) {
                assert!(tensors.iter().all(|tensor| tensor.check().is_ok()));
            }
        }
        assert!(bodies.in_flight() >= received.bytes.len());
    }
    assert_eq!(bodies.in_flight(), 0, "all bytes are released");
}

fn headers(head: &[u8]) -> HeaderMap {
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        Some((name, value))
    };
    head.split(|byte| *byte == b'\n').take(32).filter_map(header).collect()
}

/// A query with a parameter of each type.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    selector: Option<String>,
    key: Option<String>,
    model: Option<ModelName>,
    limit: Option<usize>,
    dry_run: Option<bool>,
}

/// Parse a query, a request id, and the segments of paths.
pub(crate) fn texts(text: &str) {
    if let Ok(fields) = query::parse::<Query>(Some(text)) {
        assert_eq!(query::parse::<Query>(Some(text)).ok(), Some(fields));
    }
    if let Some(id) = RequestId::parse(text) {
        assert!(HeaderValue::from_str(id.as_str()).is_ok(), "an id can be sent back");
    }
    if let Ok((model, selector)) = target::target(text, Some(text)) {
        assert_eq!(target::parse_selector(text).ok(), Some(selector));
        assert_eq!(model.as_str(), text);
    }
}
