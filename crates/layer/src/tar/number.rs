//! Numbers in tar headers, in the formats of POSIX ustar, GNU base-256 and pax. Nothing wraps or is
//! truncated.

use super::{Fault, Timestamp};

/// Parses a numeric header field: base-256 if its first bit is set (GNU), otherwise octal between NULs and
/// spaces.
///
/// # Errors
/// [`Fault::Field`] with `name` for any other format, and for values that do not fit in 64 bits.
pub(super) fn field(bytes: &[u8], name: &'static str) -> Result<i64, Fault> {
    if bytes.first().is_some_and(|b| b & 0x80 != 0) {
        return base256(bytes).ok_or(Fault::Field(name));
    }
    octal(bytes).ok_or(Fault::Field(name))
}

/// Parses big-endian two's complement. The first bit marks the format and is not part of the value.
fn base256(bytes: &[u8]) -> Option<i64> {
    let (first, rest) = bytes.split_first()?;
    let negative = first & 0x40 != 0;
    // The bits below the marker, with the marker replaced by the sign bit.
    let first = if negative { i64::from(first | 0x80) - 256 } else { i64::from(first & 0x7f) };
    rest.iter().try_fold(first, |sum, b| sum.checked_mul(256)?.checked_add(i64::from(*b)))
}

/// Parses octal digits between NULs and spaces, up to the first NUL among them. An empty field is zero.
pub(super) fn octal(bytes: &[u8]) -> Option<i64> {
    let is_padding = |b: &u8| matches!(b, b' ' | 0);
    let start = bytes.iter().position(|b| !is_padding(b)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|b| !is_padding(b)).map_or(start, |i| i + 1);
    let digits = bytes[start..end].split(|b| *b == 0).next().unwrap_or_default();
    digits.iter().try_fold(0i64, |sum, b| match b {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

/// Parses decimal digits with an optional minus sign, as in pax records.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |sum, b| {
        let digit = i64::from(b.is_ascii_digit().then(|| b - b'0')?);
        let shifted = sum.checked_mul(10)?;
        if negative { shifted.checked_sub(digit) } else { shifted.checked_add(digit) }
    })
}

/// Parses a pax time: decimal seconds with an optional fraction, of which nine digits are significant.
pub(super) fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = parts.next()?;
    let fraction = parts.next().unwrap_or_default();
    let sec = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nsec = digits.fold(0u32, |sum, b| sum * 10 + u32::from(b - b'0'));
    if whole.first() == Some(&b'-') && nsec > 0 {
        return Some(Timestamp { sec: sec.checked_sub(1)?, nsec: 1_000_000_000 - nsec });
    }
    Some(Timestamp { sec, nsec })
}

/// Converts an owner or group ID. Rejects 2^32 - 1: chown(2) interprets it as "leave unchanged", which means
/// root for a new inode.
pub(super) fn id(value: i64, field: &'static str) -> Result<u32, Fault> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Fault::Range { field, value: value.into(), range: "0 to 4294967294" }),
    }
}

/// Converts a size or an offset.
pub(super) fn size(value: i64, field: &'static str) -> Result<u64, Fault> {
    u64::try_from(value).map_err(|_| Fault::Range {
        field,
        value: value.into(),
        range: "0 to 9223372036854775807",
    })
}

/// Converts the major or minor number of a device.
pub(super) fn device(value: i64, field: &'static str) -> Result<u32, Fault> {
    u32::try_from(value).map_err(|_| Fault::Range { field, value: value.into(), range: "0 to 4294967295" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_as_tars_write_it() {
        for (text, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"12\0 34", Some(0o12)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"+644", None),
            (b"-1", None),
            (b"0x10", None),
            (b"00008", None),
            (b"6 4", None),
        ] {
            assert_eq!(octal(text), want, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn base256_never_wraps() {
        let f = |bytes: &[u8]| field(bytes, "x").ok();
        assert_eq!(f(b"\x80\0\0\0\0\0\0\x07"), Some(7));
        assert_eq!(f(b"\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
        assert_eq!(f(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), Some(i64::MAX));
        assert_eq!(f(b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0"), Some(i64::MIN));
        assert_eq!(f(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
        assert_eq!(f(b"\x80\0\0\x01\0\0\0\0\0\0\0\x04"), None);
        assert_eq!(f(b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff"), None);
    }

    #[test]
    fn decimal_is_strict() {
        assert_eq!(decimal(b"12"), Some(12));
        assert_eq!(decimal(b"-9223372036854775808"), Some(i64::MIN));
        for bad in [&b""[..], b"-", b"+1", b"12x", b" 1", b"9223372036854775808", b"1_0"] {
            assert_eq!(decimal(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_before_and_after_the_epoch() {
        let t = |sec, nsec| Some(Timestamp { sec, nsec });
        assert_eq!(timestamp(b"1.5"), t(1, 500_000_000));
        assert_eq!(timestamp(b"1."), t(1, 0));
        assert_eq!(timestamp(b"1.0000000019"), t(1, 1));
        assert_eq!(timestamp(b"-1.25"), t(-2, 750_000_000));
        assert_eq!(timestamp(b"-0.25"), t(-1, 750_000_000));
        assert_eq!(timestamp(b"-3"), t(-3, 0));
        for bad in [&b""[..], b".5", b"1.-5", b"1.2.3", b"1e3", b"-9223372036854775808.5"] {
            assert_eq!(timestamp(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn an_owner_is_never_mapped_to_root() {
        assert_eq!(id(0xffff_fffe, "uid"), Ok(0xffff_fffe));
        for bad in [-1, 0xffff_ffff, 1 << 32, i64::MAX] {
            assert!(id(bad, "uid").is_err(), "{bad}");
        }
    }
}
