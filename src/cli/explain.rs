//! `larder explain`: the meaning of an exit code or an error code of the API.
//!
//! The texts are the tables of the reference, so that both say the same.

use super::args::ExplainArgs;
use super::exit;
use super::output::stdout;
use crate::telemetry::Console;
use larder_model::class::Class;

const EXIT_CODES: &str = include_str!("../../docs/reference/exit-codes.md");
const HTTP_API: &str = include_str!("../../docs/reference/http-api.md");

/// Prints the meaning of a code, or all codes.
pub(super) fn run(args: &ExplainArgs, console: &Console) -> u8 {
    let text = match &args.code {
        Some(code) => explain(code),
        None => Some(all()),
    };
    match text {
        Some(text) => stdout::print(console, &text),
        None => exit::fail(
            console,
            Class::Invalid,
            "no such exit code or API error code\nhint: `larder explain` lists all codes",
        ),
    }
}

/// Returns the meaning of a code, or `None` if there is no such code.
fn explain(code: &str) -> Option<String> {
    let meaning = exit_codes().find(|row| row[0].split(", ").any(|listed| listed == code));
    if let Some(row) = meaning {
        let mut text = format!("Exit code {code}: {}\n", row[1]);
        if let Some(retry) = row.get(2).filter(|retry| !retry.is_empty()) {
            text.push_str(&format!("Retry: {retry}\n"));
        }
        let special = special_cases().filter(|row| row[1] == code);
        let special: Vec<_> = special.map(|row| format!("  larder {}: {}\n", row[0], row[2])).collect();
        if !special.is_empty() {
            text.push_str("Examples:\n");
            text.push_str(&special.concat());
        }
        return Some(text);
    }
    let short = code.to_ascii_uppercase();
    let row = api_codes().find(|row| row[1] == short || row[1].strip_prefix("CCE.") == Some(&short))?;
    Some(format!("API error code {} (HTTP status {}): {}\n", row[1], row[0], row[2]))
}

/// Returns all codes.
fn all() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for row in exit_codes() {
        text.push_str(&format!("  {:<9} {}\n", row[0], row[1]));
    }
    text.push_str("\nError codes of the API:\n");
    for row in api_codes() {
        text.push_str(&format!("  {} {} {}\n", row[1], row[0], row[2]));
    }
    text
}

fn exit_codes() -> impl Iterator<Item = Vec<String>> {
    rows(EXIT_CODES, "| code | meaning |")
}

fn special_cases() -> impl Iterator<Item = Vec<String>> {
    rows(EXIT_CODES, "| command | code |")
}

fn api_codes() -> impl Iterator<Item = Vec<String>> {
    rows(HTTP_API, "| status | code |")
}

/// Returns the rows of the table whose first line starts with `head`, as cells without Markdown.
fn rows(page: &'static str, head: &'static str) -> impl Iterator<Item = Vec<String>> {
    let table = page.lines().skip_while(move |line| !line.starts_with(head)).skip(2);
    table.take_while(|line| line.starts_with('|')).map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::errors::Code;

    #[test]
    fn every_code_has_an_explanation() {
        for code in 0..=u8::MAX {
            let known = exit::meaning(code) != "unknown";
            assert_eq!(explain(&code.to_string()).is_some(), known, "{code}");
        }
        for code in Code::ALL {
            let text = explain(code.text()).unwrap();
            assert!(text.contains(code.status().as_str()), "{text}");
        }
        assert!(explain("01404001").is_some_and(|text| text.contains("no such image cache")));
        assert_eq!(explain("1"), None);
        assert_eq!(explain(""), None);
    }

    #[test]
    fn the_explanation_lists_the_cases_of_commands() {
        let text = explain("73").unwrap();
        assert!(text.contains("larder umount: Larder did not mount the directory"), "{text}");
        assert!(all().contains("  130, 143  interrupted"), "{}", all());
    }
}
