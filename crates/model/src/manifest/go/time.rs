//! Times as Go's `time.Time` decodes them from JSON (`Parse` with the layout `RFC3339`).

use chrono::{DateTime, Duration, NaiveDate, SecondsFormat};

/// Returns the time in a JSON string without escapes, in a form that every RFC 3339 parser accepts; `None` if
/// Go refuses it. A text that already has that form is unchanged.
///
/// Go accepts more than RFC 3339: hours of one digit, a comma before the fraction, zones up to `+24:60`. It
/// accepts less than chrono: no space instead of `T`, no lower-case letters, no leap seconds.
pub(super) fn rfc3339(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let mut rest = Rest(text);
    let year = rest.digits(4)?;
    let month = rest.skip('-')?.digits(2)?;
    let day = rest.skip('-')?.digits(2)?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)?;
    rest.skip('T')?;
    let short = rest.0.as_bytes().get(1) == Some(&b':');
    let hour = rest.digits(if short { 1 } else { 2 })?;
    let minute = rest.skip(':')?.digits(2)?;
    let second = rest.skip(':')?.digits(2)?;
    let (fraction, comma) = rest.fraction()?;
    let (minutes_east, wide) = rest.zone()?;
    let time = date.and_hms_nano_opt(hour, minute, second, fraction)?;
    if !short && !comma && !wide {
        return Some(text.to_owned());
    }
    let utc = time.checked_sub_signed(Duration::minutes(minutes_east))?.and_utc();
    let text = utc.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    // RFC 3339 has no years of more than four digits.
    DateTime::parse_from_rfc3339(&text).is_ok().then_some(text)
}

/// The rest of the text to parse.
struct Rest<'a>(&'a str);

impl Rest<'_> {
    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    }

    fn skip(&mut self, byte: char) -> Option<&mut Self> {
        self.0 = self.0.strip_prefix(byte)?;
        Some(self)
    }

    /// Parses the fraction. Returns nanoseconds, and `true` if it starts with a comma. Further digits are
    /// ignored.
    fn fraction(&mut self) -> Option<(u32, bool)> {
        let comma = self.0.starts_with(',');
        let Some(rest) = self.0.strip_prefix(['.', ',']) else { return Some((0, false)) };
        let count = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = rest.split_at(count);
        self.0 = rest;
        let nine: String = digits.chars().chain("000000000".chars()).take(9).collect();
        (count > 0).then(|| Some((nine.parse().ok()?, comma)))?
    }

    /// Parses the zone at the end of the text. Returns minutes east of UTC, and `true` if RFC 3339 does not
    /// allow that zone.
    fn zone(&mut self) -> Option<(i64, bool)> {
        if self.0 == "Z" {
            return Some((0, false));
        }
        let sign = match self.0.chars().next()? {
            '+' => 1,
            '-' => -1,
            _ => return None,
        };
        self.0 = &self.0[1..];
        let hours = self.digits(2)?;
        let minutes = self.skip(':')?.digits(2)?;
        let fits = self.0.is_empty() && hours <= 24 && minutes <= 60;
        fits.then(|| (sign * i64::from(hours * 60 + minutes), hours > 23 || minutes > 59))
    }
}
