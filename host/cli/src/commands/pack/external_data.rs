//! Weights of an ONNX file that are in other files (`model.onnx.data`): they become a part of it.
//!
//! An ONNX file may come from anywhere, so that the files that it names have to be in its folder, links
//! followed, and all of it may not be larger than an artifact. The file is rewritten field by field;
//! what is not external data stays as it is, and what is no protobuf is left to the guest to reject.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use guesthouse_artifact::{MAX_ARTIFACT_BYTES, open_regular};
use prost::encoding::{decode_varint, encode_varint};

/// How deep graphs may be in each other, each with its node and its attribute.
const MAX_DEPTH: usize = 64;

/// The wire types of protobuf.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// The fields of a tensor.
const RAW_DATA: u64 = 9;
const EXTERNAL_DATA: u64 = 13;
const DATA_LOCATION: u64 = 14;

/// The file with the data of other files in it; `None` if it has all of its data itself.
///
/// # Errors
/// A file is missing, is too short, is outside of the folder, or all of it would be too large.
pub(super) fn inline(path: &Path, file: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let folder = folder.canonicalize().context("cannot find the folder of the ONNX file")?;
    let mut data = DataFiles { folder, bytes: file.len() as u64 };
    rewrite(file, Message::Model, MAX_DEPTH, &mut data)
}

/// The messages of ONNX in which tensors can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
}

impl Message {
    /// What the field with this number is.
    fn child(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Node, 5) => Self::Attribute,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => {
                Self::Tensor
            }
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::SparseTensor,
            _ => return None,
        })
    }
}

/// A field of a message: where it is, and what is in it.
struct Field<'a> {
    number: u64,
    start: usize,
    end: usize,
    /// The bytes of a text, of bytes or of a message.
    bytes: Option<&'a [u8]>,
    varint: u64,
}

/// The fields of a message, up to what is no field.
fn fields(message: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        let start = message.len() - rest.len();
        let key = decode_varint(&mut rest).ok()?;
        let (mut bytes, mut varint) = (None, 0);
        match key & 7 {
            VARINT => varint = decode_varint(&mut rest).ok()?,
            FIXED_64 => rest = rest.get(8..)?,
            FIXED_32 => rest = rest.get(4..)?,
            BYTES => {
                let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                let (first, others) = rest.split_at_checked(length)?;
                (bytes, rest) = (Some(first), others);
            }
            _ => return None,
        }
        Some(Field { number: key >> 3, start, end: message.len() - rest.len(), bytes, varint })
    })
}

/// The message with the data of other files in it; `None` if nothing changes.
fn rewrite(
    message: &[u8],
    kind: Message,
    depth: usize,
    data: &mut DataFiles,
) -> anyhow::Result<Option<Vec<u8>>> {
    if kind == Message::Tensor {
        return rewrite_tensor(message, data);
    }
    let mut changed: Option<Vec<u8>> = None;
    let mut copied = 0;
    for field in fields(message) {
        let (Some(bytes), Some(child)) = (field.bytes, kind.child(field.number)) else { continue };
        ensure!(depth > 0, "its graphs are too deep in each other");
        if let Some(bytes) = rewrite(bytes, child, depth - 1, data)? {
            let changed = changed.get_or_insert_default();
            changed.extend_from_slice(&message[copied..field.start]);
            push(changed, field.number, &bytes);
            copied = field.end;
        }
    }
    if let Some(changed) = &mut changed {
        changed.extend_from_slice(&message[copied..]);
    }
    Ok(changed)
}

fn rewrite_tensor(tensor: &[u8], data: &mut DataFiles) -> anyhow::Result<Option<Vec<u8>>> {
    let is_external = |field: Field| field.number == DATA_LOCATION && field.varint == 1;
    if !fields(tensor).any(is_external) {
        return Ok(None);
    }
    let mut changed = Vec::new();
    let mut place = Place::default();
    for field in fields(tensor) {
        match (field.number, field.bytes) {
            (EXTERNAL_DATA, Some(entry)) => place.read(entry)?,
            (EXTERNAL_DATA | DATA_LOCATION | RAW_DATA, _) => {}
            _ => changed.extend_from_slice(&tensor[field.start..field.end]),
        }
    }
    push(&mut changed, RAW_DATA, &data.read(&place)?);
    Ok(Some(changed))
}

fn push(message: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    encode_varint(number << 3 | BYTES, message);
    encode_varint(bytes.len() as u64, message);
    message.extend_from_slice(bytes);
}

