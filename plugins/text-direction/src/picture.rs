//! Decodes files to pixels like OpenCV's `imread`: eight bits per channel, without transparency,
//! rotated according to the EXIF orientation.
//!
//! The sides, the number of pixels and the decoder's allocations are bounded before decoding, so
//! that a small file cannot decode to more than a call's memory.

use std::io::Cursor;

use image::error::{DecodingError, ImageError, UnsupportedErrorKind};
use image::{
    ColorType, DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits, RgbImage,
};

/// The longest side, in pixels.
const MAX_SIDE: u32 = 8192;

/// The most pixels: a picture of 1,024 by 4,096.
const MAX_PIXELS: u64 = 4 << 20;

/// The most bytes that a decoder may allocate: the largest picture with four 16-bit channels, and
/// the same for work.
const MAX_DECODER_BYTES: u64 = 64 << 20;

/// Decode a PNG or JPEG file.
///
/// # Errors
/// Why the file is rejected, as a fragment that is shown to the caller.
pub(crate) fn decode(file: &[u8]) -> Result<RgbImage, String> {
    try_decode(file).map_err(|error| match error {
        ImageError::Limits(_) => {
            format!("has more than {MAX_PIXELS} pixels, or a side of more than {MAX_SIDE}")
        }
        ImageError::Unsupported(error) => match error.kind() {
            UnsupportedErrorKind::Format(_) => "is neither a PNG nor a JPEG file".to_owned(),
            _ => "is of a kind of PNG or JPEG that is not supported".to_owned(),
        },
        _ => "is not a whole PNG or JPEG file".to_owned(),
    })
}

fn try_decode(file: &[u8]) -> Result<RgbImage, ImageError> {
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
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    limits.max_alloc = Some(MAX_PIXELS);
    limits.reserve(u64::from(width) * u64::from(height))?;

    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(into_rgb8(picture))
}

/// Whether the file has an end marker after the last scan; the decoder fills in truncated data.
fn is_whole_jpeg(file: &[u8]) -> bool {
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let scan = file.windows(2).rposition(|marker| marker == START_OF_SCAN);
    scan.is_some_and(|scan| file[scan..].windows(2).any(|marker| marker == END_OF_IMAGE))
}

fn into_rgb8(picture: DynamicImage) -> RgbImage {
    match picture.color() {
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
            // OpenCV drops the lower byte, whereas the library would round.
            let deep = picture.into_rgb16();
            let levels = deep.iter().map(|level| level.to_be_bytes()[0]).collect();
            RgbImage::from_raw(deep.width(), deep.height(), levels)
                .expect("there are as many levels as before")
        }
        _ => picture.into_rgb8(),
    }
}
