//! The query of a request, decoded once for both the signature and the routes.

use super::errors::Problem;

/// Maximum length of a query, bytes.
const MAX_LENGTH: usize = 32 << 10;
/// Maximum number of parameters in one query.
const MAX_PARAMETERS: usize = 64;

/// Decoded parameters in their original order. `+` is a plus sign: the vendor's SDKs encode a space as `%20`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a raw query.
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self, Problem> {
        let raw = raw.unwrap_or_default();
        if raw.len() > MAX_LENGTH {
            return Err(Problem::invalid(format!("the query is longer than {MAX_LENGTH} bytes")));
        }
        let mut pairs = Vec::new();
        for part in raw.split('&').filter(|part| !part.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                return Err(Problem::invalid(format!("the query has more than {MAX_PARAMETERS} parameters")));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let pair = decode(name).zip(decode(value));
            pairs.push(pair.ok_or_else(|| Problem::invalid("the query is not percent-encoded UTF-8"))?);
        }
        Ok(Query(pairs))
    }

    /// Returns all parameters in order.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Returns all values of one parameter.
    pub(crate) fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Returns the value of a parameter that can be given at most once.
    pub(crate) fn one<'a>(&'a self, name: &str) -> Result<Option<&'a str>, Problem> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() {
            return Err(Problem::invalid(format!("query: {name} is given twice, send it once")));
        }
        Ok(first)
    }
}

/// Decodes percent-encoding (RFC 3986, 2.1) strictly: a `%` without two hexadecimal digits is an error.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once() {
        let query = Query::parse(Some("name=web%2D1&image=a%3A1&image=b&x&&y=%2525+")).unwrap();
        assert_eq!(query.one("name").unwrap(), Some("web-1"));
        assert_eq!(query.all("image").collect::<Vec<_>>(), ["a:1", "b"]);
        assert_eq!(query.one("x").unwrap(), Some(""));
        assert_eq!(query.one("y").unwrap(), Some("%25+"));
        assert_eq!(query.one("none").unwrap(), None);
        assert!(query.one("image").unwrap_err().message().contains("image is given twice"));
    }

    #[test]
    fn malformed_queries() {
        let many = "a&".repeat(MAX_PARAMETERS + 1);
        let long = "a".repeat(MAX_LENGTH + 1);
        for bad in ["a=%", "a=%4", "a=%zz", "%+1=a", "a=%ff", &many, &long] {
            assert!(Query::parse(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(Query::parse(None).unwrap(), Query::default());
    }
}
