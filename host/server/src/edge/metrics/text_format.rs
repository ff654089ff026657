//! Converts OpenMetrics 1.0 to the older text format (0.0.4), line by line.
//!
//! The formats differ in the comments about families: the older one names a counter as its samples are
//! named, with `_total`, and has neither units, nor an end mark, nor some of the types. It has no
//! exemplars and creation times either, which the server never writes.

use std::fmt::Write as _;

/// Convert a page of OpenMetrics.
pub(super) fn from_open_metrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // The name of a family depends on its type, which follows its help.
    let mut help = None;
    for line in page.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let (keyword, rest) = comment.split_once(' ').unwrap_or((comment, ""));
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match keyword {
            "HELP" => help = Some(rest),
            "TYPE" => {
                let (suffix, kind) = convert_type(rest);
                if let Some(help) = help.take() {
                    writeln!(text, "# HELP {name}{suffix} {help}").expect("a string takes it");
                }
                writeln!(text, "# TYPE {name}{suffix} {kind}").expect("a string takes it");
            }
            // Units and the end mark.
            _ => {}
        }
    }
    text
}

/// The suffix of the samples of a type, and the type's name in the text format.
fn convert_type(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "stateset" => ("", "gauge"),
        "unknown" | "gaugehistogram" => ("", "untyped"),
        other => ("", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_like_their_samples() {
        let page = "# HELP a_seconds Time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
                    a_seconds_total{b=\"# c d\"} 1.5\n# HELP e Now.\n# TYPE e gauge\ne 1\n\
                    # HELP i I.\n# TYPE i info\ni_info{v=\"1\"} 1\n# HELP u U.\n# TYPE u unknown\nu 2\n\
                    # HELP h H.\n# TYPE h histogram\nh_sum 1.0\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let text = "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\n\
                    a_seconds_total{b=\"# c d\"} 1.5\n# HELP e Now.\n# TYPE e gauge\ne 1\n\
                    # HELP i_info I.\n# TYPE i_info gauge\ni_info{v=\"1\"} 1\n\
                    # HELP u U.\n# TYPE u untyped\nu 2\n\
                    # HELP h H.\n# TYPE h histogram\nh_sum 1.0\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(from_open_metrics(page), text);
    }
}
