//! The elements of a tensor in JSON, read into their binary form and written from it without loss.
//!
//! Integers are accepted as 3.0, and booleans as 0 and 1, because some clients' languages have one type of
//! number. A float is read as the nearest one to its text, and is written as the shortest text that is read as
//! the same float, also by clients that read a double first. FP16 and BF16 have no form in JSON, nor have NaN,
//! infinities and byte strings that are not UTF-8: they require the binary form.

use std::fmt::Display;
use std::str::FromStr;

use serde::Serialize as _;
use serde_json::Serializer;

use super::reader::{Read, Reader};
use guesthouse_model::{Datatype, Tensor, bytes_elements};

/// The deepest nesting of `data`: a row has at most 8 dimensions, and the batch is one more.
const MAX_DIMENSIONS: usize = 16;

/// The shape of a nested array of elements.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    /// The size along each dimension.
    sizes: Vec<Option<u64>>,
    /// The depth at which there are elements instead of arrays.
    leaves: Option<usize>,
}

impl Nesting {
    /// Whether a tensor may have this shape: its elements are in one flat array, or nested like the shape.
    pub(super) fn fits(&self, shape: &[u64]) -> bool {
        self.sizes.len() <= 1 || self.sizes.iter().copied().eq(shape.iter().copied().map(Some))
    }
}

/// Read the elements of `data`, in row-major order, flat or nested.
pub(super) fn read(
    reader: &mut Reader<'_>,
    datatype: Datatype,
    data: &mut Vec<u8>,
) -> Read<Nesting> {
    let mut nesting = Nesting::default();
    array(reader, datatype, data, &mut nesting, 0)?;
    Ok(nesting)
}

fn array(
    reader: &mut Reader<'_>,
    datatype: Datatype,
    data: &mut Vec<u8>,
    nesting: &mut Nesting,
    depth: usize,
) -> Read<()> {
    if depth >= MAX_DIMENSIONS {
        return Err(reader.error(format!("data has over {MAX_DIMENSIONS} dimensions")));
    }
    let mut size = 0;
    reader.array(|reader| {
        size += 1;
        if reader.peek()? == b'[' {
            if nesting.leaves == Some(depth) {
                return Err(reader.error("data has arrays beside elements"));
            }
            return array(reader, datatype, data, nesting, depth + 1);
        }
        if *nesting.leaves.get_or_insert(depth) != depth {
            return Err(reader.error("data has elements beside arrays"));
        }
        element(reader, datatype, data)
    })?;
    // Inner arrays end before outer ones, so a dimension may not have a size yet.
    if nesting.sizes.len() <= depth {
        nesting.sizes.resize(depth + 1, None);
    }
    if *nesting.sizes[depth].get_or_insert(size) == size {
        Ok(())
    } else {
        Err(reader.error("data has arrays of different lengths"))
    }
}

fn element(reader: &mut Reader<'_>, datatype: Datatype, data: &mut Vec<u8>) -> Read<()> {
    match datatype {
        Datatype::Bool => data.push(boolean(reader)?),
        Datatype::Uint8 => data.push(integer(reader, datatype)?),
        Datatype::Uint16 => data.extend(integer::<u16>(reader, datatype)?.to_le_bytes()),
        Datatype::Uint32 => data.extend(integer::<u32>(reader, datatype)?.to_le_bytes()),
        Datatype::Uint64 => data.extend(integer::<u64>(reader, datatype)?.to_le_bytes()),
        Datatype::Int8 => data.extend(integer::<i8>(reader, datatype)?.to_le_bytes()),
        Datatype::Int16 => data.extend(integer::<i16>(reader, datatype)?.to_le_bytes()),
        Datatype::Int32 => data.extend(integer::<i32>(reader, datatype)?.to_le_bytes()),
        Datatype::Int64 => data.extend(integer::<i64>(reader, datatype)?.to_le_bytes()),
        Datatype::Fp32 => {
            let value: f32 = parsed(reader, datatype)?;
            finite(reader, value.is_finite())?;
            data.extend(value.to_le_bytes());
        }
        Datatype::Fp64 => {
            let value: f64 = parsed(reader, datatype)?;
            finite(reader, value.is_finite())?;
            data.extend(value.to_le_bytes());
        }
        Datatype::Bytes => {
            let text = reader.string()?;
            let length = u32::try_from(text.len());
            let length = length.map_err(|_error| reader.error("a byte string is too long"))?;
            data.extend(length.to_le_bytes());
            data.extend(text.as_bytes());
        }
        Datatype::Fp16 | Datatype::Bf16 => {
            let name = datatype.as_str();
            return Err(reader.error(format!("{name} has no form in JSON: send it as binary data")));
        }
    }
    Ok(())
}