/// Where the data of a tensor is.
#[derive(Debug, Default)]
struct Place {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl Place {
    /// Read an entry, which is a pair of texts.
    fn read(&mut self, entry: &[u8]) -> anyhow::Result<()> {
        let text = |number| {
            let field = fields(entry).find(|field| field.number == number);
            String::from_utf8_lossy(field.and_then(|field| field.bytes).unwrap_or_default())
                .into_owned()
        };
        let (key, value) = (text(1), text(2));
        let number = || {
            value
                .parse()
                .with_context(|| format!("{key} of external data is {value:?}, not a number"))
        };
        match &*key {
            "offset" => self.offset = number()?,
            "length" => self.length = Some(number()?),
            "location" => self.location = value,
            _ => {}
        }
        Ok(())
    }
}

/// The folder of the files, and how many bytes there are so far.
struct DataFiles {
    folder: PathBuf,
    bytes: u64,
}

impl DataFiles {
    fn read(&mut self, place: &Place) -> anyhow::Result<Vec<u8>> {
        let file = self.open(&place.location)?;
        let size = file.metadata().context("cannot read external data")?.len();
        let length = place.length.unwrap_or(size.saturating_sub(place.offset));
        let end = place.offset.checked_add(length);
        if end.is_none_or(|end| end > size) {
            bail!(
                "the external data {:?} has {size} bytes, too few for {length} from {} on: copy the \
                 whole file",
                place.location,
                place.offset
            );
        }
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > MAX_ARTIFACT_BYTES {
            bail!("with its external data it is larger than {} MiB", MAX_ARTIFACT_BYTES >> 20);
        }
        let length = usize::try_from(length).context("external data is too large")?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, place.offset).context("cannot read external data")?;
        Ok(bytes)
    }

    /// Open a file of the folder.
    fn open(&self, location: &str) -> anyhow::Result<File> {
        let is_inside = !location.is_empty()
            && Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
        let outside = || {
            format!(
                "the external data {location:?} is outside of the model's folder: save the model with \
                 its data beside it"
            )
        };
        ensure!(is_inside, outside());
        let path = self.folder.join(location);
        let path = path.canonicalize().with_context(|| {
            format!(
                "the external data {location:?} is missing: put it into the folder of the ONNX file"
            )
        })?;
        ensure!(path.starts_with(&self.folder), outside());
        open_regular(&path).with_context(|| format!("cannot read the external data {location:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
        let mut message = Vec::new();
        fields.iter().for_each(|(number, bytes)| push(&mut message, *number, bytes));
        message
    }

    /// A model with one weight, whose data is at this place.
    fn model(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut tensor = message(&[(8, b"weight")]);
        for (key, value) in entries {
            let entry = message(&[(1, key.as_bytes()), (2, value.as_bytes())]);
            push(&mut tensor, EXTERNAL_DATA, &entry);
        }
        encode_varint(DATA_LOCATION << 3 | VARINT, &mut tensor);
        encode_varint(1, &mut tensor);
        let graph = message(&[(2, b"graph"), (5, &tensor), (10, b"doc")]);
        message(&[(2, b"producer"), (7, &graph), (6, b"end")])
    }

    #[test]
    fn external_data_becomes_a_part_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("w.data"), b"0123456789").unwrap();
        let path = folder.path().join("model.onnx");
        let file = model(&[("location", "w.data"), ("offset", "2"), ("length", "3")]);
        let tensor = message(&[(8, b"weight"), (RAW_DATA, b"234")]);
        let graph = message(&[(2, b"graph"), (5, &tensor), (10, b"doc")]);
        let expected = message(&[(2, b"producer"), (7, &graph), (6, b"end")]);
        assert_eq!(inline(&path, &file).unwrap().unwrap(), expected);
        assert_eq!(inline(&path, &expected).unwrap(), None);
        assert_eq!(inline(&path, b"\xff\xff no protobuf").unwrap(), None);
    }

    #[test]
    fn data_outside_of_the_folder_or_missing_is_rejected() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), b"0123456789").unwrap();
        let folder = outside.path().join("model");
        fs::create_dir(&folder).unwrap();
        symlink(outside.path().join("secret"), folder.join("link")).unwrap();
        symlink(outside.path(), folder.join("up")).unwrap();
        fs::write(folder.join("short"), b"0123").unwrap();
        fs::create_dir(folder.join("folder")).unwrap();
        let absolute = outside.path().join("secret").to_string_lossy().into_owned();
        for (location, expected) in [
            ("../secret", "is outside of"),
            (&*absolute, "is outside of"),
            ("link", "is outside of"),
            ("up/secret", "is outside of"),
            ("", "is outside of"),
            ("absent.data", "is missing"),
            ("short", "has 4 bytes, too few for 5"),
            ("folder", "cannot read the external data"),
        ] {
            let file = model(&[("location", location), ("length", "5")]);
            let error = inline(&folder.join("model.onnx"), &file).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{location}: {error:#}");
        }
        let file = model(&[("location", "short"), ("offset", "-1")]);
        let error = inline(&folder.join("model.onnx"), &file).unwrap_err();
        assert!(error.to_string().contains("not a number"), "{error:#}");
    }
}
