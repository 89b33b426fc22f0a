//! The two text formats of metrics: OpenMetrics 1.0, and the older text format 0.0.4 of Prometheus, which
//! curl, `promtool check metrics` and older scrapers read.
//!
//! See <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Text format 0.0.4 of Prometheus.
    Text,
}

impl Exposition {
    /// Returns the format for the value of an `Accept` header: OpenMetrics if the client prefers it to plain
    /// text or accepts both alike, else the text format.
    pub fn for_accept(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or_default();
        let open = quality(accept, "application/openmetrics-text");
        if open > 0.0 && open >= quality(accept, "text/plain") {
            Exposition::OpenMetrics
        } else {
            Exposition::Text
        }
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Exposition::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts metrics in OpenMetrics text to this format.
    pub(super) fn convert(self, open: String) -> String {
        match self {
            Exposition::OpenMetrics => open,
            Exposition::Text => text(&open),
        }
    }
}

/// Returns the highest quality that `accept` gives a media type (RFC 9110, 12.4.2), or 0.
fn quality(accept: &str, media_type: &str) -> f32 {
    let ranges = accept.split(',').map(|range| range.split(';').map(str::trim));
    let named = ranges.filter_map(|mut parts| {
        let same = parts.next()?.eq_ignore_ascii_case(media_type);
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
        quality.filter(|_| same)
    });
    named.fold(0.0, f32::max)
}

/// Converts OpenMetrics text. The text format has no units and no end marker, it names counters and infos
/// with their suffix, and it has no type for infos.
fn text(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            // Writing to a string cannot fail.
            if let Some((_, help)) = help.take() {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# ") {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_decides() {
        // The header of Prometheus 2.42 (scrape/scrape.go, acceptHeader).
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, want) in [
            (Some(prometheus), Exposition::OpenMetrics),
            (Some("text/plain;version=0.0.4;q=1,application/openmetrics-text;q=0.5"), Exposition::Text),
            (Some("application/openmetrics-text;q=0"), Exposition::Text),
            (Some("application/openmetrics-text;q=high"), Exposition::Text),
            (Some("*/*"), Exposition::Text),
            (None, Exposition::Text),
        ] {
            assert_eq!(Exposition::for_accept(accept), want, "{accept:?}");
        }
    }

    #[test]
    fn the_text_format_names_counters_and_infos_with_their_suffix() {
        let open = "# HELP a Help of a.\n# TYPE a counter\na_total 1\n\
                    # HELP b_seconds Help.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\nb_seconds_count 0\n\
                    # HELP c Help.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let want = "# HELP a_total Help of a.\n# TYPE a_total counter\na_total 1\n\
                    # HELP b_seconds Help.\n# TYPE b_seconds histogram\nb_seconds_count 0\n\
                    # HELP c_info Help.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(text(open), want);
    }
}
