//! Draws charts of the performance benchmark for the book, and fills its tables, from the file that
//! `--json` wrote.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{absolute, tables};

/// What to draw, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A file that `cargo xtask bench performance --json` wrote. Can be repeated; of figures with the
    /// same name the last one counts.
    #[arg(long, value_name = "FILE", required = true, value_parser = absolute)]
    json: Vec<PathBuf>,
    /// The folder of the charts.
    #[arg(long, value_name = "FOLDER", value_parser = absolute)]
    folder: PathBuf,
    /// A page of the book whose tables are replaced.
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    page: Option<PathBuf>,
}

/// Figures by name.
pub(super) type Figures = BTreeMap<String, Figure>;

/// A figure as `--json` writes it.
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) bar: Option<f64>,
    /// Whether the value satisfies the bar, if there is one.
    pub(super) holds: bool,
}

/// The width of a chart, of its labels at the left, and of the longest bar, in pixels.
const WIDTH: usize = 760;
const LABELS: usize = 170;
const BARS: f64 = 480.0;

/// The height of a bar with its distance, and the distance of groups.
const BAR: usize = 16;
const GAP: usize = 14;

/// The height of the title and of the legend.
const TOP: usize = 62;

/// The cases of the chart of inference.
const CASES: [&str; 8] = [
    "cls",
    "det",
    "rec",
    "efficientnet-lite0",
    "minilm-1x16",
    "minilm-1x128",
    "minilm-8x128",
    "trees-64",
];

/// The variants of the chart of inference with their names and colours.
const VARIANTS: [Series; 4] = [
    Series { figure: "native", name: "tract, native", colour: "#8b8f94" },
    Series { figure: "onnxruntime_1", name: "onnxruntime, one thread", colour: "#44679c" },
    Series { figure: "guest", name: "guest", colour: "#b3701d" },
    Series { figure: "guest_no_grant", name: "guest without host arithmetic", colour: "#e3b778" },
];

/// The cases and servers of the chart of serving.
const SERVED: [&str; 4] = ["cls", "efficientnet-lite0", "minilm-1x16", "toxicity"];
const SERVERS: [Series; 6] = [
    Series { figure: "guesthouse", name: "Guesthouse", colour: "#b3701d" },
    Series { figure: "guesthouse_grpc", name: "Guesthouse, gRPC", colour: "#e3b778" },
    Series { figure: "axum", name: "axum + tract", colour: "#8b8f94" },
    Series { figure: "mosec_2", name: "mosec, 2 workers", colour: "#44679c" },
    Series { figure: "fastapi_2", name: "FastAPI, 2 workers", colour: "#7f9bc6" },
    Series { figure: "fastapi_1", name: "FastAPI, 1 worker", colour: "#b9c8e0" },
];

/// Bars of one colour.
struct Series {
    /// Its name in figures.
    figure: &'static str,
    name: &'static str,
    colour: &'static str,
}

/// A chart of horizontal bars in groups.
struct Chart<'a> {
    title: &'a str,
    series: &'a [Series],
    groups: Vec<Group>,
    /// Whether all groups have the same scale.
    one_scale: bool,
}

struct Group {
    label: String,
    /// A value for each series, where there is one, with its text.
    values: Vec<Option<(f64, String)>>,
}

