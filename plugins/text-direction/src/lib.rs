//! Detects whether a picture of a line of text is upside down: PaddleOCR's text direction
//! classifier, a small CNN in ONNX.
//!
//! The preprocessing is that of `TextClassifier` in RapidOCR, on pictures as OpenCV reads them; it
//! is described in `models/text-direction/README.md`. This guest owns the bounds of what a file may
//! decode to ([`picture`]) and the resampling ([`resample`]).

mod picture;
mod resample;

use guesthouse_guest::tract_onnx::prelude::{Tensor as Array, TractResult};
use guesthouse_guest::{
    Assets, Batch, Error, Field, Guest, Model, ModelInput, PredictError, Rejections, Signature,
    Tensor, export,
};
use image::RgbImage;

/// The height and the width of the network's input, in pixels.
const HEIGHT: usize = 48;
const WIDTH: usize = 192;

/// The channels: blue, green and red, in this order.
const CHANNELS: usize = 3;

/// The elements of one row of the network's input.
const ROW: usize = CHANNELS * HEIGHT * WIDTH;

/// The rotation of the line in degrees, in the order of the network's outputs.
const LABELS: [&str; 2] = ["0", "180"];

/// The largest file, in bytes; a request of the default size has room for less than four.
const MAX_FILE_BYTES: u32 = 2 << 20;

struct TextDirection {
    model: Model,
}

impl Guest for TextDirection {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let pixels = ModelInput::new::<f32>().named("rows");
        let pixels = pixels.fixed(CHANNELS).fixed(HEIGHT).fixed(WIDTH);
        let model = Model::builder().input(pixels).load_onnx(assets, "model.onnx")?;
        let text_direction = Self { model };
        // Run once before the snapshot, so that every instance has the memory for a run.
        text_direction.classify(empty(1).map_err(PredictError::failed)?)?;

        let image = Field::bytes("image", "a PNG or JPEG file that shows one line of text");
        let image = image.length(1, MAX_FILE_BYTES);
        let label = Field::label("label", "by how many degrees the line is turned", LABELS);
        let score = Field::fp32("score", "probability of the label").range(0.0, 1.0);
        Ok((text_direction, Signature::new([image], [label, score]).max_batch_size(16)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let mut rejections = Rejections::default();
        let mut seen = empty(batch.rows()).map_err(PredictError::failed)?;
        let mut view = seen.to_plain_array_view_mut::<f32>().map_err(PredictError::failed)?;
        let rows = view.as_slice_mut().expect("a new array has no gaps").chunks_exact_mut(ROW);
        for ((row, file), levels) in batch.bytes("image")?.into_iter().enumerate().zip(rows) {
            match picture::decode(file) {
                Ok(picture) => see(&picture, levels),
                Err(reason) => rejections.reject(row, "image", reason),
            }
        }
        rejections.check()?;
        let directions = self.classify(seen)?;
        let labels = directions.iter().map(|(label, _score)| *label);
        let scores = directions.iter().map(|(_label, score)| *score);
        Ok(vec![Tensor::texts("label", labels), Tensor::fp32("score", scores)])
    }
}

impl TextDirection {
    /// The more likely label of each row and its probability.
    fn classify(&self, seen: Array) -> Result<Vec<(&'static str, f32)>, PredictError> {
        let outputs = self.model.run([seen])?.fp32(0)?;
        let (probabilities, _rest) = outputs.as_chunks();
        let direction = |[upright, turned]: &[f32; 2]| {
            if turned > upright { (LABELS[1], *turned) } else { (LABELS[0], *upright) }
        };
        Ok(probabilities.iter().map(direction).collect())
    }
}

/// The network's input for so many rows, which are grey.
fn empty(rows: usize) -> TractResult<Array> {
    Array::zero::<f32>(&[rows, CHANNELS, HEIGHT, WIDTH])
}

/// Convert a picture to a row of the network's input: scaled to its height, as wide as the aspect
/// ratio requires up to its width, with levels from -1 to 1. The rest of the row stays grey.
fn see(picture: &RgbImage, row: &mut [f32]) {
    let ratio = f64::from(picture.width()) / f64::from(picture.height());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to WIDTH")]
    let width = (HEIGHT as f64 * ratio).ceil().min(WIDTH as f64) as usize;
    let resized = resample::resize(picture, width, HEIGHT);
    for (plane, channel) in row.chunks_exact_mut(HEIGHT * WIDTH).zip((0..CHANNELS).rev()) {
        for (levels, pixels) in plane.chunks_exact_mut(WIDTH).zip(resized.chunks_exact(width)) {
            for (level, pixel) in levels.iter_mut().zip(pixels) {
                *level = (f32::from(pixel[channel]) / 255.0 - 0.5) / 0.5;
            }
        }
    }
}

export!(TextDirection);
