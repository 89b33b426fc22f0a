//! Requests signed with an access key: what the header claims, and whether it is true.
//!
//! A request that is repeated within [`SKEW`] verifies again. [`replay`](super::replay) finds repeated requests that would begin
//! something. A repeated deletion is harmless, because an identity is never given twice.

use std::fmt;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};

use super::Stamp;
use crate::api::errors::{Code, Problem};
use crate::api::query::{self, Query};
use larder_model::credential::Secret;
use larder_model::digest::hex;
use larder_model::signature::{ALGORITHM, Signable};

/// How far the date of a request may be from now, either way.
pub(super) const SKEW: TimeDelta = TimeDelta::minutes(15);

/// The date of a signed request.
pub(super) const DATE: HeaderName = HeaderName::from_static("x-sdk-date");
/// The hash of the body, where the client states it.
const CONTENT: HeaderName = HeaderName::from_static("x-sdk-content-sha256");
/// Form of the date.
const DATE_FORM: &str = "%Y%m%dT%H%M%SZ";
/// Most signed headers.
const MOST_HEADERS: usize = 64;
/// The one answer for a key that nobody has and for a signature that is not right.
const WRONG: &str = "the signature is not right for this request and access key";

/// What `Authorization` claims, well-formed and with everything that it must cover.
#[derive(Clone)]
pub(in crate::api) struct Claim {
    /// The access key.
    pub(in crate::api) access: String,
    date: String,
    headers: Vec<(String, String)>,
    signature: [u8; 32],
    content: Option<String>,
}

impl fmt::Debug for Claim {
    /// Signature and headers are worth a request for a quarter of an hour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("access", &self.access).finish_non_exhaustive()
    }
}

fn refuse(message: impl Into<String>) -> Problem {
    Problem::new(Code::Unauthenticated, message)
}

impl Claim {
    /// Reads the claim. `authority` stands for `Host` where the protocol has none (HTTP/2).
    pub(in crate::api) fn parse(
        authorization: &str,
        headers: &HeaderMap,
        authority: Option<&str>,
    ) -> Result<Self, Problem> {
        let form = || {
            refuse(format!(
                "Authorization: want {ALGORITHM} Access=…, SignedHeaders=a;b, Signature=64 hexadecimal digits"
            ))
        };
        let rest = authorization.strip_prefix(ALGORITHM).and_then(|rest| rest.strip_prefix(' '));
        let mut parts = rest.ok_or_else(form)?.split(',').map(str::trim);
        let mut part = |name: &str| {
            let value = parts.next().and_then(|part| part.strip_prefix(name)?.strip_prefix('='));
            value.filter(|value| !value.is_empty()).ok_or_else(form)
        };
        let (access, names, signature) = (part("Access")?, part("SignedHeaders")?, part("Signature")?);
        if parts.next().is_some() || access.len() > 128 {
            return Err(form());
        }
        let signature = super::token::hash_of_hex(signature).ok_or_else(form)?;
        let names: Vec<&str> = names.split(';').collect();
        if names.len() > MOST_HEADERS || !names.is_sorted_by(|a, b| a < b) {
            return Err(refuse("Authorization: SignedHeaders want to be sorted, each once"));
        }
        for needed in [header::HOST, DATE] {
            if !names.contains(&needed.as_str()) {
                return Err(refuse(format!("Authorization: {needed} must be among SignedHeaders")));
            }
        }
        let mut signed = Vec::with_capacity(names.len());
        for name in names {
            let value = match single(headers, name)? {
                Some(value) => value,
                None if name == header::HOST.as_str() => {
                    authority.ok_or_else(|| refuse("Host: it is signed and absent"))?.to_owned()
                }
                None => return Err(refuse(format!("Authorization: header {name:?} is signed and absent"))),
            };
            signed.push((name.to_owned(), value));
        }
        let date = single(headers, DATE.as_str())?.unwrap_or_default();
        let content = single(headers, CONTENT.as_str())?;
        if content.as_deref() == Some("UNSIGNED-PAYLOAD") {
            return Err(refuse("X-Sdk-Content-Sha256: UNSIGNED-PAYLOAD is not taken, sign the body"));
        }
        Ok(Claim { access: access.to_owned(), date, headers: signed, signature, content })
    }

    /// Checks that the request was made just now, and returns what it is known by.
    pub(in crate::api) fn check_date(&self, now: DateTime<Utc>) -> Result<Stamp, Problem> {
        let date = NaiveDateTime::parse_from_str(&self.date, DATE_FORM).ok();
        // chrono takes forms that are not the one, a sign before the year among them.
        let date = date.filter(|date| date.format(DATE_FORM).to_string() == self.date);
        let date = date.ok_or_else(|| refuse("X-Sdk-Date: want a time in UTC like 20240101T000000Z"))?;
        let date = date.and_utc();
        if (now - date).abs() > SKEW {
            let now = now.format(DATE_FORM);
            return Err(refuse(format!("X-Sdk-Date: more than 15 minutes from the time here, {now}")));
        }
        Ok(Stamp { date, signature: self.signature })
    }

    /// Checks the signature over the request and its body. Without a secret, for a key that nobody has, it goes the same way
    /// to the same answer.
    pub(in crate::api) fn verify(
        &self,
        parts: &Parts,
        query: &Query,
        body: [u8; 32],
        secret: Option<&Secret>,
    ) -> Result<(), Problem> {
        let path = query::decode(parts.uri.path()).ok_or_else(|| refuse(WRONG))?;
        let request = Signable {
            method: parts.method.as_str(),
            path: &path,
            query: query.pairs(),
            headers: &self.headers,
            body,
        };
        let nobodys = Secret::new("a secret that nobody has");
        let right = request.verify(&self.date, secret.unwrap_or(&nobodys), &self.signature);
        let right = right && secret.is_some();
        let stated = self.content.as_ref().is_none_or(|stated| stated.eq_ignore_ascii_case(&hex(&body)));
        match (right, stated) {
            (true, true) => Ok(()),
            (true, false) => Err(refuse("X-Sdk-Content-Sha256: the body has another hash")),
            (false, _) => Err(refuse(WRONG)),
        }
    }
}

/// The hash of the body that the head states (`X-Sdk-Content-Sha256`), signed or not.
pub(in crate::api) fn stated(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Problem> {
    let Some(text) = single(headers, CONTENT.as_str())? else { return Ok(None) };
    let hash = super::token::hash_of_hex(&text.to_ascii_lowercase());
    let hash =
        hash.ok_or_else(|| Problem::invalid("X-Sdk-Content-Sha256: want the SHA-256 of the body, 64 digits"));
    hash.map(Some)
}

/// The value of a header that may stand once.
fn single(headers: &HeaderMap, name: &str) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(refuse(format!("header {name:?} stands twice, and a signature covers one")));
    }
    let text = first.map(|value| std::str::from_utf8(value.as_bytes()).map(|value| value.trim().to_owned()));
    text.transpose().map_err(|_| refuse(format!("header {name:?} is signed and not UTF-8")))
}

#[cfg(test)]
mod tests;
