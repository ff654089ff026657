//! Decompression of request bodies while they arrive, into a buffer with a limit.
//!
//! A few bytes can stand for gigabytes, so the decoders work in steps of some ten kilobytes, and the step
//! that exceeds the limit is the last. Between steps, other tasks get their turn. The compressed bytes have the
//! same limit, because empty blocks can be repeated forever. Members of gzip and frames of zstd are counted,
//! because each of them costs as much as kilobytes of data.
//!
//! `async-compression`, which compresses our responses, has the same decoders, but neither counts members and
//! frames nor yields between them: it decodes them in a loop until there is output. A body of 8 MiB can have
//! 400,000 empty members of gzip: version 0.4.52 decoded them in one poll, which blocked its thread for 1.3 s.

use std::io::{self, Write};

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use flate2::write::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::error::{ApiError, ErrorCode};

/// The largest window of a zstd frame, as a power of two: what RFC 9659 lets every sender use.
const MAX_WINDOW_LOG: u32 = 23;

/// The most bytes that a step of the decoders of zstd and deflate writes.
const STEP: usize = 32 << 10;

/// The most bytes that a step reads: a thousand empty blocks take a millisecond or two.
const STEP_INPUT: usize = 4 << 10;

/// The most members or frames of a body, and the bytes of output that allow one more. Tools that split a file
/// write members of 64 KiB or more; to decode 1024 empty members takes seven milliseconds.
const MAX_MEMBERS: u64 = 1024;
const BYTES_PER_MEMBER: u64 = 8 << 10;

/// The steps after which other tasks get their turn: half a megabyte, in about half a millisecond.
const STEPS_PER_POLL: usize = 16;

/// The encoding of a body.
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
            // An alias in RFC 9110.
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

    /// Whether the decoder needs megabytes of memory in addition to its output.
    pub(super) fn needs_window(self) -> bool {
        match self {
            Self::Identity | Self::Gzip | Self::Deflate => false,
            Self::Zstd => true,
        }
    }
}

/// Decompresses a body into a writer.
pub(super) enum Decompressor<W: Write> {
    Identity(W),
    Gzip(Box<Gzip<W>>),
    Deflate(Box<Deflate<W>>),
    Zstd(Box<Zstd<W>>),
}

/// Why a body cannot be decompressed.
#[derive(Debug)]
pub(super) enum DecompressError {
    /// The writer is full.
    BufferFull,
    /// The body is not valid in its encoding, or truncated.
    Malformed,
    /// The body has too many members or frames.
    TooManyMembers,
}

/// The error of a writer that is full.
#[derive(Debug, thiserror::Error)]
#[error("the buffer is full")]
pub(super) struct BufferFull;

impl From<io::Error> for DecompressError {
    fn from(error: io::Error) -> Self {
        let is_full = error.get_ref().is_some_and(|inner| inner.is::<BufferFull>());
        if is_full { Self::BufferFull } else { Self::Malformed }
    }
}

impl<W: Write> Decompressor<W> {
    /// For a writer that fails with [`BufferFull`] when its limit is exceeded.
    pub(super) fn new(encoding: Encoding, writer: W) -> Result<Self, DecompressError> {
        Ok(match encoding {
            Encoding::Identity => Self::Identity(writer),
            Encoding::Gzip => Self::Gzip(Box::new(Gzip::new(writer))),
            Encoding::Deflate => Self::Deflate(Box::new(Deflate::new(writer))),
            Encoding::Zstd => Self::Zstd(Box::new(Zstd::new(writer)?)),
        })
    }

