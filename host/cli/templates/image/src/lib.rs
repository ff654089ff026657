//! Whether a picture is bright: the mean of its pixels.

use std::io::Cursor;

use guesthouse_guest::{
    Assets, Batch, Error, Field, Guest, PredictError, Rejections, Signature, Tensor,
};
use image::{ImageReader, Limits, RgbImage};

/// The labels, from the lowest brightness to the highest.
const LABELS: [&str; 2] = ["dark", "bright"];

/// The largest file, in bytes.
const MAX_FILE_BYTES: u32 = 2 << 20;

/// The largest width and height, in pixels.
const MAX_SIZE: u32 = 4096;

/// The largest picture once it is decoded, in bytes: a small file may hold a huge one.
const MAX_DECODED_BYTES: u64 = 64 << 20;

struct Brightness;

impl Guest for Brightness {
    fn init(_assets: &Assets) -> Result<(Self, Signature), Error> {
        let image = Field::bytes("image", "a PNG or JPEG file").length(1, MAX_FILE_BYTES);
        let label = Field::label("label", "bright from a mean of one half on", LABELS);
        let brightness = Field::fp32("brightness", "the mean of all levels").range(0.0, 1.0);
        Ok((Self, Signature::new([image], [label, brightness]).max_batch_size(16)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let mut rejections = Rejections::default();
        let mut means = Vec::new();
        for (row, file) in batch.bytes("image")?.into_iter().enumerate() {
            match decode(file) {
                Ok(picture) => means.push(mean(&picture)),
                // The caller gets the reason; the other rows are predicted all the same.
                Err(reason) => rejections.reject(row, "image", reason),
            }
        }
        rejections.check()?;
        let labels = means.iter().map(|mean| LABELS[usize::from(*mean >= 0.5)]);
        Ok(vec![
            Tensor::texts("label", labels),
            Tensor::fp32("brightness", means.iter().copied()),
        ])
    }
}

/// Decode a file within limits. The error continues "`image` …".
fn decode(file: &[u8]) -> Result<RgbImage, &'static str> {
    let mut reader = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|_unreadable| "is not a picture")?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIZE);
    limits.max_image_height = Some(MAX_SIZE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let picture = reader.decode().map_err(|_invalid| "is not a PNG or JPEG file, or is too large")?;
    Ok(picture.into_rgb8())
}

/// The mean of all levels, from 0 to 1.
fn mean(picture: &RgbImage) -> f32 {
    let levels = picture.as_raw();
    let sum: u64 = levels.iter().map(|level| u64::from(*level)).sum();
    (sum as f64 / (255.0 * levels.len().max(1) as f64)) as f32
}

guesthouse_guest::export!(Brightness);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_all_levels() {
        let red = RgbImage::from_pixel(3, 2, image::Rgb([255, 0, 0]));
        assert!((mean(&red) - 1.0 / 3.0).abs() < 1e-6);
        let mut file = Cursor::new(Vec::new());
        red.write_to(&mut file, image::ImageFormat::Png).unwrap();
        assert_eq!(decode(file.get_ref()).unwrap(), red);
    }

    #[test]
    fn other_files_are_rejected() {
        for file in [&b""[..], b"not a picture", b"\x89PNG\r\n\x1a\n"] {
            assert!(decode(file).is_err());
        }
    }
}
