//! Resizes pictures to exactly the pixels of Pillow's `resize`, with which networks were trained.
//!
//! A pixel of the result is a weighted mean of the pixels that it covers, and of their neighbours:
//! first along rows, then along columns. Weights are multiples of 2^-22, as Pillow's are; the result
//! of each direction is rounded to a level.

use guesthouse_onnx_manifest::Resample;

/// The binary digits of weights behind the point.
const PRECISION: u32 = 32 - 8 - 2;

/// A picture of eight bits a channel, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) pixels: Vec<[u8; 3]>,
}

/// The pixels, along an axis, of which one is composed.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

impl Picture {
    /// The picture in another size.
    pub(super) fn resized(&self, height: usize, width: usize, filter: Resample) -> Self {
        let mut picture = self.clone();
        if width != picture.width {
            let windows = windows(picture.width, width, filter);
            let rows = picture.pixels.chunks_exact(picture.width);
            let pixels = rows.flat_map(|row| {
                windows.iter().map(|window| window.mean(row[window.first..].iter()))
            });
            picture.pixels = pixels.collect();
            picture.width = width;
        }
        if height != picture.height {
            let windows = windows(picture.height, height, filter);
            let pixels = windows.iter().flat_map(|window| {
                let rows = &picture.pixels[window.first * width..];
                (0..width).map(|column| window.mean(rows[column..].iter().step_by(width)))
            });
            picture.pixels = pixels.collect();
            picture.height = height;
        }
        picture
    }
}

impl Window {
    fn mean<'a>(&self, pixels: impl Iterator<Item = &'a [u8; 3]>) -> [u8; 3] {
        let mut sums = [1_i32 << (PRECISION - 1); 3];
        for (pixel, weight) in pixels.zip(&self.weights) {
            sums.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += i32::from(*level) * weight);
        }
        #[expect(clippy::cast_sign_loss, reason = "0 to 255")]
        sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8)
    }
}

/// For each of `to` pixels along an axis, those out of `from` of which it is composed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides and weights are small"
)]
fn windows(from: usize, to: usize, filter: Resample) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let reach = filter_scale * if filter == Resample::Bilinear { 1.0 } else { 2.0 };
    let window = |place: usize| {
        let centre = (place as f64 + 0.5) * scale;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let weights = (first..end)
            .map(|pixel| weight(filter, (pixel as f64 - centre + 0.5) * filter_scale.recip()));
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        let one = f64::from(1 << PRECISION);
        let weights = weights.iter().map(|weight| {
            let weight = weight / sum * one;
            (if weight < 0.0 { weight - 0.5 } else { weight + 0.5 }) as i32
        });
        Window { first, weights: weights.collect() }
    };
    (0..to).map(window).collect()
}

/// The weight of a pixel at this distance.
fn weight(filter: Resample, distance: f64) -> f64 {
    let distance = distance.abs();
    match filter {
        Resample::Bilinear => (1.0 - distance).max(0.0),
        Resample::Bicubic if distance < 1.0 => {
            ((CUBIC + 2.0) * distance - (CUBIC + 3.0)) * distance * distance + 1.0
        }
        Resample::Bicubic if distance < 2.0 => {
            (((distance - 5.0) * distance + 8.0) * distance - 4.0) * CUBIC
        }
        Resample::Bicubic => 0.0,
    }
}

/// The parameter of the cubic filter.
const CUBIC: f64 = -0.5;
