//! Reads the rows to predict for: JSON of the command line, a file or standard input, and files as
//! they are.
//!
//! JSON is read row by row, so that a pipe can go on for ever. A file that is a value is bounded.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use serde_json::{Deserializer, Map, Value, json};

use crate::commands::exit_code::Failure;

/// The largest file that is a value, in bytes: what a guest takes in one call at most.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A file for an input, as on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileInput {
    pub(super) input: String,
    pub(super) path: PathBuf,
}

impl FromStr for FileInput {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((input, path)) if !input.is_empty() && !path.is_empty() => {
                Ok(Self { input: input.to_owned(), path: PathBuf::from(path) })
            }
            _ => Err("a file is like image=picture.jpg"),
        }
    }
}

/// What to predict for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) values: Map<String, Value>,
    /// The files for inputs that are not in `values`.
    pub(super) files: Vec<FileInput>,
    /// The name of the file in the folder that the rows come from.
    name: Option<String>,
}

impl Row {
    /// What is printed for the row. If it is a file of a folder, the outputs say of which.
    pub(super) fn label(&self, outputs: Value) -> Value {
        match &self.name {
            Some(name) => json!({ "file": name, "outputs": outputs }),
            None => outputs,
        }
    }
}

/// The rows, one after the other.
pub(super) type Rows = Box<dyn Iterator<Item = anyhow::Result<Row>>>;

/// Open what the command line names.
pub(super) fn open(json: Option<&str>, files: &[FileInput]) -> anyhow::Result<Rows> {
    if files.is_empty() {
        return open_json(json.unwrap_or("@-"));
    }
    let values = match json {
        Some(json) => single(json)?,
        None => Map::new(),
    };
    for (index, file) in files.iter().enumerate() {
        let others = files.iter().take(index);
        if values.contains_key(&file.input) || others.into_iter().any(|one| one.input == file.input)
        {
            let input = &file.input;
            bail!(Failure::Usage(format!("the input `{input}` is given twice: leave out one")))
        }
    }
    let (folders, files): (Vec<_>, Vec<_>) =
        files.iter().cloned().partition(|file| file.path.is_dir());
    match folders.as_slice() {
        [] => Ok(Box::new(std::iter::once(Ok(Row { values, files, name: None })))),
        [folder] => {
            let row = move |path: PathBuf, input: String| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let mut files = files.clone();
                files.push(FileInput { input, path });
                Row { values: values.clone(), files, name: Some(name) }
            };
            let input = folder.input.clone();
            let paths = list(&folder.path)?;
            Ok(Box::new(paths.into_iter().map(move |path| Ok(row(path, input.clone())))))
        }
        _ => bail!(Failure::Usage("only one --file can be a folder".to_owned())),
    }
}

fn open_json(json: &str) -> anyhow::Result<Rows> {
    match json.strip_prefix('@') {
        None => Ok(objects(io::Cursor::new(json.to_owned().into_bytes()), "--json")),
        Some("-") => Ok(objects(BufReader::new(io::stdin()), "standard input")),
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
            Ok(objects(BufReader::new(file), path))
        }
    }
}

/// JSON objects, on lines of their own or not.
fn objects(reader: impl BufRead + 'static, source: &str) -> Rows {
    let source = source.to_owned();
    let mut failed = false;
    let values = Deserializer::from_reader(reader).into_iter::<Map<String, Value>>();
    let mut count = 0_usize;
    let rows = values.map_while(move |values| {
        if failed {
            return None;
        }
        count += 1;
        failed = values.is_err();
        let values = values.with_context(|| format!("{source}: row {count} is not a JSON object"));
        Some(values.map(|values| Row { values, ..Row::default() }))
    });
    Box::new(rows)
}

/// The only object, for the inputs that are not files.
fn single(json: &str) -> anyhow::Result<Map<String, Value>> {
    let mut rows = open_json(json)?;
    let values = rows.next().transpose()?.unwrap_or_default().values;
    if rows.next().is_some() {
        let reason = "with --file, --json is one object with the values of the other inputs";
        bail!(Failure::Usage(reason.to_owned()))
    }
    Ok(values)
}

/// The files of a folder in the order of their names, without hidden ones.
fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        bail!("the folder {} has no files", folder.display())
    }
    paths.sort();
    Ok(paths)
}

/// The content of a file that is a value.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("cannot read {}", path.display()))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        bail!("{} is larger than {} MiB", path.display(), MAX_FILE_BYTES >> 20)
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(rows: Rows) -> Vec<Value> {
        rows.map(|row| Value::Object(row.unwrap().values)).collect()
    }

    #[test]
    fn rows_are_objects_on_lines_or_not() {
        let lines = open(Some("{\"a\": 1}\n\n{\"a\":\n 2} {}"), &[]).unwrap();
        assert_eq!(values(lines), [json!({"a": 1}), json!({"a": 2}), json!({})]);
        assert!(open(Some("@/nowhere/rows"), &[]).is_err());
    }

    #[test]
    fn nothing_is_read_after_a_malformed_row() {
        let rows: Vec<_> = open(Some("{} [1] {} {}"), &[]).unwrap().collect();
        assert_eq!(rows.len(), 2);
        let error = rows[1].as_ref().unwrap_err().to_string();
        assert!(error.contains("row 2"), "{error}");
    }

    #[test]
    fn files_are_for_one_row_and_those_of_a_folder_for_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = |input: &str, path: &Path| FileInput { input: input.into(), path: path.into() };
        let image = file("image", folder.path());
        assert!(open(None, std::slice::from_ref(&image)).is_err(), "an empty folder has no rows");
        for name in ["b.png", "a.png", ".hidden"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("inner")).unwrap();
        let mask = file("mask", &folder.path().join("a.png"));
        let rows = open(Some(r#"{"size": 3}"#), &[image.clone(), mask]).unwrap();
        let rows: Vec<Row> = rows.map(|row| row.unwrap()).collect();
        let names: Vec<_> = rows.iter().map(|row| row.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["a.png", "b.png"]);
        assert_eq!((rows[0].files.len(), &rows[0].values["size"]), (2, &json!(3)));
        assert_eq!(rows[1].label(json!(1)), json!({"file": "b.png", "outputs": 1}));
        for json in [r#"{"image": 1}"#, "{} {}"] {
            assert!(open(Some(json), std::slice::from_ref(&image)).is_err(), "{json}");
        }
        assert!(open(None, &[image.clone(), image.clone()]).is_err());
        assert!("image".parse::<FileInput>().is_err() && "=a".parse::<FileInput>().is_err());
    }
}
