//! Resizes pictures to exactly the pixels of OpenCV's `resize` with `INTER_LINEAR`, on which the
//! network was trained and its reference outputs were computed.
//!
//! A pixel of the result is a weighted mean of two by two pixels of the picture; there is no
//! smoothing when shrinking. Pixels are squares, so their centres are at halves. Weights are
//! multiples of 1/2,048; sums over columns are shifted by four bits and sums over rows by sixteen
//! before they are rounded.

use image::RgbImage;

/// The denominator of weights.
const ONE: f32 = 2048.0;

/// Two neighbours along an axis and their weights, which add up to [`ONE`].
struct Pair {
    places: [usize; 2],
    weights: [u32; 2],
}

/// The pixels of the picture, resized to `width` by `height`, row by row.
pub(crate) fn resize(picture: &RgbImage, width: usize, height: usize) -> Vec<[u8; 3]> {
    let (pixels, _rest) = picture.as_raw().as_chunks();
    let from_width = picture.width() as usize;
    let columns = pairs(from_width, width);
    let mut resized = Vec::with_capacity(width * height);
    for Pair { places, weights } in pairs(picture.height() as usize, height) {
        let [upper, lower] = places.map(|row| &pixels[row * from_width..][..from_width]);
        resized.extend(columns.iter().map(|column| blend([upper, lower], weights, column)));
    }
    resized
}

fn blend(rows: [&[[u8; 3]]; 2], row_weights: [u32; 2], column: &Pair) -> [u8; 3] {
    std::array::from_fn(|channel| {
        let level = |row: &[[u8; 3]], place: usize| u32::from(row[column.places[place]][channel]);
        let [upper, lower] =
            rows.map(|row| level(row, 0) * column.weights[0] + level(row, 1) * column.weights[1]);
        let sum = ((row_weights[0] * (upper >> 4)) >> 16) + ((row_weights[1] * (lower >> 4)) >> 16);
        #[expect(clippy::cast_possible_truncation, reason = "a mean of levels is a level")]
        let level = ((sum + 2) >> 2) as u8;
        level
    })
}

/// The pixels, out of `from` along an axis, of which each of `to` pixels is composed.
fn pairs(from: usize, to: usize) -> Vec<Pair> {
    // `from / to` may differ in the last bit.
    let scale = 1.0 / (to as f64 / from as f64);
    let pair = |place: usize| {
        #[expect(clippy::cast_possible_truncation, reason = "OpenCV goes on in single precision")]
        let centre = ((place as f64 + 0.5) * scale - 0.5) as f32;
        let part = centre - centre.floor();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to ONE")]
        let weights = [1.0 - part, part].map(|weight| (weight * ONE).round_ties_even() as u32);
        #[expect(clippy::cast_possible_truncation, reason = "-1 to the number of pixels")]
        let first = centre.floor() as isize;
        // Beyond the edge, the edge pixel is repeated.
        let inside = |place: isize| place.max(0).cast_unsigned().min(from - 1);
        Pair { places: [inside(first), inside(first + 1)], weights }
    };
    (0..to).map(pair).collect()
}
