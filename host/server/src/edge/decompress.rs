//! Compressed bodies: of requests, inflated while they arrive, into a place that has an end; and of
//! answers, as their callers understand them.
//!
//! A few bytes can stand for gigabytes, so nothing is inflated further than there is room for: the
//! decoders work in steps of some ten kilobytes, and the first one over the limit is the last.
//! Between steps, others have their turn. What is inside is bounded by the bytes that come out; what
//! is sent, by the same number, because empty pieces go on for ever, too. Members of gzip and frames of
//! zstd are counted, because to begin one takes as long as to inflate kilobytes.

use std::io::{self, Write};

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use flate2::write::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::error::{ApiError, ErrorCode};

/// The largest window of a zstd frame, as a power of two: what RFC 9659 lets every sender use.
const MAX_WINDOW_LOG: u32 = 23;

/// Bytes that a step of the decoders of zstd and of deflate gives.
const STEP: usize = 32 << 10;

/// Bytes that a step takes: blocks can be empty, and a thousand such blocks take a millisecond or two.
const STEP_INPUT: usize = 4 << 10;

/// Members or frames of a body, and one more for so many bytes that are inflated. Tools that cut a file
/// into pieces make them of 64 KiB and more; 1024 empty members take seven milliseconds.
const MAX_PARTS: u64 = 1024;
const BYTES_OF_A_PART: u64 = 8 << 10;

/// Steps until others have their turn: half a megabyte, in about half a millisecond.
const STEPS_IN_A_ROW: usize = 16;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

impl Encoding {
    /// The encoding that the headers name.
    ///
    /// # Errors
    /// There are several, or it is unknown.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
        let encoding = match (encodings.next(), encodings.next()) {
            (None, _) => return Ok(Self::Identity),
            (Some(encoding), None) => encoding.as_bytes().trim_ascii(),
            (Some(_), Some(_)) => &[],
        };
        for (name, known) in [
            ("identity", Self::Identity),
            ("gzip", Self::Gzip),
            // The same, in RFC 9110's words.
            ("x-gzip", Self::Gzip),
            ("deflate", Self::Deflate),
            ("zstd", Self::Zstd),
        ] {
            if encoding.eq_ignore_ascii_case(name.as_bytes()) {
                return Ok(known);
            }
        }
        let message = "the Content-Encoding must be one of gzip, deflate, zstd and identity";
        Err(ApiError::new(ErrorCode::UnsupportedMediaType, message))
    }

    /// Whether decoding takes megabytes beside what comes out.
    pub(super) fn needs_window(self) -> bool {
        match self {
            Self::Identity | Self::Gzip | Self::Deflate => false,
            Self::Zstd => true,
        }
    }
}

/// Takes what arrives, gives what it stands for.
pub(super) enum Inflater<W: Write> {
    Identity(W),
    Gzip(Box<Gzip<W>>),
    Deflate(Box<Deflate<W>>),
    Zstd(Box<Zstd<W>>),
}

/// Why there is no more to inflate.
#[derive(Debug)]
pub(super) enum InflateError {
    /// The place into which it goes takes no more.
    Full,
    /// It is not what its header says, or it ends too early.
    Garbage,
    /// It has too many members or frames.
    TooManyParts,
}

/// What a place that is full says.
#[derive(Debug, thiserror::Error)]
#[error("there is no more room")]
pub(super) struct Full;

impl From<io::Error> for InflateError {
    fn from(error: io::Error) -> Self {
        let is_full = error.get_ref().is_some_and(|inner| inner.is::<Full>());
        if is_full { Self::Full } else { Self::Garbage }
    }
}

impl<W: Write> Inflater<W> {
    /// Into that place, which answers with [`Full`] when it takes no more.
    pub(super) fn new(encoding: Encoding, place: W) -> Result<Self, InflateError> {
        Ok(match encoding {
            Encoding::Identity => Self::Identity(place),
            Encoding::Gzip => Self::Gzip(Box::new(Gzip::new(place))),
            Encoding::Deflate => Self::Deflate(Box::new(Deflate::new(place))),
            Encoding::Zstd => Self::Zstd(Box::new(Zstd::new(place)?)),
        })
    }

