//! Held against `tests/data/onnx-manifest/pixels.json`, which Pillow has computed.

use guesthouse_onnx_manifest::Resample;
use serde_json::Value as Json;

use super::*;

fn expected() -> Json {
    let json = include_str!("../../../../../tests/data/onnx-manifest/pixels.json");
    serde_json::from_str(json).unwrap()
}

fn pixels(hex: &Json) -> Vec<[u8; 3]> {
    let hex = hex.as_str().unwrap().as_bytes();
    let digit = |digit: u8| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap();
    let levels: Vec<u8> = hex.chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect();
    levels.as_chunks().0.to_vec()
}

fn size(value: &Json) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn picture() -> Picture {
    let expected = expected();
    let (height, width) = (size(&expected["height"]), size(&expected["width"]));
    Picture { height, width, pixels: pixels(&expected["levels"]) }
}

#[test]
fn resized_pictures_have_exactly_the_pixels_of_pillow() {
    let expected = expected();
    let resized = expected["resized"].as_array().unwrap();
    assert!(resized.len() >= 10);
    for case in resized {
        let (height, width) = (size(&case["size"][0]), size(&case["size"][1]));
        let filter = match case["filter"].as_str().unwrap() {
            "bilinear" => Resample::Bilinear,
            _ => Resample::Bicubic,
        };
        let found = picture().resized(height, width, filter);
        assert!(found.pixels == pixels(&case["levels"]), "{filter:?} to {height}x{width}");
    }
}

fn image() -> Image {
    Image {
        input: "file".to_owned(),
        graph: "pixels".to_owned(),
        resize: Resize::Exact([23, 31]),
        resample: Resample::Bilinear,
        crop: None,
        scale: 1.0,
        mean: [0.0; 3],
        std: [1.0; 3],
        layout: Layout::Nhwc,
        channels: Channels::Rgb,
    }
}

#[test]
fn layouts_and_channels_are_in_the_order_of_the_manifest() {
    let picture = picture();
    let first = picture.pixels[0].map(f32::from);
    let rgb = Pixels::new(&image()).unwrap().of_picture(&picture);
    assert_eq!(rgb[..3], first);
    let bgr =
        Image { channels: Channels::Bgr, layout: Layout::Nchw, mean: [1.0, 2.0, 3.0], ..image() };
    let bgr = Pixels::new(&bgr).unwrap().of_picture(&picture);
    let plane = 23 * 31;
    assert_eq!(
        [bgr[0], bgr[plane], bgr[2 * plane]],
        [first[2] - 1.0, first[1] - 2.0, first[0] - 3.0]
    );
}

#[test]
fn the_middle_is_that_of_torchvision() {
    // int(round((whole - part) / 2.0)) of Python, for each difference.
    let middles: Vec<usize> = (0..8).map(|rest| middle(rest + 5, 5)).collect();
    assert_eq!(middles, [0, 0, 1, 2, 2, 2, 3, 4]);
    assert_eq!(shortest(50, 81, 36), [36, 58]);
    assert_eq!(shortest(90, 47, 36), [68, 36]);
}

#[test]
fn images_that_do_not_fit_the_graph_are_rejected() {
    let value = |sizes: [usize; 3]| {
        let mut shape = vec![Dimension::Named("rows".to_owned())];
        shape.extend(sizes.map(Dimension::Fixed));
        [GraphValue { name: "pixels".to_owned(), datatype: Datatype::Fp32, shape }]
    };
    let good = value([23, 31, 3]);
    assert!(Images::new(&image(), &good).is_ok());
    for (image, values, expected) in [
        (image(), value([3, 23, 31]), "correct `resize`"),
        (Image { graph: "x".to_owned(), ..image() }, good.clone(), "no input \"x\", but pixels"),
        (Image { resize: Resize::Shortest(23), ..image() }, good.clone(), "set `crop`"),
        (Image { crop: Some([24, 31]), ..image() }, good.clone(), "give a smaller one"),
        (Image { std: [1.0, 0.0, 1.0], ..image() }, good.clone(), "`std` is 0"),
        (Image { resize: Resize::Exact([0, 5]), ..image() }, good.clone(), "above 0"),
    ] {
        let error = Images::new(&image, &values).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn files_that_are_no_pictures_are_rejected() {
    let pixels = Pixels::new(&image()).unwrap();
    for file in [&b""[..], b"GIF89a......", b"hello"] {
        assert!(pixels.of_file(file).unwrap_err().contains("is no JPEG, PNG or WebP file"));
    }
    let error = pixels.of_file(&[0xff, 0xd8, 0xff, 0xe0, 0, 16]).unwrap_err();
    assert!(error.contains("not a whole"), "{error}");
}
