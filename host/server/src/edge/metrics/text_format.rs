//! OpenMetrics 1.0 turned into the older text format (0.0.4), line by line.
//!
//! The two differ in what they say of families: the text format calls a counter by the name that its
//! samples have, with `_total`, and knows neither units, nor an end, nor some of the types. Exemplars and
//! times of creation, which it does not know either, the library is never given.

use std::fmt::Write as _;

/// The same samples in the text format.
pub(super) fn of_open_metrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // Which name a family has depends on its type, which comes after its help.
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
                let (suffix, kind) = of_type(rest);
                if let Some(help) = help.take() {
                    writeln!(text, "# HELP {name}{suffix} {help}").expect("a string takes it");
                }
                writeln!(text, "# TYPE {name}{suffix} {kind}").expect("a string takes it");
            }
            // Units and the end.
            _ => {}
        }
    }
    text
}

/// What the samples of a type end in, and what the text format calls it.
fn of_type(kind: &str) -> (&'static str, &str) {
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
    fn families_are_called_by_their_samples_names() {
        let page = "# HELP a_seconds Time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
                    a_seconds_total{b=\"# c d\"} 1.5\n# HELP e Now.\n# TYPE e gauge\ne 1\n\
                    # HELP i I.\n# TYPE i info\ni_info{v=\"1\"} 1\n# HELP u U.\n# TYPE u unknown\nu 2\n\
                    # HELP h H.\n# TYPE h histogram\nh_sum 1.0\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let text = "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\n\
                    a_seconds_total{b=\"# c d\"} 1.5\n# HELP e Now.\n# TYPE e gauge\ne 1\n\
                    # HELP i_info I.\n# TYPE i_info gauge\ni_info{v=\"1\"} 1\n\
                    # HELP u U.\n# TYPE u untyped\nu 2\n\
                    # HELP h H.\n# TYPE h histogram\nh_sum 1.0\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(of_open_metrics(page), text);
    }
}
