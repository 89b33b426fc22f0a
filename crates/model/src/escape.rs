//! Text from outside, made safe for a terminal, a log and a message.

use std::fmt::Write as _;

/// Most characters of one text; a registry's reason may be long.
const LONGEST: usize = 4096;

/// `text` with control, direction and invisible characters as `\u{…}`, cut to a sane length.
pub fn escape(text: &str) -> String {
    escape_to(text, LONGEST)
}

/// The same, cut after `longest` characters of `text`.
pub fn escape_to(text: &str, longest: usize) -> String {
    let mut out = String::with_capacity(text.len().min(longest));
    for (at, c) in text.chars().enumerate() {
        if at == longest {
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

/// Characters that reorder or hide what stands beside them (Unicode, UAX 9 and "default ignorable").
fn rewrites_the_line(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(escape("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\\u{a}");
        assert_eq!(escape("x\u{202e}y\u{9b}"), "x\\u{202e}y\\u{9b}");
        assert_eq!(escape("größe"), "größe");
        assert_eq!(escape(&"a".repeat(9000)).chars().count(), LONGEST + 1);
    }
}