pub(crate) fn draw(options: &Options) -> Result<()> {
    let mut figures = Figures::new();
    for path in &options.json {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        figures.extend(parse(&text).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let charts = [
        ("performance-inference.svg", inference(&figures)),
        ("performance-serving.svg", serving(&figures)),
    ];
    for (name, chart) in charts {
        if chart.groups.is_empty() {
            eprintln!("no figures for {name}");
            continue;
        }
        let path = options.folder.join(name);
        fs::write(&path, chart.svg())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(page) = &options.page {
        let text = fs::read_to_string(page);
        let text = text.with_context(|| format!("cannot read {}", page.display()))?;
        let filled = tables::fill(&text, &figures)?;
        fs::write(page, filled).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(())
}

pub(super) fn parse(text: &str) -> Result<Figures> {
    let list: Value = serde_json::from_str(text).context("not JSON")?;
    let figures = list.as_array().context("not an array")?.iter();
    let figures = figures.map(|figure| {
        let (bar, holds) = (figure["bar"].as_f64(), figure["holds"] == true);
        let value = figure["value"].as_f64()?;
        Some((figure["name"].as_str()?.to_owned(), Figure { value, bar, holds }))
    });
    let figures: Figures = figures.collect::<Option<_>>().context("not figures")?;
    ensure!(!figures.is_empty(), "no figures");
    Ok(figures)
}

/// Times in relation to native tract.
fn inference(figures: &Figures) -> Chart<'static> {
    let groups = CASES.iter().filter_map(|case| {
        let base = figures.get(&format!("{case}_native_ms"))?.value;
        let values = VARIANTS.iter().map(|variant| {
            let time = figures.get(&format!("{case}_{}_ms", variant.figure))?.value;
            Some((time / base, format!("{time:.2} ms")))
        });
        Some(Group { label: (*case).to_owned(), values: values.collect() })
    });
    Chart {
        title: "Time of a call in relation to tract in a native process (shorter is better)",
        series: &VARIANTS,
        groups: groups.collect(),
        one_scale: true,
    }
}

/// Requests per second of eight callers.
fn serving(figures: &Figures) -> Chart<'static> {
    let groups = SERVED.iter().map(|case| {
        let values = SERVERS.iter().map(|server| {
            let rate = figures.get(&format!("serving_{case}_{}_8_per_second", server.figure))?;
            Some((rate.value, format!("{:.0}", rate.value)))
        });
        Group { label: (*case).to_owned(), values: values.collect() }
    });
    let groups = groups.filter(|group| group.values.iter().any(Option::is_some));
    Chart {
        title: "Requests per second of eight callers (longer is better)",
        series: &SERVERS,
        groups: groups.collect(),
        one_scale: false,
    }
}

impl Chart<'_> {
    fn svg(&self) -> String {
        let rows = |group: &Group| group.values.iter().flatten().count();
        let height = TOP + self.groups.iter().map(|group| rows(group) * BAR + GAP).sum::<usize>();
        let title = self.title;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" role=\"img\" aria-labelledby=\"title\">\n  \
             <title id=\"title\">{title}</title>\n  \
             <style>text {{ font: 12px sans-serif; fill: #1b1f24; }} .title {{ font-weight: bold; }}\
             </style>\n  <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        let mut text = |x: usize, y: usize, class: &str, content: &str| {
            let _ = writeln!(svg, "  <text x=\"{x}\" y=\"{y}\"{class}>{content}</text>");
        };
        text(10, 20, " class=\"title\"", title);
        let mut x = 10;
        for series in self.series {
            text(x + 14, 44, "", series.name);
            x += 14 + 7 * series.name.len() + 10;
        }
        let mut y = TOP;
        let mut bars = String::new();
        for group in &self.groups {
            text(10, y + BAR - 4, "", &group.label);
            let scale = self.largest(group);
            for (series, value) in self.series.iter().zip(&group.values) {
                let Some((value, label)) = value else { continue };
                let width = (value / scale * BARS).max(1.0);
                let _ = writeln!(
                    bars,
                    "  <rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/>",
                    BAR - 3,
                    series.colour
                );
                let end = LABELS as f64 + width + 6.0;
                let _ = writeln!(bars, "  <text x=\"{end:.1}\" y=\"{}\">{label}</text>", y + 11);
                y += BAR;
            }
            y += GAP;
        }
        svg.push_str(&self.legend());
        svg.push_str(&bars);
        svg.push_str("</svg>\n");
        svg
    }

    /// The colours before the names of the series.
    fn legend(&self) -> String {
        let (mut legend, mut x) = (String::new(), 10);
        for series in self.series {
            let colour = series.colour;
            let _ = writeln!(
                legend,
                "  <rect x=\"{x}\" y=\"35\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"
            );
            x += 14 + 7 * series.name.len() + 10;
        }
        legend
    }

    /// The value of the longest bar, of all groups or of this one.
    fn largest(&self, group: &Group) -> f64 {
        let largest = |group: &Group| {
            group.values.iter().flatten().map(|(value, _)| *value).fold(0.0, f64::max)
        };
        if self.one_scale {
            self.groups.iter().map(largest).fold(0.0, f64::max)
        } else {
            largest(group)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_contain_what_was_measured() {
        let figures = parse(
            r#"[{"name": "cls_native_ms", "value": 2.0}, {"name": "cls_guest_ms", "value": 1.0},
                {"name": "serving_cls_axum_8_per_second", "value": 700.4}]"#,
        );
        let figures = figures.unwrap();
        let chart = inference(&figures).svg();
        assert!(chart.contains("1.00 ms") && chart.contains("width=\"240.0\""), "{chart}");
        assert!(!chart.contains(">det<"), "{chart}");
        assert!(serving(&figures).svg().contains(">700<"));
        assert!(serving(&parse(r#"[{"name": "a", "value": 1}]"#).unwrap()).groups.is_empty());
        assert!(parse("[]").is_err() && parse("{}").is_err());
    }
}
