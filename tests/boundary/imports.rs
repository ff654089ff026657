use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use guesthouse_tests::book;

/// A module by its path inside of its crate; the crate's root is empty.
type Module = Vec<String>;

/// One crate of the host.
struct Crate {
    name: String,
    /// The text of each module without its tests.
    modules: BTreeMap<Module, String>,
}

/// The crates of the host, by the folders in `host` that have a `Cargo.toml`.
fn crates() -> Vec<Crate> {
    let host = book::root().join("host");
    let mut folders = vec![host.clone()];
    let entries = fs::read_dir(&host).unwrap().map(|entry| entry.unwrap().path());
    folders.extend(entries.filter(|path| path.is_dir()));
    folders.sort();
    let folders = folders.into_iter().filter(|folder| folder.join("Cargo.toml").exists());
    folders
        .filter(|folder| folder.join("src").exists())
        .map(|folder| {
            let source = folder.join("src");
            let mut modules = BTreeMap::new();
            collect(&source, &source, &mut modules);
            Crate { name: folder.file_name().unwrap().to_string_lossy().into_owned(), modules }
        })
        .collect()
}

fn collect(source: &Path, folder: &Path, modules: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(source, &path, modules);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && path.file_stem().is_some_and(|stem| stem != "tests")
        {
            let text = fs::read_to_string(&path).unwrap();
            modules.insert(module_of(path.strip_prefix(source).unwrap()), code(&text));
        }
    }
}

/// The module of a file, such as `a::b` for `a/b.rs`.
fn module_of(path: &Path) -> Module {
    let path: PathBuf = path.with_extension("");
    let names = path.iter().map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| !["lib", "main", "mod"].contains(&name.as_str())).collect()
}

/// The lines of code that are no comments and no unit tests, which stand at the end of a file.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path inside of the crate that a module names, from the crate's root.
fn named_paths(module: &Module, text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (keyword, levels) in [("crate::", None), ("super::", Some(1))] {
        for (at, _) in text.match_indices(keyword) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|letter| letter.is_alphanumeric() || "_:$".contains(letter)) {
                continue;
            }
            let mut rest = &text[at + keyword.len()..];
            let mut start = match levels {
                None => Vec::new(),
                Some(_) => module[..module.len().saturating_sub(1)].to_vec(),
            };
            while let Some(further) = rest.strip_prefix("super::") {
                start.pop();
                rest = further;
            }
            read_tree(&mut rest, &start, &mut paths);
        }
    }
    paths
}

/// Read what follows `::` in a path or a `use`: names, and lists of them in braces.
fn read_tree(rest: &mut &str, prefix: &[String], paths: &mut Vec<Vec<String>>) {
    *rest = rest.trim_start();
    if let Some(list) = rest.strip_prefix('{') {
        *rest = list;
        loop {
            read_tree(rest, prefix, paths);
            // The rest of an item of the list, such as `as name`.
            *rest = rest.trim_start_matches(|letter| letter != ',' && letter != '}');
            let ends = rest.strip_prefix('}');
            *rest = ends.or(rest.strip_prefix(',')).unwrap_or_default();
            if ends.is_some() || rest.is_empty() {
                return;
            }
        }
    }
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
    let (name, further) = rest.split_at(end);
    *rest = further;
    if name.is_empty() {
        return;
    }
    let mut path = prefix.to_vec();
    if name != "self" {
        path.push(name.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(further) => {
            *rest = further;
            read_tree(rest, &path, paths);
        }
        None => paths.push(path),
    }
}

/// Where modules with the same parent import from each other: for each parent, who imports whom.
///
/// An import counts between the two modules in which the paths part, so that an import of `a::b::X` by
/// `a::c` counts from `a::c` to `a::b`, and one by `d::e` from `d` to `a`.
fn imports(one: &Crate) -> BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> {
    let mut imports: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, text) in &one.modules {
        for path in named_paths(module, text) {
            let lengths = (0..=path.len()).rev();
            let target = lengths
                .map(|length| &path[..length])
                .find(|path| path.is_empty() || one.modules.contains_key(*path));
            let target = target.unwrap_or_default();
            let common = module.iter().zip(target).take_while(|(one, other)| one == other).count();
            if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                let parent = imports.entry(module[..common].to_vec()).or_default();
                parent.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    imports
}

/// Everything that is imported by way of `from`.
fn reachable<'a>(
    imports: &'a BTreeMap<String, BTreeSet<String>>,
    from: &str,
) -> BTreeSet<&'a String> {
    let mut found: BTreeSet<&String> = BTreeSet::new();
    let mut next: Vec<&String> = imports.get(from).into_iter().flatten().collect();
    while let Some(name) = next.pop() {
        if found.insert(name) {
            next.extend(imports.get(name).into_iter().flatten());
        }
    }
    found
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    let mut count = 0;
    for one in crates() {
        count += one.modules.len();
        for (parent, imports) in imports(&one) {
            let names = imports.keys();
            let circle: Vec<_> =
                names.filter(|name| reachable(&imports, name).contains(name)).cloned().collect();
            if !circle.is_empty() {
                let parent = parent.iter().fold(one.name.clone(), |path, name| path + "::" + name);
                circles.push(format!("in {parent}: {}", circle.join(", ")));
            }
        }
    }
    assert!(count > 100, "there are {count} modules");
    assert!(circles.is_empty(), "modules import each other:\n{}", circles.join("\n"));
}

/// The libraries that only one crate of the host may depend on.
const OWNED: [(&str, &[&str]); 2] = [
    ("runtime", &["wasmtime", "wasmtime-wasi"]),
    (
        "server",
        &[
            "axum",
            "hyper",
            "hyper-util",
            "multer",
            "opentelemetry",
            "prometheus-client",
            "tokio-rustls",
            "tonic",
            "tonic-health",
            "tonic-reflection",
            "tower-http",
        ],
    ),
];

#[test]
fn libraries_belong_to_the_crate_that_wraps_them() {
    let host = book::root().join("host");
    let mut checked = 0;
    for entry in fs::read_dir(host).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        let names: BTreeSet<_> =
            dependencies.lines().filter_map(|line| line.split(['.', ' ']).next()).collect();
        for (owner, libraries) in OWNED {
            for library in libraries {
                let is_used = names.contains(library);
                assert!(!is_used || owner == name, "{name} depends on {library}");
                checked += usize::from(is_used);
            }
        }
    }
    assert!(checked >= 10, "{checked}");
}

#[test]
fn paths_are_read_from_imports() {
    let text = "use crate::a::{self, b::C, d as e};\nfn f(x: super::g::H) { crate::i::j(); }";
    let paths = named_paths(&vec!["k".to_owned(), "l".to_owned()], text);
    let paths: Vec<_> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["a", "a::b::C", "a::d", "i::j", "k::g::H"]);
}
