//! The checksum of a row.

use sha2::{Digest as _, Sha256};

/// Returns the SHA-256 over the kind of a row and its fields. Each is prefixed with its length, so that
/// different rows have different input.
pub(super) fn of(kind: &str, fields: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for field in [kind.as_bytes()].iter().chain(fields) {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_boundaries_count() {
        let all = [
            of("a", &[b"bc", b"d"]),
            of("a", &[b"b", b"cd"]),
            of("ab", &[b"c", b"d"]),
            of("a", &[b"bcd"]),
            of("a", &[b"bc", b"d", b""]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
        }
    }

    #[test]
    fn the_form_on_disk_is_fixed() {
        // printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\2bc' | sha256sum
        let hex: String = of("a", &[b"bc"]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "3fafa1cf2f19a7c1129beb20cf0983f73a489a221fc0dd2f16d1be292d089205");
    }
}