fn parsed<T: FromStr>(reader: &mut Reader<'_>, datatype: Datatype) -> Read<T> {
    let number = reader.number()?.parse();
    number.map_err(|_error| reader.error(format!("that is not a valid {}", datatype.as_str())))
}

fn integer<T: FromStr>(reader: &mut Reader<'_>, datatype: Datatype) -> Read<T> {
    let text = reader.number()?;
    let number = whole(text).parse().or_else(|error| match exponent_free(text) {
        Some(text) => text.parse(),
        None => Err(error),
    });
    number.map_err(|_error| reader.error(format!("that is not a valid {}", datatype.as_str())))
}

/// The number without a fraction that is zero.
fn whole(text: &str) -> &str {
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    }
}

/// A number with an exponent in digits alone, if it is an integer that a double represents exactly.
fn exponent_free(text: &str) -> Option<String> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let value: f64 = text.contains(['e', 'E']).then(|| text.parse().ok())??;
    // Display writes a double without an exponent.
    (value.fract() == 0.0 && value.abs() <= EXACT).then(|| value.to_string())
}

fn boolean(reader: &mut Reader<'_>) -> Read<u8> {
    if !matches!(reader.peek()?, b'0' | b'1') {
        return reader.boolean().map(u8::from);
    }
    match whole(reader.number()?) {
        "0" => Ok(0),
        "1" => Ok(1),
        _ => Err(reader.error("true or false is expected")),
    }
}

fn finite(reader: &Reader<'_>, is_finite: bool) -> Read<()> {
    if is_finite { Ok(()) } else { Err(reader.error("a number is too large")) }
}

/// Why a tensor has no form in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoJson(pub(super) &'static str);

/// Whether elements of the datatype have a form in JSON.
pub(super) fn has_json(datatype: Datatype) -> bool {
    !matches!(datatype, Datatype::Fp16 | Datatype::Bf16)
}

/// Write the elements as one array. The tensor has passed [`Tensor::check`].
pub(super) fn write(tensor: &Tensor, json: &mut Vec<u8>) -> Result<(), NoJson> {
    macro_rules! integers {
        ($type:ty) => {
            list(json, tensor.data.as_chunks().0, |json, bytes| {
                text(json, <$type>::from_le_bytes(*bytes));
                Ok(())
            })
        };
    }
    match tensor.datatype {
        Datatype::Bool => list(json, &tensor.data, |json, flag| {
            text(json, *flag != 0);
            Ok(())
        }),
        Datatype::Uint8 => integers!(u8),
        Datatype::Uint16 => integers!(u16),
        Datatype::Uint32 => integers!(u32),
        Datatype::Uint64 => integers!(u64),
        Datatype::Int8 => integers!(i8),
        Datatype::Int16 => integers!(i16),
        Datatype::Int32 => integers!(i32),
        Datatype::Int64 => integers!(i64),
        Datatype::Fp32 => list(json, tensor.data.as_chunks().0, |json, bytes| {
            single(json, f32::from_le_bytes(*bytes))
        }),
        Datatype::Fp64 => list(json, tensor.data.as_chunks().0, |json, bytes| {
            double(json, f64::from_le_bytes(*bytes))
        }),
        Datatype::Bytes => list(json, bytes_elements(&tensor.data), |json, bytes| {
            let text =
                str::from_utf8(bytes).map_err(|_error| NoJson("a byte string is no text"))?;
            string(json, text);
            Ok(())
        }),
        Datatype::Fp16 | Datatype::Bf16 => Err(NoJson("its datatype has no form in JSON")),
    }
}

fn list<T>(
    json: &mut Vec<u8>,
    elements: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), NoJson>,
) -> Result<(), NoJson> {
    json.push(b'[');
    for (index, element) in elements.into_iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write(json, element)?;
    }
    json.push(b']');
    Ok(())
}

fn text(json: &mut Vec<u8>, value: impl Display) {
    use std::io::Write as _;
    // Writing to a vector does not fail.
    let _ = write!(json, "{value}");
}

/// Write a JSON string.
pub(super) fn string(json: &mut Vec<u8>, text: &str) {
    // Writing to a vector does not fail.
    let _ = text.serialize(&mut Serializer::new(json));
}

const NOT_FINITE: NoJson = NoJson("a number is NaN or infinite");

fn single(json: &mut Vec<u8>, value: f32) -> Result<(), NoJson> {
    if !value.is_finite() {
        return Err(NOT_FINITE);
    }
    let start = json.len();
    let _ = value.serialize(&mut Serializer::new(&mut *json));
    // In rare cases, the shortest text of a float is read as another float if it is read as a double first.
    let written = str::from_utf8(&json[start..]).ok().and_then(|text| text.parse::<f64>().ok());
    #[expect(clippy::cast_possible_truncation, reason = "as clients do")]
    if written.is_none_or(|double| (double as f32).to_bits() != value.to_bits()) {
        json.truncate(start);
        return double(json, value.into());
    }
    Ok(())
}

