//! Request signatures, for signing and verifying, as in the vendor's SDKs (`SDK-HMAC-SHA256`).
//!
//! ```text
//! canonical request = method ⏎ path, percent-encoded, ending in / ⏎ sorted query ⏎ name:value ⏎ … ⏎ ⏎ signed names ⏎ sha256
//! string to sign    = algorithm ⏎ date ⏎ sha256 of the canonical request
//! signature         = HMAC-SHA256 of it with the secret key
//! ```

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::credential::Secret;
use super::digest::hex;

/// The name of the algorithm: the first word of `Authorization` and the first line of the string to sign.
pub const ALGORITHM: &str = "SDK-HMAC-SHA256";

/// Block size of SHA-256, bytes.
const BLOCK: usize = 64;

/// The parts of a request that a signature covers.
#[derive(Clone, Copy, Debug)]
pub struct Signable<'a> {
    /// HTTP method in capital letters.
    pub method: &'a str,
    /// Percent-decoded path of the request.
    pub path: &'a str,
    /// Percent-decoded query parameters.
    pub query: &'a [(String, String)],
    /// Signed headers in the order of the header list: lower-case name, value.
    pub headers: &'a [(String, String)],
    /// SHA-256 of the body.
    pub body: [u8; 32],
}

impl Signable<'_> {
    /// Returns the canonical request.
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
        let mut pairs: Vec<&(String, String)> = self.query.iter().collect();
        pairs.sort();
        out.push_str(&query(pairs.into_iter().map(|(name, value)| (name.as_str(), value.as_str()))));
        out.push('\n');
        for (name, value) in self.headers {
            let _ = writeln!(out, "{name}:{}", value.trim());
        }
        out.push('\n');
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        let _ = write!(out, "{}\n{}", names.join(";"), hex(&self.body));
        out
    }

    /// Returns the string to sign. `date` has the format of `X-Sdk-Date`.
    pub fn string_to_sign(&self, date: &str) -> String {
        format!("{ALGORITHM}\n{date}\n{}", hex(&Sha256::digest(self.canonical())))
    }

    /// Computes the signature. `Authorization` has it as lower-case hexadecimal digits.
    pub fn sign(&self, date: &str, secret: &Secret) -> [u8; 32] {
        self.mac(date, secret).finalize().into_bytes().into()
    }

    /// Reports whether a signature is valid. The comparison takes constant time.
    pub fn verify(&self, date: &str, secret: &Secret, signature: &[u8; 32]) -> bool {
        self.mac(date, secret).verify_slice(signature).is_ok()
    }

    fn mac(&self, date: &str, secret: &Secret) -> Hmac<Sha256> {
        let given = secret.expose().as_bytes();
        // RFC 2104, 2: a key longer than a block is replaced by its hash, a shorter one is padded with zeros.
        let mut key = [0; BLOCK];
        match key.get_mut(..given.len()) {
            Some(start) => start.copy_from_slice(given),
            None => key[..32].copy_from_slice(&Sha256::digest(given)),
        }
        let mut mac = Hmac::<Sha256>::new(&key.into());
        mac.update(self.string_to_sign(date).as_bytes());
        mac
    }
}

/// Formats a query as it is signed and sent, without the `?`, in the given order.
pub fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (at, (name, value)) in pairs.into_iter().enumerate() {
        if at > 0 {
            out.push('&');
        }
        encode(name, &mut out);
        out.push('=');
        encode(value, &mut out);
    }
    out
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
    fn signatures_match_the_sdk() {
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
        let vectors = [
            (1, "5072ae3465ce135f71652a23b352b4b02d0352069d280f1b73edb87fbaeecf44"),
            (64, "d7454f98e8ddc6681c282988fbaa22083c76ce78b7ecd25869bc24b3e68dc479"),
            (65, "0561bdf51608caa8d54f4ce382c0c5cff2fbfaae2f11c603ee13fd3cae152651"),
            (200, "b4609f2b458a8adabea0bbb41f18ad7287814a92d37b67d688c45459cc4b03d3"),
        ];
        // Computed with another implementation (Python's hmac), with keys shorter and longer than a block.
        for (length, wanted) in vectors {
            let secret = Secret::new("k".repeat(length));
            let signature = request.sign("20240101T000000Z", &secret);
            assert_eq!(hex(&signature), wanted, "{length}");
            assert!(request.verify("20240101T000000Z", &secret, &signature));
            assert!(!request.verify("20240101T000001Z", &secret, &signature));
        }
        let root = Signable { path: "/", query: &[], ..request };
        assert!(root.canonical().starts_with("GET\n/\n\nhost"));
    }
}
