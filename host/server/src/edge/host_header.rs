//! Which server a request is for: said once and well, as RFC 9112 (3.2) and RFC 9113 (8.3.1) want it. What
//! stands in front of this server may have looked at another of two names.

use axum::extract::Request;
use axum::http::Version;
use axum::http::header::HOST;
use axum::http::uri::Authority;

use super::error::ApiError;

/// Whether the request names its host as its protocol says.
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
        // An address in the first line of HTTP/1.1 counts more than the header, which has to be there.
        (Version::HTTP_11, None, _) => Err(ApiError::malformed("the request has no Host")),
        _ => Ok(()),
    }
}

/// A name or an address, and a port if need be; or nothing, where there is no such thing.
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
    fn each_version_wants_its_host() {
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
    fn a_host_is_a_name_and_a_port() {
        for good in ["example.org", "example.org:8000", "127.0.0.1:1", "[::1]:8000", "a_b", "A"] {
            assert!(is_good(Version::HTTP_11, "/", &[good]), "{good}");
        }
        for bad in ["a b", "a/b", "user@a", "a?b", "a:80:80", "[::1", "http://a", "a, b"] {
            assert!(!is_good(Version::HTTP_11, "/", &[bad]), "{bad}");
        }
    }
}
