//! Escaping of untrusted text for terminals, logs and messages.

use std::fmt::Write as _;

/// Maximum characters of one text; an error message of a registry can be long.
const MAX_CHARS: usize = 4096;

/// Returns `text` with control, direction and invisible characters as `\u{…}`, cut to 4096 characters.
pub fn escape(text: &str) -> String {
    escape_to(text, MAX_CHARS)
}

/// Escapes like [`escape`], but cuts after `max_chars` characters of `text`.
pub fn escape_to(text: &str, max_chars: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_chars));
    for (at, c) in text.chars().enumerate() {
        if at == max_chars {
            out.push('…');
            break;
        }
        if c.is_control() || rewrites_the_line(c) {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Reports whether a character reorders or hides its neighbours (Unicode, UAX 9 and "default ignorable").
fn rewrites_the_line(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\\u{a}");
        assert_eq!(escape("x\u{202e}y\u{9b}"), "x\\u{202e}y\\u{9b}");
        assert_eq!(escape("größe"), "größe");
        assert_eq!(escape(&"a".repeat(9000)).chars().count(), MAX_CHARS + 1);
    }
}
