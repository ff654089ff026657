//! Validation of a request's host, as RFC 9112 (3.2) and RFC 9113 (8.3.1) require it: if a request named two
//! hosts, a proxy could have used the other one.

use axum::extract::Request;
use axum::http::Version;
use axum::http::header::HOST;
use axum::http::uri::Authority;

use super::error::ApiError;

/// Check that the request names one valid host.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(ApiError::malformed("the request has more than one Host"));
    }
    let host = host.map(|host| host.to_str().ok().map(str::trim));
    let malformed = || ApiError::malformed("the Host is not the name of a host");
    let host = host.map(|host| host.filter(|host| is_host(host)).ok_or_else(malformed));
    let (host, authority) = (host.transpose()?, request.uri().authority());
    match (request.version(), host, authority) {
        (Version::HTTP_2, None, None) => {
            Err(ApiError::malformed("the request has neither :authority nor Host"))
        }
        (Version::HTTP_2, Some(host), Some(authority))
            if !authority.as_str().eq_ignore_ascii_case(host) =>
        {
            Err(ApiError::malformed(":authority and Host differ"))
        }
        // In HTTP/1.1, an absolute target takes precedence over the header, which is required even so.
        (Version::HTTP_11, None, _) => Err(ApiError::malformed("the request has no Host")),
        _ => Ok(()),
    }
}

/// Whether this is a name or an address with an optional port, or empty.
fn is_host(host: &str) -> bool {
    host.is_empty() || !host.contains('@') && host.parse::<Authority>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_good(version: Version, uri: &str, hosts: &[&str]) -> bool {
        let request = Request::builder().version(version).uri(uri);
        let request = hosts.iter().fold(request, |request, host| request.header(HOST, *host));
        check(&request.body(()).unwrap()).is_ok()
    }

    #[test]
    fn each_http_version_has_its_rule() {
        let (one, first, second) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        for (version, uri, hosts, expected) in [
            (one, "/", &[][..], true),
            (one, "/", &["a", "a"], false),
            (first, "/", &[], false),
            (first, "/", &["a"], true),
            (first, "/", &[""], true),
            (first, "/", &["a", "a"], false),
            (first, "http://a/", &["b"], true),
            (first, "http://a/", &[], false),
            (second, "/", &[], false),
            (second, "/", &["a"], true),
            (second, "http://a/", &[], true),
            (second, "http://A:80/", &["a:80"], true),
            (second, "http://a/", &["b"], false),
            (second, "http://a/", &["a", "a"], false),
        ] {
            assert_eq!(is_good(version, uri, hosts), expected, "{version:?} {uri} {hosts:?}");
        }
    }

    #[test]
    fn a_host_is_a_name_with_an_optional_port() {
        for good in ["example.org", "example.org:8000", "127.0.0.1:1", "[::1]:8000", "a_b", "A"] {
            assert!(is_good(Version::HTTP_11, "/", &[good]), "{good}");
        }
        for bad in ["a b", "a/b", "user@a", "a?b", "a:80:80", "[::1", "http://a", "a, b"] {
            assert!(!is_good(Version::HTTP_11, "/", &[bad]), "{bad}");
        }
    }
}
