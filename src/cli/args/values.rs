//! Parsers of values on the command line: sizes, rates, durations and times.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use larder_model::size::{ByteSize, VolumeSize};

/// Parses a size with a unit. A bare number is refused, because some tools mean bytes and others GiB.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("the unit is missing: use {text}GiB, {text}MiB or {text}B"));
    }
    text.parse().map_err(|_| "not a size: use a number and a unit, for example 20GiB".to_owned())
}

/// Parses a size with a unit, or `auto`.
pub(super) fn volume_size(text: &str) -> Result<VolumeSize, String> {
    if text == "auto" { Ok(VolumeSize::Auto) } else { size(text).map(VolumeSize::Given) }
}

/// Parses a size that is a whole number of GiB, and returns that number.
pub(super) fn gib(text: &str) -> Result<u32, String> {
    let ByteSize(bytes) = size(text)?;
    let gib = u32::try_from(bytes >> 30).ok().filter(|_| bytes.is_multiple_of(1 << 30));
    gib.ok_or_else(|| "image caches have whole GiB: use for example 20GiB".to_owned())
}

/// Parses bytes per second: a size, with or without `/s`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    match size(text.strip_suffix("/s").unwrap_or(text)) {
        Ok(ByteSize(0)) => {
            Err("the rate must not be 0: use a size per second, for example 20MiB/s".to_owned())
        }
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("not a rate: use a size per second, for example 20MiB/s".to_owned()),
    }
}

/// Parses a duration such as `90s`, `30m`, `2h` or `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || "not a duration: use a number and s, m, h or d, for example 30m".to_owned();
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let (number, unit) = rest.split_at(end);
        let factor = match unit.as_bytes()[0] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return Err(refuse()),
        };
        let number: u32 = number.parse().map_err(|_| refuse())?;
        seconds = seconds.checked_add(u64::from(number) * factor).ok_or_else(refuse)?;
        rest = &unit[1..];
    }
    if text.is_empty() { Err(refuse()) } else { Ok(Duration::from_secs(seconds)) }
}

/// Parses a time: RFC 3339, or a duration from now.
pub(super) fn time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let after = duration(text).ok().and_then(|after| TimeDelta::from_std(after).ok());
    let time = after.and_then(|after| Utc::now().checked_add_signed(after));
    time.ok_or_else(|| {
        "not a time: use a duration such as 30m, or RFC 3339 such as 2026-11-23T18:00:00Z".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(size("20GiB"), Ok(ByteSize(20 << 30)));
        assert_eq!(size("1048576B"), Ok(ByteSize(1 << 20)));
        assert!(size("20").unwrap_err().contains("20GiB"));
        assert!(size("").is_err() && size("GiB").is_err());
        assert_eq!(volume_size("auto"), Ok(VolumeSize::Auto));
        assert_eq!(volume_size("1MiB"), Ok(VolumeSize::Given(ByteSize(1 << 20))));
        assert!(volume_size("20").is_err());
        assert_eq!((gib("20GiB"), gib("1TiB")), (Ok(20), Ok(1024)));
        for bad in ["20", "1.5GiB", "512MiB", "9999999TiB"] {
            assert!(gib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("20MiB/s"), Ok(20 << 20));
        assert_eq!(rate("20MiB"), Ok(20 << 20));
        assert!(rate("/s").is_err() && rate("0B").is_err() && rate("1000").is_err());
    }

    #[test]
    fn durations() {
        for (text, seconds) in
            [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86_400), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "30", "m", "1.5h", "-1s", "1w", "99999999999s", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time("2030-01-01T00:00:00Z").unwrap().timestamp(), 1_893_456_000);
        let soon = time("30m").unwrap() - Utc::now();
        assert!((1790..=1800).contains(&soon.num_seconds()), "{soon}");
        assert!(time("tomorrow").is_err());
    }
}
