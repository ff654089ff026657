//! The documentation as tests read it: the README, the map of the architecture and the book.
//!
//! Only the parts of Markdown that these pages use are understood: headings, links, inline code and
//! fenced code blocks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Pages outside of the book whose links are checked as well.
const OTHER_PAGES: [&str; 3] = ["README.md", "host/ARCHITECTURE.md", "host/packaging/README.md"];

/// One Markdown file.
#[derive(Debug)]
pub struct Page {
    /// Its path, relative to the root of the repository.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A link of a page.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// The line it is in, from 1.
    pub line: usize,
    /// The file that it leads to, relative to the page; empty for an anchor of the same page.
    pub path: String,
    /// The anchor after `#`, if there is one.
    pub anchor: Option<String>,
}

/// A fenced block of code.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The line it begins in, from 1.
    pub line: usize,
    /// The words after the fence, such as `console` and `run`.
    pub attributes: Vec<String>,
    /// The lines between the fences.
    pub lines: Vec<String>,
}

/// The root of the repository.
///
/// # Panics
/// The tests are not in a folder of it.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in a folder")
}

/// The folder of the book's pages, relative to the root of the repository.
pub fn book() -> PathBuf {
    PathBuf::from("host/docs/src")
}

/// Every page of the book, and the pages outside of it.
///
/// # Panics
/// They cannot be read.
pub fn pages() -> Vec<Page> {
    let mut paths = Vec::new();
    collect(&book(), &mut paths);
    paths.sort();
    paths.extend(OTHER_PAGES.map(PathBuf::from));
    paths.into_iter().map(Page::open).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(folder)).expect("the book's folder is readable") {
        let entry = entry.expect("the book's folder is readable");
        let path = folder.join(entry.file_name());
        if entry.path().is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
}

/// A path without `.` and `..`, which lead to places inside of the repository only.
pub fn normalize(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}

impl Page {
    /// Read a page; its path is relative to the root of the repository.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(root().join(&path));
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    /// The lines outside of code blocks, with their numbers.
    fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut fence = None;
        (1..).zip(self.text.lines()).filter(move |(_, line)| {
            let was_inside = fence.is_some();
            match fence_of(line) {
                Some(new) if fence.is_none() => fence = Some(new),
                Some(end) if fence == Some(end) => fence = None,
                Some(_) | None => {}
            }
            !was_inside && fence.is_none()
        })
    }

    /// Its links to files and anchors; links to other sites are left out.
    pub fn links(&self) -> Vec<Link> {
        let mut links = Vec::new();
        for (line, text) in self.prose() {
            for part in without_code(text).split("](").skip(1) {
                let target = part.split([')', ' ']).next().unwrap_or_default();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (path, anchor) = match target.split_once('#') {
                    Some((path, anchor)) => (path, Some(anchor.to_owned())),
                    None => (target, None),
                };
                links.push(Link { line, path: path.to_owned(), anchor });
            }
        }
        links
    }

    /// The anchors of its headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for (_, line) in self.prose() {
            let title = line.trim_start_matches('#');
            if line.len() == title.len() || !title.starts_with(' ') {
                continue;
            }
            let anchor = anchor(title.trim());
            let numbered = |number: usize| match number {
                0 => anchor.clone(),
                number => format!("{anchor}-{number}"),
            };
            let free = (0..).map(numbered).find(|anchor| !anchors.contains(anchor));
            anchors.extend(free);
        }
        anchors
    }

    /// Its fenced blocks of code.
    ///
    /// # Panics
    /// A block has no end.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<(Fence, Block)> = None;
        for (line, text) in (1..).zip(self.text.lines()) {
            open = match (open, fence_of(text)) {
                (Some((fence, block)), Some(end)) if fence == end => {
                    blocks.push(block);
                    None
                }
                (Some((fence, mut block)), _) => {
                    block.lines.push(text.to_owned());
                    Some((fence, block))
                }
                (None, Some(fence)) => {
                    let words = text.trim_start().trim_start_matches('`').split(',');
                    let attributes = words.map(|word| word.trim().to_owned()).collect();
                    Some((fence, Block { line, attributes, lines: Vec::new() }))
                }
                (None, None) => None,
            };
        }
        assert!(open.is_none(), "{}: a block of code has no end", self.path.display());
        blocks
    }
}

/// How many backticks and how much indentation a fence has.
type Fence = (usize, usize);

fn fence_of(line: &str) -> Option<Fence> {
    let text = line.trim_start();
    let ticks = text.len() - text.trim_start_matches('`').len();
    (ticks >= 3).then_some((ticks, line.len() - text.len()))
}

/// The line with its inline code blanked out.
fn without_code(line: &str) -> String {
    let mut parts = line.split('`');
    let mut text = parts.next().unwrap_or_default().to_owned();
    while let Some(_code) = parts.next() {
        text.push(' ');
        text.push_str(parts.next().unwrap_or_default());
    }
    text
}

/// The anchor that mdBook and GitHub give a heading.
fn anchor(title: &str) -> String {
    let letter = |letter: char| match letter {
        letter if letter.is_alphanumeric() || letter == '_' || letter == '-' => {
            Some(letter.to_ascii_lowercase())
        }
        letter if letter.is_whitespace() => Some('-'),
        _ => None,
    };
    title.chars().filter_map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page { path: PathBuf::from("page.md"), text: text.to_owned() }
    }

    #[test]
    fn links_in_code_and_to_other_sites_are_left_out() {
        let page = page("[a](b.md#c) `[x](y)`\n[d](https://e)\n```sh\n[f](g)\n```\n[h](#i)\n");
        let link = |line, path: &str, anchor: &str| Link {
            line,
            path: path.to_owned(),
            anchor: Some(anchor.to_owned()),
        };
        assert_eq!(page.links(), [link(1, "b.md", "c"), link(6, "", "i")]);
    }

    #[test]
    fn headings_have_the_anchors_that_mdbook_gives_them() {
        let page = page("# A `b`, c\n## Again\n## Again\n```sh\n# no heading\n```\n");
        let wanted = ["a-b-c", "again", "again-1"].map(str::to_owned);
        assert_eq!(page.anchors(), BTreeSet::from(wanted));
    }

    #[test]
    fn blocks_have_their_attributes_and_lines() {
        let page = page("text\n```console,run\n$ true\nout\n```\n");
        let attributes = ["console", "run"].map(str::to_owned).to_vec();
        let lines = ["$ true", "out"].map(str::to_owned).to_vec();
        assert_eq!(page.blocks(), [Block { line: 2, attributes, lines }]);
    }
}
