//! Challenges of a registry in WWW-Authenticate (RFC 9110, 11.6.1; RFC 6750; the distribution token
//! specification).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Maximum length of a header, in bytes. Longer headers are ignored.
const MAX_LENGTH: usize = 8192;

/// An authentication scheme that Larder supports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from a token server.
    Bearer {
        /// URL of the token server, as written.
        realm: String,
        /// Name of the registry at the token server.
        service: Option<String>,
        /// Access that the token must grant.
        scope: Option<String>,
    },
}

/// Returns the strongest supported challenge. Bearer precedes Basic, because then the password goes only to
/// the token server.
pub(crate) fn strongest(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter(|value| value.len() <= MAX_LENGTH);
    // Any header can contain bytes above 0x7f (RFC 9110, 5.5, "obs-text"), but no parameter that matters here
    // has them.
    let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let all: Vec<Challenge> = texts.flat_map(|text| parse(&text)).collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

/// Returns all supported challenges of one header, which can list several.
fn parse(text: &str) -> Vec<Challenge> {
    let mut schemes: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for item in items(text) {
        // An item is `Scheme`, `Scheme name=value` or `name=value`. A space separates a scheme from its first
        // parameter.
        let name_end = item.find('=').unwrap_or(item.len());
        let parameter = match item[..name_end].trim().split_once(char::is_whitespace) {
            Some((scheme, _)) => {
                schemes.push((scheme.to_ascii_lowercase(), Vec::new()));
                item[scheme.len()..].trim_start()
            }
            None if name_end == item.len() => {
                schemes.push((item.to_ascii_lowercase(), Vec::new()));
                continue;
            }
            None => item,
        };
        if let (Some((_, parameters)), Some((name, value))) = (schemes.last_mut(), parameter.split_once('='))
        {
            parameters.push((name.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    schemes.into_iter().filter_map(|(scheme, parameters)| supported(&scheme, &parameters)).collect()
}

fn supported(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let get =
        |wanted: &str| parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
        }
        _ => None,
    }
}

/// Splits `text` at commas outside of quotes.
fn items(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items.into_iter().map(str::trim).filter(|item| !item.is_empty()).collect()
}

/// Returns the text of a quoted string. A string without quotes is returned unchanged.
pub(super) fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else {
        return value.to_owned();
    };
    let mut plain = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => plain.extend(chars.next()),
            _ => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn what_registries_send() {
        for (text, want) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            (r#"basic"#, vec![Challenge::Basic]),
            (r#"bearer realm=https://a/t , service = s"#, vec![bearer("https://a/t", Some("s"), None)]),
            (
                r#"Basic realm="x, y", Bearer realm="https://a/t""#,
                vec![Challenge::Basic, bearer("https://a/t", None, None)],
            ),
            (r#"Bearer realm="a\"b""#, vec![bearer("a\"b", None, None)]),
            (r#"Negotiate, Digest realm="x", nonce="y""#, vec![]),
            (r#"Bearer service="no realm""#, vec![]),
            ("", vec![]),
            ("=,=\"", vec![]),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    #[test]
    fn bearer_before_basic() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        assert_eq!(strongest(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"https://a/t\"".parse().unwrap());
        assert_eq!(strongest(&headers), Some(bearer("https://a/t", None, None)));
    }

    #[test]
    fn headers_with_non_ascii_bytes() {
        let of = |value: &[u8]| {
            let value = reqwest::header::HeaderValue::from_bytes(value).unwrap();
            strongest(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]))
        };
        assert_eq!(of(b"Basic realm=\"\xfcber\""), Some(Challenge::Basic));
        let described = b"Bearer realm=\"https://a/t\",service=\"s\",error_description=\"\xe9chec\"";
        assert_eq!(of(described), Some(bearer("https://a/t", Some("s"), None)));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            parse(&text);
        }
    }
}
