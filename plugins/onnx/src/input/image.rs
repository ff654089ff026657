//! Files of pictures that become pixels, as Pillow makes them.

mod decode;
mod resample;

use guesthouse_guest::tract_onnx::prelude::{DatumType, Tensor as Array};
use guesthouse_guest::{Batch, Datatype, Dimension, Error, GraphValue, PredictError, Rejections};
use guesthouse_onnx_manifest::{Channels, Image, Layout, Resize};

use self::resample::Picture;
use super::{Feed, Preprocess, position};
use crate::fields::Wanted;

/// A field whose files become pixels.
pub(super) struct Images {
    field: String,
    index: usize,
    datum_type: DatumType,
    pixels: Pixels,
}

/// What happens to a picture.
struct Pixels {
    resize: Resize,
    filter: guesthouse_onnx_manifest::Resample,
    /// Height and width of the result.
    size: [usize; 2],
    layout: Layout,
    /// The channels of a picture, in the order of the result.
    order: Vec<usize>,
    /// The number for each level of each channel of the result.
    levels: Vec<[f32; 256]>,
}

impl Images {
    pub(super) fn new(image: &Image, values: &[GraphValue]) -> Result<Self, Error> {
        let wrong = |what: String| Error::new(format!("image of {:?}: {what}", image.input));
        let index = position(values, &image.graph).map_err(wrong)?;
        let pixels = Pixels::new(image).map_err(wrong)?;
        let value = &values[index];
        let shape = pixels.shape();
        let fits = |(wanted, is): (&usize, &Dimension)| match is {
            Dimension::Fixed(size) => size == wanted,
            Dimension::Named(_) => true,
        };
        let row = &value.shape[1..];
        if row.len() != shape.len() || !shape.iter().zip(row).all(fits) {
            return Err(wrong(format!(
                "the pixels are {shape:?}, but the graph's input {:?} takes {row:?}: correct `resize`, \
                 `crop`, `layout` or `channels`",
                value.name
            )));
        }
        if matches!(value.datatype, Datatype::Bytes | Datatype::Bool) {
            return Err(wrong(format!("the graph's input {:?} takes no numbers", value.name)));
        }
        Ok(Self { field: image.input.clone(), index, datum_type: value.datum_type(), pixels })
    }
}

impl Pixels {
    fn new(image: &Image) -> Result<Self, String> {
        let resized = match image.resize {
            Resize::Exact(size) => size,
            Resize::Shortest(side) => [side; 2],
        };
        let size = match (image.resize, image.crop) {
            (_, Some(size)) => size,
            (Resize::Exact(size), None) => size,
            (Resize::Shortest(_), None) => {
                return Err(
                    "a picture resized by its shortest side has any shape: set `crop`".to_owned()
                );
            }
        };
        if size.contains(&0) || size.iter().zip(resized).any(|(crop, side)| *crop > side) {
            return Err(format!("`crop` is {size:?} of {resized:?}: give a smaller one, above 0"));
        }
        if resized.iter().any(|side| *side > MAX_SIDE) {
            return Err(format!("`resize` is {resized:?}: give at most {MAX_SIDE}"));
        }
        let order = match image.channels {
            Channels::Rgb => vec![0, 1, 2],
            Channels::Bgr => vec![2, 1, 0],
        };
        if image.std.contains(&0.0) {
            return Err("`std` is 0".to_owned());
        }
        let levels = image.mean.iter().zip(&image.std).map(|(mean, std)| {
            #[expect(clippy::cast_possible_truncation, reason = "inputs are in single precision")]
            std::array::from_fn(|level| ((level as f64 * image.scale - mean) / std) as f32)
        });
        Ok(Self {
            resize: image.resize,
            filter: image.resample,
            size: size.map(|side| side as usize),
            layout: image.layout,
            order,
            levels: levels.collect(),
        })
    }

    /// The dimensions of a row.
    fn shape(&self) -> Vec<usize> {
        let ([height, width], channels) = (self.size, self.order.len());
        match self.layout {
            Layout::Nchw => vec![channels, height, width],
            Layout::Nhwc => vec![height, width, channels],
        }
    }

    /// The numbers of a file; the error says why the file is rejected.
    fn of_file(&self, file: &[u8]) -> Result<Vec<f32>, String> {
        Ok(self.of_picture(&decode::decode(file)?))
    }

    fn of_picture(&self, picture: &Picture) -> Vec<f32> {
        let [height, width] = match self.resize {
            Resize::Exact(size) => size.map(|side| side as usize),
            Resize::Shortest(side) => shortest(picture.height, picture.width, side as usize),
        };
        let picture = picture.resized(height, width, self.filter);
        let [rows, columns] = self.size;
        let (top, left) = (middle(height, rows), middle(width, columns));
        let level = |row: usize, column: usize, channel: usize| {
            let from = self.order[channel];
            let pixel = picture.pixels[(top + row) * picture.width + left + column];
            self.levels[channel][usize::from(pixel[from])]
        };
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let channels = 0..self.order.len();
        match self.layout {
            Layout::Nchw => channels
                .flat_map(|channel| places.clone().map(move |(row, column)| (row, column, channel)))
                .map(|(row, column, channel)| level(row, column, channel))
                .collect(),
            Layout::Nhwc => places
                .flat_map(|(row, column)| {
                    channels.clone().map(move |channel| (row, column, channel))
                })
                .map(|(row, column, channel)| level(row, column, channel))
                .collect(),
        }
    }
}

/// The longest side of a resized picture.
const MAX_SIDE: u32 = 4096;

/// Height and width of a picture whose shortest side becomes this one, as of torchvision's `Resize`.
fn shortest(height: usize, width: usize, side: usize) -> [usize; 2] {
    if height <= width { [side, side * width / height] } else { [side * height / width, side] }
}

/// The first row or column of the middle, as of torchvision's `CenterCrop`: half of the rest, rounded to
/// an even number.
fn middle(whole: usize, part: usize) -> usize {
    let rest = whole - part;
    let half = rest / 2;
    if rest % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

impl Preprocess for Images {
    fn takes(&self) -> Vec<(String, Wanted)> {
        let file = Wanted::element(Datatype::Bytes, "a JPEG, PNG or WebP file");
        vec![(self.field.clone(), file)]
    }

    fn makes(&self) -> Vec<usize> {
        vec![self.index]
    }

    fn largest(&self) -> Option<Vec<usize>> {
        Some(self.pixels.shape())
    }

    fn run(
        &self,
        batch: &Batch,
        rejections: &mut Rejections,
        feed: &mut Feed,
    ) -> Result<(), PredictError> {
        let mut shape = vec![batch.rows()];
        shape.extend(self.pixels.shape());
        let mut all = Vec::with_capacity(shape.iter().product());
        for (row, file) in batch.bytes(&self.field)?.into_iter().enumerate() {
            match self.pixels.of_file(file) {
                Ok(pixels) => all.extend(pixels),
                Err(reason) => {
                    rejections.reject(row, &self.field, reason);
                    all.resize((row + 1) * shape[1..].iter().product::<usize>(), 0.0);
                }
            }
        }
        let array = Array::from_shape(&shape, &all);
        let array = array.and_then(|array| Ok(array.cast_to_dt(self.datum_type)?.into_owned()));
        feed.set(self.index, array.map_err(PredictError::failed)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
