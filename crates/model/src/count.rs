//! Numbers with their nouns.

use std::fmt::Display;

/// Formats a number with its noun: `1 image`, `2 images`, `3 entries`.
pub fn counted<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if number == N::from(1) => format!("{number} {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_no_plural() {
        assert_eq!(counted(0_usize, "image"), "0 images");
        assert_eq!(counted(1_usize, "image"), "1 image");
        assert_eq!(counted(1_u64, "entry"), "1 entry");
        assert_eq!(counted(2_u64, "entry"), "2 entries");
    }
}
