//! What the two ends of a signed request hash, as the vendor's SDKs write it (algorithm `SDK-HMAC-SHA256`).
//!
//! ```text
//! canonical request = method ⏎ path, percent-encoded, ending in / ⏎ sorted query ⏎ name:value ⏎ … ⏎ ⏎ signed names ⏎ sha256
//! string to sign    = algorithm ⏎ date ⏎ sha256 of the canonical request
//! signature         = HMAC-SHA256 of it with the secret key
//! ```

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::model::digest::hex;

/// The name of the algorithm, first word of `Authorization` and first line of the string to sign.
pub const ALGORITHM: &str = "SDK-HMAC-SHA256";

/// The parts of a request that a signature covers.
#[derive(Clone, Copy, Debug)]
pub struct Signable<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// The path, decoded.
    pub path: &'a str,
    /// The parameters of the query, decoded.
    pub query: &'a [(String, String)],
    /// The signed headers in the order in which they are named: lower-case name, value.
    pub headers: &'a [(String, String)],
    /// SHA-256 of the body.
    pub body: [u8; 32],
}

impl Signable<'_> {
    /// The canonical request.
    pub fn canonical(&self) -> String {
        let mut out = format!("{}\n", self.method);
        for (at, segment) in self.path.split('/').enumerate() {
            if at > 0 {
                out.push('/');
            }
            encode(segment, &mut out);
        }
        if !out.ends_with('/') {
            out.push('/');
        }
        out.push('\n');
        let mut query: Vec<&(String, String)> = self.query.iter().collect();
        query.sort();
        for (at, (name, value)) in query.into_iter().enumerate() {
            if at > 0 {
                out.push('&');
            }
            encode(name, &mut out);
            out.push('=');
            encode(value, &mut out);
        }
        out.push('\n');
        for (name, value) in self.headers {
            let _ = writeln!(out, "{name}:{}", value.trim());
        }
        out.push('\n');
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        let _ = write!(out, "{}\n{}", names.join(";"), hex(&self.body));
        out
    }

    /// The string to sign; `date` as in `X-Sdk-Date`.
    pub fn string_to_sign(&self, date: &str) -> String {
        format!("{ALGORITHM}\n{date}\n{}", hex(&Sha256::digest(self.canonical())))
    }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986, 2.3.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_sdk() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = [pair("name", "web 1/é"), pair("a", "~")];
        let headers = [pair("host", "h:1"), pair("x-sdk-date", " 20240101T000000Z ")];
        let empty = Sha256::digest(b"").into();
        let request = Signable {
            method: "GET",
            path: "/v5/image caches",
            query: &query,
            headers: &headers,
            body: empty,
        };
        let wanted = "GET\n/v5/image%20caches/\na=~&name=web%201%2F%C3%A9\nhost:h:1\nx-sdk-date:20240101T000000Z\n\n\
                      host;x-sdk-date\ne3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(request.canonical(), wanted);
        let root = Signable { path: "/", query: &[], ..request };
        assert!(root.canonical().starts_with("GET\n/\n\nhost"));
    }
}
