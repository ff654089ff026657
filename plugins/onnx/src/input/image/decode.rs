//! Decodes files to pixels, as Pillow's `Image.open(file).convert("RGB")` does: eight bits a channel,
//! without transparency; the EXIF orientation is left as it is.
//!
//! The sides, the number of pixels and the decoder's allocations are bounded before decoding, so that
//! a small file cannot decode to more than a call's memory.

use std::io::Cursor;

use image::error::{DecodingError, ImageError, UnsupportedErrorKind};
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits};

use super::resample::Picture;

/// The longest side, in pixels.
const MAX_SIDE: u32 = 16_384;

/// The most pixels: those of a photo of 16 megapixels.
const MAX_PIXELS: u64 = 16 << 20;

/// The most bytes that a decoder may allocate: the largest picture with four channels, and the same
/// for work.
const MAX_DECODER_BYTES: u64 = 128 << 20;

/// Decode a file.
///
/// # Errors
/// Why the file is rejected, as a fragment that is shown to the caller.
pub(super) fn decode(file: &[u8]) -> Result<Picture, String> {
    try_decode(file).map_err(|error| match error {
        ImageError::Limits(_) => {
            format!("has more than {MAX_PIXELS} pixels, or a side of more than {MAX_SIDE}")
        }
        ImageError::Unsupported(error) => match error.kind() {
            UnsupportedErrorKind::Format(_) => "is no JPEG, PNG or WebP file".to_owned(),
            _ => "is of a kind of JPEG, PNG or WebP that is not supported".to_owned(),
        },
        _ => "is not a whole JPEG, PNG or WebP file".to_owned(),
    })
}

fn try_decode(file: &[u8]) -> Result<Picture, ImageError> {
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODER_BYTES);

    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    if reader.format() == Some(ImageFormat::Jpeg) && !is_whole_jpeg(file) {
        let error = DecodingError::from_format_hint(ImageFormat::Jpeg.into());
        return Err(ImageError::Decoding(error));
    }
    reader.limits(limits.clone());
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    limits.max_alloc = Some(MAX_PIXELS);
    limits.reserve(u64::from(width) * u64::from(height))?;
    let picture = DynamicImage::from_decoder(decoder)?.into_rgb8();
    let (pixels, _rest) = picture.as_raw().as_chunks();
    Ok(Picture { height: height as usize, width: width as usize, pixels: pixels.to_vec() })
}

/// Whether the file has an end marker after the last scan; the decoder fills in truncated data.
fn is_whole_jpeg(file: &[u8]) -> bool {
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let scan = file.windows(2).rposition(|marker| marker == START_OF_SCAN);
    scan.is_some_and(|scan| file[scan..].windows(2).any(|marker| marker == END_OF_IMAGE))
}
