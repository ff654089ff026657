use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use guesthouse_tests::book::{self, Page};
use guesthouse_tests::{console, environment};

/// If it is set, generated pages are written instead of compared: `cargo xtask docs --write`.
const WRITE: &str = "GUESTHOUSE_DOCS_WRITE";

/// Encloses text that the program prints: the arguments that print it are in between.
const GENERATED: (&str, &str) = ("<!-- generated: guesthouse ", " -->\n");

/// Ends such a text.
const GENERATED_END: &str = "<!-- end of generated text -->";

#[test]
fn links_lead_to_files_and_headings() {
    let pages = book::pages();
    let mut broken = Vec::new();
    for page in &pages {
        let folder = page.path.parent().unwrap();
        for link in page.links() {
            let place = format!("{}:{}", page.path.display(), link.line);
            let target = match link.path.as_str() {
                "" => Some(page.path.clone()),
                path => book::normalize(&folder.join(path)),
            };
            let Some(target) = target.filter(|target| book::root().join(target).exists()) else {
                broken.push(format!("{place}: there is no {}", link.path));
                continue;
            };
            // Pages of the book are read without the repository around them.
            if page.path.starts_with(book::book()) && !target.starts_with(book::book()) {
                broken.push(format!("{place}: {} is not in the book", link.path));
            }
            let Some(anchor) = link.anchor else { continue };
            let known = pages.iter().find(|page| page.path == target).map(Page::anchors);
            if !known.is_some_and(|anchors| anchors.contains(&anchor)) {
                broken.push(format!("{place}: {} has no heading #{anchor}", target.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = Page::open(book::book().join("SUMMARY.md"));
    let listed: Vec<_> = summary.links().into_iter().map(|link| PathBuf::from(link.path)).collect();
    let once: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), once.len(), "a page is listed twice");
    let pages = book::pages().into_iter().map(|page| page.path);
    let pages = pages.filter_map(|path| Some(path.strip_prefix(book::book()).ok()?.to_owned()));
    let pages: BTreeSet<_> = pages.filter(|path| path != Path::new("SUMMARY.md")).collect();
    assert_eq!(once, pages);
}

#[test]
fn every_decision_has_a_context_and_what_would_change_it() {
    let index = Page::open(book::book().join("explanation/decisions.md")).links();
    let folder = book::book().join("explanation/decisions");
    let mut count = 0;
    for page in book::pages().into_iter().filter(|page| page.path.starts_with(&folder)) {
        let headings: Vec<_> =
            page.text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let wanted = ["Context", "Decision", "Consequences", "What would change it"];
        assert_eq!(headings, wanted, "{}", page.path.display());
        let name = page.path.file_name().unwrap().to_string_lossy().into_owned();
        let listed = index.iter().any(|link| link.path == format!("decisions/{name}"));
        assert!(listed, "{name} is not in the list of decisions");
        count += 1;
    }
    assert!(count > 50, "{count}");
}

#[test]
fn pages_for_entry_are_short() {
    for path in ["README.md", "host/ARCHITECTURE.md"] {
        let lines = Page::open(path).text.lines().count();
        assert!(lines <= 150, "{path} has {lines} lines");
    }
}

/// The words in backticks of a line.
fn code_words(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn files_and_modules_of_the_map_exist() {
    let map = Page::open("host/ARCHITECTURE.md").text;
    let host = book::root().join("host");
    let (mut files, mut modules, mut one) = (0, 0, String::new());
    for line in map.lines() {
        for file in code_words(line).filter(|word| word.ends_with(".rs")) {
            let path = match file.split_once('/') {
                Some(("tests", _)) => book::root().join(file),
                Some((one, rest)) => host.join(one).join("src").join(rest),
                None => host.join(file),
            };
            assert!(path.exists(), "there is no {file}");
            files += 1;
        }
        // Rows of the table of modules: the crate, in its first row only; modules; what they own.
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, names, ..] = cells[..] else { continue };
        if let Some(name) = code_words(name).next() {
            one = name.to_owned();
        }
        let source = host.join(&one).join("src");
        for module in code_words(names).filter(|word| !word.contains(['/', '.'])) {
            let path = source.join(module).with_extension("rs");
            assert!(path.exists(), "{one} has no module {module}");
            modules += 1;
        }
    }
    assert!(files >= 12 && modules >= 25, "{files} files, {modules} modules");
}

#[test]
fn generated_pages_are_what_the_program_prints() {
    let mut count = 0;
    for page in book::pages() {
        let current = regenerated(&page.text);
        count += page.text.matches(GENERATED.0).count();
        if current == page.text {
            continue;
        }
        assert!(
            std::env::var_os(WRITE).is_some(),
            "{} is not what the program prints: run `cargo xtask docs --write`",
            page.path.display()
        );
        fs::write(book::root().join(&page.path), current).unwrap();
    }
    assert!(count >= 4, "{count}");
}

/// The page with everything between its marks printed anew.
fn regenerated(text: &str) -> String {
    let mut page = String::new();
    let mut rest = text;
    while let Some((before, marked)) = rest.split_once(GENERATED.0) {
        let (arguments, marked) = marked.split_once(GENERATED.1).unwrap();
        let (_, after) = marked.split_once(GENERATED_END).expect("generated text has an end");
        let output = Command::new(environment::host()).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "guesthouse {arguments}: {output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        let (begin, end) = GENERATED;
        page.push_str(&format!("{before}{begin}{arguments}{end}{}\n", printed.trim()));
        page.push_str(GENERATED_END);
        rest = after;
    }
    page + rest
}

#[test]
fn page_of_operators_counts_the_tests_that_pass() {
    let list = book::root().join("tests/data/operators/passed.txt");
    let count = fs::read_to_string(list).unwrap().lines().count();
    assert!(count >= 1246, "{count}");
    let page = Page::open(book::book().join("reference/operators.md")).text;
    assert!(page.contains(&format!("\n{count} of ")), "the page does not say {count}");
}

#[test]
fn commands_of_the_readme_do_what_it_shows() {
    assert!(console::run(&Page::open("README.md")) >= 5);
}

#[test]
fn the_first_tutorial_does_what_it_shows() {
    let page = Page::open(book::book().join("tutorials/first-model.md"));
    assert!(console::run(&page) >= 5);
}

#[test]
fn the_tutorial_of_a_canary_does_what_it_shows() {
    let page = Page::open(book::book().join("tutorials/canary.md"));
    assert!(console::run(&page) >= 10);
}

#[test]
fn the_tutorial_of_scikit_learn_does_what_it_shows() {
    let page = Page::open(book::book().join("tutorials/scikit-learn.md"));
    assert!(console::run_without_compilers(&page) >= 4);
}

/// Pages other than the tutorials are for machines on which the program is installed.
#[test]
fn commands_of_other_pages_do_what_they_show() {
    let mut count = 0;
    let tutorials = book::book().join("tutorials");
    for page in book::pages() {
        let is_separate = page.path.starts_with(&tutorials) || page.path == Path::new("README.md");
        let has_commands =
            page.blocks().iter().any(|block| block.attributes.iter().any(|word| word == "run"));
        if has_commands && !is_separate {
            count += console::run_installed(&page);
        }
    }
    assert!(count >= 5, "{count}");
}