    /// Inflate what has arrived.
    pub(super) async fn push(&mut self, mut data: &[u8]) -> Result<(), InflateError> {
        let mut steps = 0;
        loop {
            let piece = &data[..data.len().min(STEP_INPUT)];
            let (taken, goes_on) = match self {
                Self::Identity(place) => {
                    place.write_all(data)?;
                    return Ok(());
                }
                Self::Gzip(decoder) => decoder.step(piece)?,
                Self::Deflate(decoder) => decoder.step(piece)?,
                Self::Zstd(decoder) => decoder.step(piece)?,
            };
            data = &data[taken..];
            if !goes_on && data.is_empty() {
                return Ok(());
            }
            steps += 1;
            if steps % STEPS_IN_A_ROW == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The place, if that was all of it.
    pub(super) fn finish(self) -> Result<W, InflateError> {
        match self {
            Self::Identity(place) => Ok(place),
            Self::Gzip(decoder) => decoder.finish(),
            Self::Deflate(decoder) => decoder.finish(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

/// How many members or frames there were.
#[derive(Default)]
struct Parts(u64);

impl Parts {
    /// One is over, and so many bytes are inflated.
    fn count(&mut self, inflated: u64) -> Result<(), InflateError> {
        self.0 += 1;
        let most = MAX_PARTS.saturating_add(inflated / BYTES_OF_A_PART);
        if self.0 > most { Err(InflateError::TooManyParts) } else { Ok(()) }
    }
}

/// A place, and how many bytes it was given.
struct Counted<W>(W, u64);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.0.write(data)?;
        self.1 += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Members of gzip, one after the other.
pub(super) struct Gzip<W: Write> {
    /// None after a member that was not whole.
    decoder: Option<GzDecoder<Counted<W>>>,
    parts: Parts,
}

impl<W: Write> Gzip<W> {
    fn new(place: W) -> Self {
        Self { decoder: Some(GzDecoder::new(Counted(place, 0))), parts: Parts::default() }
    }

    /// One step: how many bytes it has taken, and whether there is more to do.
    fn step(&mut self, data: &[u8]) -> Result<(usize, bool), InflateError> {
        if data.is_empty() {
            return Ok((0, false));
        }
        let decoder = self.decoder.as_mut().ok_or(InflateError::Garbage)?;
        let mut taken = decoder.write(data)?;
        if taken == 0 {
            // The member is over, and another one begins.
            self.parts.count(decoder.get_ref().1)?;
            let place = self.decoder.take().ok_or(InflateError::Garbage)?.finish()?;
            taken = self.decoder.insert(GzDecoder::new(place)).write(data)?;
        }
        if taken == 0 { Err(InflateError::Garbage) } else { Ok((taken, taken < data.len())) }
    }

    fn finish(self) -> Result<W, InflateError> {
        let decoder = self.decoder.ok_or(InflateError::Garbage)?;
        Ok(decoder.finish()?.0)
    }
}

/// One stream of deflate, in the envelope of zlib, as RFC 9110 has it, or without, as some send it.
pub(super) struct Deflate<W> {
    /// None before the first byte, which tells the two apart.
    decoder: Option<Decompress>,
    place: W,
    buffer: Box<[u8]>,
    is_whole: bool,
}

impl<W: Write> Deflate<W> {
    fn new(place: W) -> Self {
        Self { decoder: None, place, buffer: vec![0; STEP].into_boxed_slice(), is_whole: false }
    }

    /// One step: how many bytes it has taken, and whether there is more to do.
    fn step(&mut self, data: &[u8]) -> Result<(usize, bool), InflateError> {
        // An envelope begins with the method, which is 8. Without one, that would be a stored block whose
        // padding is not zero.
        let decoder = match (&mut self.decoder, data.first()) {
            (Some(decoder), _) => decoder,
            (none, Some(first)) => none.insert(Decompress::new(first & 0x0f == 8)),
            (None, None) => return Ok((0, false)),
        };
        if self.is_whole {
            return if data.is_empty() { Ok((0, false)) } else { Err(InflateError::Garbage) };
        }
        let (before, given_before) = (decoder.total_in(), decoder.total_out());
        let status = decoder.decompress(data, &mut self.buffer, FlushDecompress::None);
        let status = status.map_err(|_error| InflateError::Garbage)?;
        // No more than a step.
        let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let taken = count(decoder.total_in(), before);
        let given = count(decoder.total_out(), given_before);
        self.place.write_all(&self.buffer[..given])?;
        self.is_whole = status == Status::StreamEnd;
        if taken == 0 && given == 0 && !self.is_whole {
            return if data.is_empty() { Ok((0, false)) } else { Err(InflateError::Garbage) };
        }
        // A buffer that is not full shows that nothing waits inside.
        let is_over = taken == data.len() && (given < STEP || self.is_whole);
        Ok((taken, !is_over))
    }

    fn finish(self) -> Result<W, InflateError> {
        if self.is_whole { Ok(self.place) } else { Err(InflateError::Garbage) }
    }
}

/// Frames of zstd, one after the other.
pub(super) struct Zstd<W> {
    decoder: Decoder<'static>,
    place: W,
    buffer: Box<[u8]>,
    /// Whether what came so far ends with a frame.
    is_whole: bool,
    parts: Parts,
    inflated: u64,
}

impl<W: Write> Zstd<W> {
    fn new(place: W) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        let buffer = vec![0; STEP].into_boxed_slice();
        let (parts, inflated) = (Parts::default(), 0);
        Ok(Self { decoder, place, buffer, is_whole: false, parts, inflated })
    }

    /// One step: how many bytes it has taken, and whether there is more to do.
    fn step(&mut self, data: &[u8]) -> Result<(usize, bool), InflateError> {
        if data.is_empty() && self.is_whole {
            return Ok((0, false));
        }
        let mut input = InBuffer::around(data);
        let mut output = OutBuffer::around(&mut self.buffer[..]);
        // It begins the next frame by itself.
        let wanted = self.decoder.run(&mut input, &mut output)?;
        let (taken, given) = (input.pos(), output.pos());
        self.place.write_all(&self.buffer[..given])?;
        self.inflated += given as u64;
        self.is_whole = wanted == 0;
        if self.is_whole {
            self.parts.count(self.inflated)?;
        }
        // A buffer that is not full shows that nothing waits inside.
        let is_over = taken == data.len() && (given < STEP || self.is_whole);
        Ok((taken, !is_over))
    }

    fn finish(self) -> Result<W, InflateError> {
        if self.is_whole { Ok(self.place) } else { Err(InflateError::Garbage) }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    /// A place for that many bytes.
    #[derive(Debug)]
    struct Place(Vec<u8>, usize);

    impl Write for Place {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.0.len() + data.len() > self.1 {
                return Err(io::Error::other(Full));
            }
            self.0.extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(data: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 3).unwrap()
    }

    fn inflate(
        encoding: Encoding,
        pieces: &[&[u8]],
        limit: usize,
    ) -> Result<Vec<u8>, InflateError> {
        let mut inflater = Inflater::new(encoding, Place(Vec::new(), limit))?;
        for piece in pieces {
            let mut push = pin!(inflater.push(piece));
            let mut context = Context::from_waker(Waker::noop());
            while match push.as_mut().poll(&mut context) {
                Poll::Pending => true,
                Poll::Ready(outcome) => {
                    outcome?;
                    false
                }
            } {}
        }
        inflater.finish().map(|place| place.0)
    }

    type Encode = fn(&[u8]) -> Vec<u8>;

    const BOTH: [(Encoding, Encode); 2] = [(Encoding::Gzip, gzip), (Encoding::Zstd, zstd)];

    const ALL: [(Encoding, Encode); 4] =
        [BOTH[0], BOTH[1], (Encoding::Deflate, zlib), (Encoding::Deflate, raw_deflate)];

    #[test]
    fn bombs_stop_at_the_limit_and_what_just_fits_passes() {
        let data = vec![0; 3 << 20];
        for (encoding, encode) in ALL {
            let bomb = encode(&data);
            assert!(bomb.len() < 8 << 10);
            assert_eq!(inflate(encoding, &[&bomb], data.len()).unwrap(), data);
            let refused = inflate(encoding, &[&bomb], data.len() - 1);
            assert!(matches!(refused, Err(InflateError::Full)), "{refused:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_changed_is_garbage() {
        for (encoding, encode) in ALL {
            let whole = encode(b"You are nice, and so is everybody else here");
            for end in 0..whole.len() {
                let cut = inflate(encoding, &[&whole[..end]], 1000);
                assert!(matches!(cut, Err(InflateError::Garbage)), "{encoding:?} {end}");
            }
            let behind = [&whole[..], b"behind"].concat();
            assert!(matches!(inflate(encoding, &[&behind], 1000), Err(InflateError::Garbage)));
            assert!(matches!(inflate(encoding, &[b"{}"], 1000), Err(InflateError::Garbage)));
        }
    }

    /// Skippable frames are frames as well.
    #[test]
    fn members_and_frames_are_bounded_by_what_is_in_them() {
        let skippable = |data: &[u8]| {
            let length = u32::try_from(data.len()).unwrap().to_le_bytes();
            [&[0x50, 0x2a, 0x4d, 0x18], &length[..], data].concat()
        };
        let most = usize::try_from(MAX_PARTS).unwrap();
        for (encoding, part) in [
            (Encoding::Gzip, gzip(b"")),
            (Encoding::Zstd, zstd(b"")),
            (Encoding::Zstd, skippable(b"")),
            (Encoding::Zstd, skippable(b"a word")),
        ] {
            let whole = [
                &part.repeat(most - 1)[..],
                &if encoding == Encoding::Gzip { gzip(b"a") } else { zstd(b"a") },
            ]
            .concat();
            assert_eq!(inflate(encoding, &[&whole], 10).unwrap(), b"a", "{encoding:?}");
            let refused = inflate(encoding, &[&part.repeat(most + 2)], 10);
            assert!(matches!(refused, Err(InflateError::TooManyParts)), "{refused:?}");
        }
        // As many as they are of a usual size.
        let piece = vec![7; usize::try_from(BYTES_OF_A_PART).unwrap()];
        for (encoding, encode) in BOTH {
            let whole = encode(&piece).repeat(2 * most);
            assert!(inflate(encoding, &[&whole], 2 * most * piece.len()).is_ok(), "{encoding:?}");
        }
    }

    #[test]
    fn a_window_beyond_the_standard_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(MAX_WINDOW_LOG + 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&vec![7; 1 << 20]).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(matches!(inflate(Encoding::Zstd, &[&frame], 2 << 20), Err(InflateError::Garbage)));
    }

    proptest! {
        /// However it is cut into pieces and into members or frames, it is what it was.
        #[test]
        fn pieces_and_members_make_no_difference(
            data in prop::collection::vec(prop::collection::vec(0..4_u8, 0..90_000), 1..4),
            size in 1..5000_usize,
        ) {
            let whole = data.concat();
            for (encoding, encode) in BOTH {
                let sent: Vec<u8> = data.iter().flat_map(|member| encode(member)).collect();
                let pieces: Vec<&[u8]> = sent.chunks(size).collect();
                let inflated = inflate(encoding, &pieces, whole.len());
                prop_assert_eq!(inflated.unwrap(), &whole[..]);
            }
            // There is only one stream of deflate.
            for encode in [zlib, raw_deflate] {
                let sent = encode(&whole);
                let pieces: Vec<&[u8]> = sent.chunks(size).collect();
                let inflated = inflate(Encoding::Deflate, &pieces, whole.len());
                prop_assert_eq!(inflated.unwrap(), &whole[..]);
            }
        }
    }
}