    /// Decompress bytes that have arrived.
    pub(super) async fn push(&mut self, mut data: &[u8]) -> Result<(), DecompressError> {
        let mut steps = 0;
        loop {
            let piece = &data[..data.len().min(STEP_INPUT)];
            let (read, has_more) = match self {
                Self::Identity(writer) => {
                    writer.write_all(data)?;
                    return Ok(());
                }
                Self::Gzip(decoder) => decoder.step(piece)?,
                Self::Deflate(decoder) => decoder.step(piece)?,
                Self::Zstd(decoder) => decoder.step(piece)?,
            };
            data = &data[read..];
            if !has_more && data.is_empty() {
                return Ok(());
            }
            steps += 1;
            if steps % STEPS_PER_POLL == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Finish a body that is complete; the writer.
    pub(super) fn finish(self) -> Result<W, DecompressError> {
        match self {
            Self::Identity(writer) => Ok(writer),
            Self::Gzip(decoder) => decoder.finish(),
            Self::Deflate(decoder) => decoder.finish(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

/// The number of members or frames so far.
#[derive(Default)]
struct Members(u64);

impl Members {
    /// Count one that has ended, after so many bytes of output.
    fn count(&mut self, output: u64) -> Result<(), DecompressError> {
        self.0 += 1;
        let most = MAX_MEMBERS.saturating_add(output / BYTES_PER_MEMBER);
        if self.0 > most { Err(DecompressError::TooManyMembers) } else { Ok(()) }
    }
}

/// A writer, and how many bytes were written to it.
struct CountingWriter<W>(W, u64);

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.0.write(data)?;
        self.1 += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A sequence of gzip members.
pub(super) struct Gzip<W: Write> {
    /// None after a malformed member.
    decoder: Option<GzDecoder<CountingWriter<W>>>,
    members: Members,
}

impl<W: Write> Gzip<W> {
    fn new(writer: W) -> Self {
        Self {
            decoder: Some(GzDecoder::new(CountingWriter(writer, 0))),
            members: Members::default(),
        }
    }

    /// Do one step: how many bytes were read, and whether there is more to do.
    fn step(&mut self, data: &[u8]) -> Result<(usize, bool), DecompressError> {
        if data.is_empty() {
            return Ok((0, false));
        }
        let decoder = self.decoder.as_mut().ok_or(DecompressError::Malformed)?;
        let mut read = decoder.write(data)?;
        if read == 0 {
            // The member has ended, and the next one begins.
            self.members.count(decoder.get_ref().1)?;
            let writer = self.decoder.take().ok_or(DecompressError::Malformed)?.finish()?;
            read = self.decoder.insert(GzDecoder::new(writer)).write(data)?;
        }
        if read == 0 { Err(DecompressError::Malformed) } else { Ok((read, read < data.len())) }
    }

    fn finish(self) -> Result<W, DecompressError> {
        let decoder = self.decoder.ok_or(DecompressError::Malformed)?;
        Ok(decoder.finish()?.0)
    }
}

/// A deflate stream with a zlib header, as RFC 9110 requires, or without, as some clients send it.
pub(super) struct Deflate<W> {
    /// None before the first byte, which decides between the two.
    decoder: Option<Decompress>,
    writer: W,
    buffer: Box<[u8]>,
    is_complete: bool,
}

impl<W: Write> Deflate<W> {
    fn new(writer: W) -> Self {
        Self { decoder: None, writer, buffer: vec![0; STEP].into_boxed_slice(), is_complete: false }
    }

    /// Do one step: how many bytes were read, and whether there is more to do.
    fn step(&mut self, data: &[u8]) -> Result<(usize, bool), DecompressError> {
        // A zlib header begins with the method 8. Without a header, this would be a stored block with
        // non-zero padding.
        let decoder = match (&mut self.decoder, data.first()) {
            (Some(decoder), _) => decoder,
            (none, Some(first)) => none.insert(Decompress::new(first & 0x0f == 8)),
            (None, None) => return Ok((0, false)),
        };
        if self.is_complete {
            return if data.is_empty() { Ok((0, false)) } else { Err(DecompressError::Malformed) };
        }
        let (before, output_before) = (decoder.total_in(), decoder.total_out());
        let status = decoder.decompress(data, &mut self.buffer, FlushDecompress::None);
        let status = status.map_err(|_error| DecompressError::Malformed)?;
        // These are at most a step.
        let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let read = count(decoder.total_in(), before);
        let written = count(decoder.total_out(), output_before);
        self.writer.write_all(&self.buffer[..written])?;
        self.is_complete = status == Status::StreamEnd;
        if read == 0 && written == 0 && !self.is_complete {
            return if data.is_empty() { Ok((0, false)) } else { Err(DecompressError::Malformed) };
        }
        // If the buffer is not full, the decoder holds no more output.
        let is_done = read == data.len() && (written < STEP || self.is_complete);
        Ok((read, !is_done))
    }

    fn finish(self) -> Result<W, DecompressError> {
        if self.is_complete { Ok(self.writer) } else { Err(DecompressError::Malformed) }
    }
}

/// A sequence of zstd frames.
pub(super) struct Zstd<W> {
    decoder: Decoder<'static>,
    writer: W,
    buffer: Box<[u8]>,
    /// Whether the input so far ends with a complete frame.
    is_complete: bool,
    members: Members,
    output: u64,
}

impl<W: Write> Zstd<W> {
    fn new(writer: W) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        let buffer = vec![0; STEP].into_boxed_slice();
        let (members, output) = (Members::default(), 0);
        Ok(Self { decoder, writer, buffer, is_complete: false, members, output })
    }

    /// Do one step: how many bytes were read, and whether there is more to do.
    fn step(&mut self, data: &[u8]) -> Result<(usize, bool), DecompressError> {
        if data.is_empty() && self.is_complete {
            return Ok((0, false));
        }
        let mut input = InBuffer::around(data);
        let mut output = OutBuffer::around(&mut self.buffer[..]);
        // The decoder begins the next frame by itself.
        let wanted = self.decoder.run(&mut input, &mut output)?;
        let (read, written) = (input.pos(), output.pos());
        self.writer.write_all(&self.buffer[..written])?;
        self.output += written as u64;
        self.is_complete = wanted == 0;
        if self.is_complete {
            self.members.count(self.output)?;
        }
        // If the buffer is not full, the decoder holds no more output.
        let is_done = read == data.len() && (written < STEP || self.is_complete);
        Ok((read, !is_done))
    }

    fn finish(self) -> Result<W, DecompressError> {
        if self.is_complete { Ok(self.writer) } else { Err(DecompressError::Malformed) }
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
                return Err(io::Error::other(BufferFull));
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

    fn decompress(
        encoding: Encoding,
        pieces: &[&[u8]],
        limit: usize,
    ) -> Result<Vec<u8>, DecompressError> {
        let mut inflater = Decompressor::new(encoding, Place(Vec::new(), limit))?;
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
    fn decompression_stops_exactly_at_the_limit() {
        let data = vec![0; 3 << 20];
        for (encoding, encode) in ALL {
            let bomb = encode(&data);
            assert!(bomb.len() < 8 << 10);
            assert_eq!(decompress(encoding, &[&bomb], data.len()).unwrap(), data);
            let refused = decompress(encoding, &[&bomb], data.len() - 1);
            assert!(matches!(refused, Err(DecompressError::BufferFull)), "{refused:?}");
        }
    }

    #[test]
    fn truncated_and_corrupted_data_is_rejected() {
        for (encoding, encode) in ALL {
            let whole = encode(b"You are nice, and so is everybody else here");
            for end in 0..whole.len() {
                let cut = decompress(encoding, &[&whole[..end]], 1000);
                assert!(matches!(cut, Err(DecompressError::Malformed)), "{encoding:?} {end}");
            }
            let behind = [&whole[..], b"behind"].concat();
            assert!(matches!(
                decompress(encoding, &[&behind], 1000),
                Err(DecompressError::Malformed)
            ));
            assert!(matches!(
                decompress(encoding, &[b"{}"], 1000),
                Err(DecompressError::Malformed)
            ));
        }
    }

    /// Skippable frames are frames as well.
    #[test]
    fn the_number_of_members_and_frames_is_bounded() {
        let skippable = |data: &[u8]| {
            let length = u32::try_from(data.len()).unwrap().to_le_bytes();
            [&[0x50, 0x2a, 0x4d, 0x18], &length[..], data].concat()
        };
        let most = usize::try_from(MAX_MEMBERS).unwrap();
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
            assert_eq!(decompress(encoding, &[&whole], 10).unwrap(), b"a", "{encoding:?}");
            let refused = decompress(encoding, &[&part.repeat(most + 2)], 10);
            assert!(matches!(refused, Err(DecompressError::TooManyMembers)), "{refused:?}");
        }
        // As many as they are of a usual size.
        let piece = vec![7; usize::try_from(BYTES_PER_MEMBER).unwrap()];
        for (encoding, encode) in BOTH {
            let whole = encode(&piece).repeat(2 * most);
            assert!(
                decompress(encoding, &[&whole], 2 * most * piece.len()).is_ok(),
                "{encoding:?}"
            );
        }
    }

    #[test]
    fn an_oversized_zstd_window_is_rejected() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(MAX_WINDOW_LOG + 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&vec![7; 1 << 20]).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(matches!(
            decompress(Encoding::Zstd, &[&frame], 2 << 20),
            Err(DecompressError::Malformed)
        ));
    }

    proptest! {
        /// However it is cut into pieces and into members or frames, it is what it was.
        #[test]
        fn chunking_and_members_do_not_change_the_result(
            data in prop::collection::vec(prop::collection::vec(0..4_u8, 0..90_000), 1..4),
            size in 1..5000_usize,
        ) {
            let whole = data.concat();
            for (encoding, encode) in BOTH {
                let sent: Vec<u8> = data.iter().flat_map(|member| encode(member)).collect();
                let pieces: Vec<&[u8]> = sent.chunks(size).collect();
                let inflated = decompress(encoding, &pieces, whole.len());
                prop_assert_eq!(inflated.unwrap(), &whole[..]);
            }
            // There is only one stream of deflate.
            for encode in [zlib, raw_deflate] {
                let sent = encode(&whole);
                let pieces: Vec<&[u8]> = sent.chunks(size).collect();
                let inflated = decompress(Encoding::Deflate, &pieces, whole.len());
                prop_assert_eq!(inflated.unwrap(), &whole[..]);
            }
        }
    }
}
