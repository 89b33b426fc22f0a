//! Forms and queries as a browser sends them (`application/x-www-form-urlencoded`).

use axum::http::{HeaderMap, header};

use crate::api::errors::{Code, Problem};
use crate::api::query::Query;

/// The fields of a form or of a query.
#[derive(Clone, Debug, Default)]
pub(super) struct Form(Query);

impl Form {
    /// Decodes a query. A browser encodes a space as `+`.
    pub(super) fn parse(raw: &str) -> Result<Self, Problem> {
        Query::parse(Some(&raw.replace('+', "%20"))).map(Form)
    }

    /// Decodes the body of a POST.
    pub(super) fn of_body(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = given.and_then(|value| value.split(';').next()).map(str::trim);
        if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
            return Err(Problem::new(Code::MediaType, "Content-Type: want a form"));
        }
        let text = std::str::from_utf8(body).map_err(|_| Problem::invalid("the form is not UTF-8"))?;
        Form::parse(text)
    }

    /// Returns the value of a field, without spaces around it. Empty if it is absent.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.all(name).next().unwrap_or_default().trim()
    }
}

/// Encodes a text for a query.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn fields_are_decoded() {
        let form = Form::parse("a=1+2&b=%2B&a=3&c").unwrap();
        assert_eq!((form.get("a"), form.get("b"), form.get("c"), form.get("d")), ("1 2", "+", "", ""));
        let back = Form::parse(&format!("x={}", encode("a b&c=é<>+"))).unwrap();
        assert_eq!(back.get("x"), "a b&c=é<>+");
    }

    #[test]
    fn only_forms_are_accepted() {
        let of = |kind: &'static str, body: &[u8]| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            Form::of_body(&headers, body).map(|form| form.get("a").to_owned()).map_err(|e| e.code())
        };
        assert_eq!(of("application/x-www-form-urlencoded; charset=UTF-8", b"a=1"), Ok("1".to_owned()));
        assert_eq!(of("text/plain", b"a=1"), Err(Code::MediaType));
        assert_eq!(of("application/x-www-form-urlencoded", b"\xff"), Err(Code::Invalid));
        assert_eq!(of("application/x-www-form-urlencoded", b"a=%"), Err(Code::Invalid));
    }
}
