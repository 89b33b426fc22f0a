//! Release of the running kernel.

use std::fs;

/// Returns the release name, as in `/lib/modules`; empty if it cannot be read.
pub fn name() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Reports whether the kernel is Linux `major`.`minor` or newer.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    parsed(&name()).is_some_and(|release| release >= (major, minor))
}

/// Parses the first two numbers: `6.18.44-fc` is 6.18.
fn parsed(name: &str) -> Option<(u32, u32)> {
    let mut numbers = name.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_numbers_count() {
        assert_eq!(parsed("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parsed("5.19-rc1"), Some((5, 19)));
        assert_eq!(parsed("x"), None);
        assert!(is_at_least(4, 0) && !is_at_least(1000, 0));
    }
}
