//! Tokens in `X-Auth-Token`, stored only as SHA-256.

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

/// Maximum length of a token, bytes. The vendor's tokens have a few thousand bytes.
pub(super) const MAX_LENGTH: usize = 16 << 10;

/// SHA-256 of a token.
pub(super) type Hash = [u8; 32];

/// Parses a hash from 64 lower-case hexadecimal digits.
pub(super) fn hash_of_hex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    if digits.len() != 64 || digits.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(hash)
}

/// Returns the index of the hash of `token` in `hashes`. Runs in constant time: it compares every hash in
/// full.
pub(super) fn find<'a>(token: &[u8], hashes: impl IntoIterator<Item = &'a Hash>) -> Option<usize> {
    find_hash(&Sha256::digest(token).into(), hashes)
}

/// Returns the index of `given` in `hashes`, in constant time.
pub(super) fn find_hash<'a>(given: &Hash, hashes: impl IntoIterator<Item = &'a Hash>) -> Option<usize> {
    let (mut found, mut at) = (Choice::from(0), 0u64);
    for (place, hash) in (0u64..).zip(hashes) {
        let same = hash.ct_eq(given);
        at.conditional_assign(&place, same);
        found |= same;
    }
    bool::from(found).then(|| usize::try_from(at).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_their_hash() {
        let hash = |token: &str| -> Hash { Sha256::digest(token).into() };
        let hashes = [hash("a"), hash("b"), hash("c")];
        assert_eq!(find(b"b", &hashes), Some(1));
        assert_eq!(find(b"a", &hashes), Some(0));
        assert_eq!(find(b"d", &hashes), None);
        assert_eq!(find(b"", &hashes), None);
        assert_eq!(find(b"a", &[]), None);
    }

    #[test]
    fn hashes_are_parsed_from_lower_case_hex() {
        let text = larder_model::digest::hex(&Sha256::digest("a"));
        assert_eq!(hash_of_hex(&text), Some(Sha256::digest("a").into()));
        for bad in ["", "ab", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert_eq!(hash_of_hex(bad), None, "{bad}");
        }
    }
}
