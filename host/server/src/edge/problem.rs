//! Content negotiation of errors: plain JSON, or `application/problem+json` (RFC 9457) if `Accept` asks for
//! it.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// The most media ranges of `Accept` that are considered: more than any client sends.
const MAX_RANGES: usize = 32;

const PROBLEM: &str = "application/problem+json";
const JSON: &str = "application/json";

/// Whether the caller prefers problem details: it names their media type, with at least the quality of plain
/// JSON. A wildcard gets plain JSON.
pub(super) fn wants_problem(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = values.flat_map(|value| value.split(',')).take(MAX_RANGES).collect();
    let quality = |wanted: &str| {
        let named = ranges.iter().filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_wanted = parts.next()?.eq_ignore_ascii_case(wanted);
            is_wanted.then(|| quality(parts))
        });
        named.max()
    };
    quality(PROBLEM).is_some_and(|problem| problem > 0 && Some(problem) >= quality(JSON))
}

/// The `q` among the parameters, in thousandths: 1000 if there is none, 0 if it is malformed.
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> u16 {
    let named = parameters.filter_map(|parameter| parameter.split_once('='));
    let mut weights = named.filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let Some((_, weight)) = weights.next() else { return 1000 };
    let weight = weight.trim();
    let (whole, rest) = weight.split_once('.').unwrap_or((weight, ""));
    let is_number = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    match whole {
        "1" if is_number && rest.bytes().all(|byte| byte == b'0') => 1000,
        "0" if is_number => format!("{rest:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_for_callers_that_name_them() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            wants_problem(&headers)
        };
        for problem in [
            "application/problem+json",
            "Application/Problem+JSON; charset=utf-8",
            "application/json, application/problem+json",
            "application/json;q=0.5, application/problem+json;q=0.6",
            "text/html, application/problem+json;q=0.001",
            "application/problem+json; q=1.000",
        ] {
            assert!(wants(problem), "{problem}");
        }
        for plain in [
            "",
            "*/*",
            "application/*",
            "application/json",
            "application/json, application/problem+json;q=0.9",
            "application/problem+json;q=0",
            "application/problem+json;q=2",
            "application/problem+json;q=x",
            "application/problem+jsonx",
        ] {
            assert!(!wants(plain), "{plain}");
        }
        assert!(
            !wants(&"a/b,".repeat(40).replace("a/b,a/b,a/b", "a/b,")),
            "it is beyond the considered ranges"
        );
        assert!(!wants_problem(&HeaderMap::new()));
    }
}