fn double(json: &mut Vec<u8>, value: f64) -> Result<(), NoJson> {
    if !value.is_finite() {
        return Err(NOT_FINITE);
    }
    let _ = value.serialize(&mut Serializer::new(json));
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(datatype: Datatype, shape: &[u64], data: Vec<u8>) -> Tensor {
        Tensor { name: "x".to_owned(), datatype, shape: shape.to_vec(), data: data.into() }
    }

    fn read_all(text: &str, datatype: Datatype, shape: &[u64]) -> Option<Vec<u8>> {
        let mut reader = Reader::new(text);
        let mut data = Vec::new();
        let nesting = read(&mut reader, datatype, &mut data).ok()?;
        reader.end().ok()?;
        let tensor = tensor(datatype, shape, data);
        (nesting.fits(shape) && tensor.check().is_ok()).then_some(Vec::from(tensor.data))
    }

    #[test]
    fn integers_are_within_their_datatype() {
        for (datatype, least, most) in [
            (Datatype::Uint8, 0, i128::from(u8::MAX)),
            (Datatype::Uint16, 0, i128::from(u16::MAX)),
            (Datatype::Uint32, 0, i128::from(u32::MAX)),
            (Datatype::Uint64, 0, i128::from(u64::MAX)),
            (Datatype::Int8, i128::from(i8::MIN), i128::from(i8::MAX)),
            (Datatype::Int16, i128::from(i16::MIN), i128::from(i16::MAX)),
            (Datatype::Int32, i128::from(i32::MIN), i128::from(i32::MAX)),
            (Datatype::Int64, i128::from(i64::MIN), i128::from(i64::MAX)),
        ] {
            for (number, is_good) in
                [(least, true), (most, true), (least - 1, false), (most + 1, false)]
            {
                let read = read_all(&format!("[{number}]"), datatype, &[1]);
                assert_eq!(read.is_some(), is_good, "{datatype:?} {number}");
                let size = datatype.element_size().unwrap();
                assert_eq!(read, is_good.then(|| number.to_le_bytes()[..size].to_vec()));
            }
            let one = Some(1_i128.to_le_bytes()[..datatype.element_size().unwrap()].to_vec());
            for good in ["[1.0]", "[1.000]", "[1e0]", "[0.1e1]", "[10E-1]"] {
                assert_eq!(read_all(good, datatype, &[1]), one, "{datatype:?} {good}");
            }
            let bad = ["[1.5]", "[1e-1]", "[1e400]", "[1.]", "[\"1\"]", "[true]", "[null]", "[+1]"];
            for bad in bad.into_iter().chain(["[01]", "[NaN]", "[1e20]"]) {
                assert_eq!(read_all(bad, datatype, &[1]), None, "{datatype:?} {bad}");
            }
        }
    }

    #[test]
    fn floats_are_exact_or_rejected() {
        let single = |text: &str| read_all(text, Datatype::Fp32, &[1]);
        let double = |text: &str| read_all(text, Datatype::Fp64, &[1]);
        assert_eq!(single("[7.038531e-26]"), Some(7.038_531e-26_f32.to_le_bytes().to_vec()));
        assert_eq!(single("[-0]"), Some((-0.0_f32).to_le_bytes().to_vec()));
        assert_eq!(
            double("[9007199254740993]"),
            Some(9_007_199_254_740_992_f64.to_le_bytes().to_vec())
        );
        assert_eq!(double("[1e-400]"), Some(0_f64.to_le_bytes().to_vec()));
        for bad in ["[1e39]", "[NaN]", "[Infinity]", "[-Infinity]", "[null]", "[\"1\"]", "[true]"] {
            assert_eq!(single(bad), None, "{bad}");
        }
        assert_eq!(double("[1e309]"), None);
        for datatype in [Datatype::Fp16, Datatype::Bf16] {
            assert_eq!(read_all("[1]", datatype, &[1]), None);
        }
    }

    #[test]
    fn data_is_flat_or_nested_like_its_shape() {
        let bytes = |text: &str, shape: &[u64]| read_all(text, Datatype::Uint8, shape);
        let six = Some(vec![1, 2, 3, 4, 5, 6]);
        assert_eq!(bytes("[1,2,3,4,5,6]", &[2, 3]), six);
        assert_eq!(bytes("[[1,2,3],[4,5,6]]", &[2, 3]), six);
        assert_eq!(bytes("[[[1],[2],[3]],[[4],[5],[6]]]", &[2, 3, 1]), six);
        for (text, shape) in [
            ("[[1,2],[3,4],[5,6]]", &[2, 3][..]),
            ("[[1,2,3],[4,5]]", &[2, 3]),
            ("[[1,2,3],[4,5,6],7]", &[2, 3]),
            ("[1,2,3,[4,5,6]]", &[2, 3]),
            ("[[1,2,3],[[4,5,6]]]", &[2, 3]),
            ("[[[1,2,3]],[4,5,6]]", &[2, 3]),
            ("[[1,2,3,4,5,6]]", &[2, 3]),
            ("[[1,2,3],[]]", &[2, 3]),
            ("[1,2,3,4,5]", &[2, 3]),
            ("[]", &[1]),
            ("[[]]", &[1]),
            ("1", &[1]),
            ("{}", &[1]),
            ("[1,]", &[1]),
        ] {
            assert_eq!(bytes(text, shape), None, "{text}");
        }
        let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(bytes(&deep(MAX_DIMENSIONS), &[1; MAX_DIMENSIONS]).is_some());
        assert!(bytes(&deep(MAX_DIMENSIONS + 1), &[1; MAX_DIMENSIONS + 1]).is_none());
        assert!(bytes(&"[".repeat(1_000_000), &[1]).is_none());
    }

    #[test]
    fn values_without_a_json_form_are_rejected() {
        for (datatype, data) in [
            (Datatype::Fp32, f32::NAN.to_le_bytes().to_vec()),
            (Datatype::Fp32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
            (Datatype::Fp64, f64::INFINITY.to_le_bytes().to_vec()),
            (Datatype::Bytes, vec![1, 0, 0, 0, 0xff]),
            (Datatype::Fp16, vec![0, 0x3c]),
            (Datatype::Bf16, vec![0x80, 0x3f]),
        ] {
            assert!(write(&tensor(datatype, &[1], data), &mut Vec::new()).is_err(), "{datatype:?}");
        }
    }

    /// Tensors of any datatype, or only those that have a form in JSON.
    pub(crate) fn tensors(of_json: bool) -> impl Strategy<Value = Tensor> {
        let datatypes = Datatype::ALL.into_iter().filter(move |it| !of_json || has_json(*it));
        let datatype = prop::sample::select(datatypes.collect::<Vec<_>>());
        let bytes = move || {
            if of_json {
                ".{0,6}".prop_map(String::into_bytes).boxed()
            } else {
                prop::collection::vec(any::<u8>(), 0..12).boxed()
            }
        };
        (datatype, 1..5_u64, 0..4_u64, "[a-z]{1,8}").prop_flat_map(
            move |(datatype, rows, columns, name)| {
                let count = usize::try_from(rows * columns).unwrap();
                let data = match datatype.element_size() {
                    None => prop::collection::vec(bytes(), count)
                        .prop_map(|all| {
                            let length = |one: &Vec<u8>| u32::try_from(one.len()).unwrap();
                            let one =
                                |one: &Vec<u8>| [&length(one).to_le_bytes()[..], one].concat();
                            all.iter().flat_map(one).collect()
                        })
                        .boxed(),
                    Some(size) => prop::collection::vec(any::<u8>(), count * size)
                        .prop_map(move |mut data: Vec<u8>| {
                            if datatype == Datatype::Bool {
                                data.iter_mut().for_each(|flag| *flag &= 1);
                            }
                            let is_float = matches!(datatype, Datatype::Fp32 | Datatype::Fp64);
                            if of_json && is_float {
                                // Clears a bit of the exponent, so that the float is finite.
                                data.iter_mut()
                                    .skip(size - 1)
                                    .step_by(size)
                                    .for_each(|high| *high &= 0xbf);
                            }
                            data
                        })
                        .boxed(),
                };
                data.prop_map(move |data| Tensor {
                    name: name.clone(),
                    datatype,
                    shape: vec![rows, columns],
                    data: data.into(),
                })
            },
        )
    }

    proptest! {
        /// Whatever can be written is read as the same bits, also by clients that read doubles.
        #[test]
        fn elements_round_trip_bit_for_bit(tensor in tensors(true)) {
            let mut json = Vec::new();
            prop_assert_eq!(write(&tensor, &mut json), Ok(()));
            let text = str::from_utf8(&json).unwrap();
            let read = read_all(text, tensor.datatype, &tensor.shape);
            prop_assert_eq!(read.as_deref(), Some(&tensor.data[..]), "{}", text);
            if tensor.datatype == Datatype::Fp32 {
                let numbers = text.trim_matches(['[', ']']).split(',').filter(|it| !it.is_empty());
                #[expect(clippy::cast_possible_truncation, reason = "as clients do")]
                let floats = numbers.map(|number| number.parse::<f64>().unwrap() as f32);
                let bytes: Vec<u8> = floats.flat_map(f32::to_le_bytes).collect();
                prop_assert_eq!(&bytes, &tensor.data);
            }
        }
    }
}
