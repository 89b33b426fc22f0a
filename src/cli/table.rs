//! Tables for people.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use larder_model::size::ByteSize;

/// Minimum width of the last column on a narrow terminal, columns.
const MIN_LAST: usize = 16;

/// Returns the width of the terminal on standard output, columns. `None` if it is not a terminal.
pub(super) fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Formats rows under a header, with columns as wide as their content. A last column without content is
/// omitted. If the lines are wider than `width`, the last column is cut.
pub(super) fn rows(head: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let is_empty = |row: &Vec<String>| row.get(head.len() - 1).is_none_or(String::is_empty);
    let head = match head {
        [first @ .., _] if !first.is_empty() && !rows.is_empty() && rows.iter().all(is_empty) => first,
        all => all,
    };
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let (Some(width), Some((last, others))) = (width, widths.split_last_mut()) {
        let left: usize = others.iter().map(|width| width + 2).sum();
        *last = (*last).min(width.saturating_sub(left).max(MIN_LAST));
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut written = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(written, "{:<width$}  ", cut(cell, *width));
        }
        out.push_str(written.trim_end());
        out.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// Returns a text of at most `width` characters. The last one is an ellipsis if the text is cut.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Formats a time, without fractions of seconds.
pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Formats a number of bytes.
pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: Option<usize>) -> String {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        rows(
            &["NAME", "AGE", "MESSAGE"],
            &[row(["a", "1d", ""]), row(["longer", "2h", "attempt 2: connection refused"])],
            width,
        )
    }

    #[test]
    fn columns_line_up_and_the_last_is_cut() {
        let full = "NAME    AGE  MESSAGE\na       1d\nlonger  2h   attempt 2: connection refused\n";
        assert_eq!(table(None), full);
        assert_eq!(table(Some(80)), full);
        let cut = "NAME    AGE  MESSAGE\na       1d\nlonger  2h   attempt 2: connect…\n";
        assert_eq!(table(Some(32)), cut);
        assert!(table(Some(1)).ends_with("longer  2h   attempt 2: conn…\n"));
    }

    #[test]
    fn a_last_column_without_content_is_omitted() {
        let row = vec!["a".to_owned(), String::new()];
        assert_eq!(rows(&["NAME", "MESSAGE"], &[row], None), "NAME\na\n");
        assert_eq!(rows(&["NAME", "MESSAGE"], &[], None), "NAME  MESSAGE\n");
    }
}
