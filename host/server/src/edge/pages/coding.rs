//! The compression of pages, which are compressed once for all clients.

use std::io::Write as _;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_ENCODING;
use flate2::Compression;
use flate2::write::GzEncoder;

/// The smallest page that is compressed, in bytes. A smaller one fits into one packet anyway.
const MIN_BYTES: usize = 1 << 10;

/// The fastest level of zstd.
const ZSTD_LEVEL: i32 = 1;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::edge) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// The preferred coding among those that the client accepts.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT_ENCODING).iter();
        let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
        let weight = |wanted: &[&str]| {
            let codings = values.iter().flat_map(|value| value.split(','));
            let weights = codings.filter_map(|coding| {
                let mut parts = coding.split(';').map(str::trim);
                let name = parts.next()?.to_ascii_lowercase();
                let weight = parts.find_map(|part| part.strip_prefix("q="));
                let weight: f32 = weight.map_or(Some(1.0), |weight| weight.parse().ok())?;
                wanted.contains(&name.as_str()).then_some(weight)
            });
            weights.reduce(f32::max)
        };
        let any = weight(&["*"]).unwrap_or(0.0);
        let zstd = weight(&["zstd"]).unwrap_or(any);
        let gzip = weight(&["gzip", "x-gzip"]).unwrap_or(any);
        if zstd > 0.0 && zstd >= gzip {
            Self::Zstd
        } else if gzip > 0.0 {
            Self::Gzip
        } else {
            Self::Identity
        }
    }

    /// Encode the body. A small body is returned unencoded.
    pub(super) fn encode(self, bytes: Vec<u8>) -> (Vec<u8>, Self) {
        if bytes.len() < MIN_BYTES {
            return (bytes, Self::Identity);
        }
        let encoded = match self {
            Self::Identity => return (bytes, Self::Identity),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&bytes).and_then(|()| encoder.finish())
            }
            Self::Zstd => zstd::bulk::compress(&bytes, ZSTD_LEVEL),
        };
        encoded.map_or((bytes, Self::Identity), |encoded| (encoded, self))
    }

    /// The value of `Content-Encoding`; `None` for an unencoded body.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_preferred_accepted_encoding_is_chosen() {
        for (accepted, coding) in [
            ("", Coding::Identity),
            ("gzip", Coding::Gzip),
            ("GZIP;q=0.5", Coding::Gzip),
            ("gzip, zstd", Coding::Zstd),
            ("gzip, zstd;q=0.5", Coding::Gzip),
            ("*;q=0.1, gzip", Coding::Gzip),
            ("*", Coding::Zstd),
            ("gzip;q=0", Coding::Identity),
            ("*, zstd;q=0", Coding::Gzip),
            ("br, deflate", Coding::Identity),
            ("gzip;q=x", Coding::Identity),
        ] {
            let value = HeaderValue::from_static(accepted);
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value)]);
            assert_eq!(Coding::accepted(&headers), coding, "{accepted}");
        }
    }
}
