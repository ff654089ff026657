//! What a reverse proxy says of the address that its clients asked for: taken from trusted proxies only.
//!
//! The listener removes the header from everybody else's requests, so whoever reads it here may rely on it.

use axum::http::{HeaderMap, HeaderName};

/// The header with the path under which a proxy serves what is here at `/`.
pub(super) const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The longest prefix that is taken, in bytes: more than a few words is a mistake.
const MAX_PREFIX: usize = 256;

/// The path under which the caller reached `/`, without a slash at its end, if a proxy has said it. What
/// is no path is ignored: `//host` would lead to another server.
pub(crate) fn prefix(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(FORWARDED_PREFIX).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let prefix = value.to_str().ok()?.trim_end_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_segment =
        |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(is_plain);
    let is_path = prefix.strip_prefix('/')?.split('/').all(is_segment);
    (is_path && prefix.len() <= MAX_PREFIX).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<String> {
        let header = |value: &&str| (FORWARDED_PREFIX, value.parse().unwrap());
        let headers: HeaderMap = values.iter().map(header).collect();
        prefix(&headers).map(str::to_owned)
    }

    #[test]
    fn a_prefix_is_a_plain_path() {
        assert_eq!(of(&["/models"]).as_deref(), Some("/models"));
        assert_eq!(of(&["/a/b-1.2/~c/"]).as_deref(), Some("/a/b-1.2/~c"));
        for bad in
            ["", "/", "//evil.example", "models", "/a//b", "/a/../b", "/a b", "/a\"b", "/%2f"]
        {
            assert_eq!(of(&[bad]), None, "{bad}");
        }
        assert_eq!(of(&[&format!("/{}", "a".repeat(MAX_PREFIX))]), None);
        assert_eq!(of(&["/a", "/b"]), None);
        assert_eq!(of(&[]), None);
    }
}
