//! Writes the tables of the performance benchmark into a page of the book, from figures.
//!
//! A table replaces what is between the lines `<!-- figures: NAME -->` and `<!-- end -->`.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use super::charts::Figures;

/// The variants of the table of inference, with their headings.
const VARIANTS: [(&str, &str); 10] = [
    ("native", "tract, native"),
    ("onnxruntime_1", "onnxruntime, 1 thread"),
    ("onnxruntime_all", "onnxruntime, all threads"),
    ("guest", "guest"),
    ("guest_fresh", "guest, fresh"),
    ("guest_free", "guest, no deadlines"),
    ("guest_no_grant", "no host arithmetic"),
    ("guest_no_grant_free", "no host arithmetic, no deadlines"),
    ("guest_scalar", "host arithmetic without SIMD"),
    ("guest_tract", "tract in the guest"),
];

/// The servers of the table of serving, with their names.
const SERVERS: [(&str, &str); 6] = [
    ("guesthouse", "Guesthouse, HTTP"),
    ("guesthouse_grpc", "Guesthouse, gRPC"),
    ("axum", "axum + tract"),
    ("mosec_2", "mosec + onnxruntime, 2 workers"),
    ("fastapi_2", "FastAPI + onnxruntime, 2 workers"),
    ("fastapi_1", "FastAPI + onnxruntime, 1 worker"),
];

/// The columns of the table of serving: a part of the figure's name, and the heading.
const COLUMNS: [(&str, &str); 9] = [
    ("1_per_second", "requests/s, 1 caller"),
    ("8_per_second", "8"),
    ("32_per_second", "32"),
    ("1_p50_ms", "median, 1 caller, ms"),
    ("8_p99_ms", "p99, 8 callers, ms"),
    ("open_p50_ms", "half capacity: median, ms"),
    ("open_p99_ms", "p99, ms"),
    ("memory_mib", "memory, MiB"),
    ("start_ms", "start, ms"),
];

/// Replaces the tables of a page.
pub(super) fn fill(page: &str, figures: &Figures) -> Result<String> {
    let mut parts = page.split("<!-- figures: ");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(" -->").context("a table has no name")?;
        let (_old, rest) = rest.split_once("<!-- end -->").context("a table has no end")?;
        let table = match name.split_once(' ') {
            None if name == "inference" => inference(figures),
            None if name == "differences" => differences(figures),
            None if name == "bars" => bars(figures),
            Some(("serving", case)) => serving(figures, case),
            _ => anyhow::bail!("there is no table {name:?}"),
        };
        ensure!(table.lines().count() > 2, "there are no figures for the table {name:?}");
        let _ = write!(filled, "<!-- figures: {name} -->\n\n{table}\n<!-- end -->{rest}");
    }
    Ok(filled)
}

/// The cases that a variant has run, in the order of their names.
fn cases(figures: &Figures) -> Vec<&str> {
    figures.keys().filter_map(|name| name.strip_suffix("_guest_ms")).collect()
}

fn inference(figures: &Figures) -> String {
    let time = |case: &str, variant: &str| figures.get(&format!("{case}_{variant}_ms"));
    let cases = cases(figures);
    let variants = VARIANTS.iter().filter(|(variant, _)| {
        // A machine may not have a backend, and a run may leave a variant out.
        cases.iter().any(|case| time(case, variant).is_some())
    });
    let variants: Vec<_> = variants.collect();
    let mut table = heading("ms", variants.iter().map(|(_, heading)| *heading));
    for case in cases {
        let native = time(case, "native").map(|native| native.value);
        let cells = variants.iter().map(|(variant, _)| match (time(case, variant), native) {
            (None, _) => String::new(),
            (Some(time), Some(native)) if *variant != "native" => {
                format!("{} ({:.2})", short(time.value), time.value / native)
            }
            (Some(time), _) => short(time.value),
        });
        row(&mut table, case, cells);
    }
    table
}

fn differences(figures: &Figures) -> String {
    let mut table = heading("largest difference to onnxruntime", ["tract, native", "guest"]);
    for case in cases(figures) {
        let cells = ["native", "guest"].map(|variant| {
            let difference = figures.get(&format!("{case}_{variant}_difference"));
            difference.map_or_else(String::new, |figure| format!("{:.0e}", figure.value))
        });
        row(&mut table, case, cells.into_iter());
    }
    table
}

/// Everything that has a bar.
fn bars(figures: &Figures) -> String {
    let mut table = heading("figure", ["measured", "bar", ""]);
    for (name, figure) in figures {
        let Some(bar) = figure.bar else { continue };
        let outcome = if figure.holds { "" } else { "missed" };
        let cells = [short(figure.value), short(bar), outcome.to_owned()];
        row(&mut table, &format!("`{name}`"), cells.into_iter());
    }
    table
}

fn serving(figures: &Figures, case: &str) -> String {
    let mut table = heading(case, COLUMNS.map(|(_, heading)| heading));
    for (server, name) in SERVERS {
        let value = |column| figures.get(&format!("serving_{case}_{server}_{column}"));
        if value("8_per_second").is_none() {
            continue;
        }
        let cells = COLUMNS.map(|(column, _)| {
            value(column).map_or_else(String::new, |figure| short(figure.value))
        });
        row(&mut table, name, cells.into_iter());
    }
    table
}

fn heading<'a>(first: &'a str, others: impl IntoIterator<Item = &'a str>) -> String {
    let mut table = String::new();
    let others: Vec<_> = others.into_iter().collect();
    row(&mut table, first, others.iter().map(|heading| (*heading).to_owned()));
    row(&mut table, "---", others.iter().map(|_| "---".to_owned()));
    table
}

fn row(table: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let cells: Vec<_> = cells.collect();
    let _ = writeln!(table, "| {first} | {} |", cells.join(" | "));
}

/// A number with about three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::charts::parse;

    #[test]
    fn tables_are_replaced_and_text_is_kept() {
        let figures = parse(
            r#"[{"name": "cls_guest_ms", "value": 1.0}, {"name": "cls_native_ms", "value": 4.0},
                {"name": "cls_guest_to_native", "value": 0.25, "bar": 0.2, "holds": false},
                {"name": "serving_cls_axum_8_per_second", "value": 700.4}]"#,
        );
        let figures = figures.unwrap();
        let page = "a\n<!-- figures: inference -->\nold\n<!-- end -->\nb\n\
                    <!-- figures: bars --><!-- end -->\n<!-- figures: serving cls --><!-- end -->\n";
        let filled = fill(page, &figures).unwrap();
        assert!(filled.starts_with("a\n<!-- figures: inference -->\n\n| ms |"), "{filled}");
        assert!(filled.contains("| cls | 4.00 | 1.00 (0.25) |"), "{filled}");
        assert!(filled.contains("| `cls_guest_to_native` | 0.25 | 0.20 | missed |"), "{filled}");
        assert!(
            filled.contains("| axum + tract |  | 700 |") && !filled.contains("old"),
            "{filled}"
        );
        assert_eq!(fill(&filled, &figures).unwrap(), filled);
        assert!(fill("<!-- figures: other --><!-- end -->", &figures).is_err());
        assert!(fill("<!-- figures: serving rec --><!-- end -->", &figures).is_err());
    }
}
