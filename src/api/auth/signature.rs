//! Requests signed with an access key: parsing and verification of the header.
//!
//! A request that is repeated within [`SKEW`] verifies again. [`replay`](super::replay) detects repeated
//! requests that would start something. A repeated deletion is harmless, because an ID is never reused.

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

/// Maximum difference between the date of a request and the current time, in both directions.
pub(super) const SKEW: TimeDelta = TimeDelta::minutes(15);

/// The header with the date of a signed request.
pub(super) const DATE: HeaderName = HeaderName::from_static("x-sdk-date");
/// The header with the hash of the body, if the client states it.
const CONTENT: HeaderName = HeaderName::from_static("x-sdk-content-sha256");
/// Format of the date.
const DATE_FORM: &str = "%Y%m%dT%H%M%SZ";
/// Maximum number of signed headers.
const MAX_HEADERS: usize = 64;
/// The same answer for an unknown key and for a wrong signature.
const WRONG: &str = "the signature does not match this request and access key";

/// The contents of `Authorization`: well-formed, and covering all required headers.
#[derive(Clone)]
pub(in crate::api) struct Claim {
    /// ID of the access key.
    pub(in crate::api) access: String,
    date: String,
    headers: Vec<(String, String)>,
    signature: [u8; 32],
    content: Option<String>,
}

impl fmt::Debug for Claim {
    /// Omits the signature and the headers, which allow a request for a quarter of an hour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("access", &self.access).finish_non_exhaustive()
    }
}

fn refuse(message: impl Into<String>) -> Problem {
    Problem::new(Code::Unauthenticated, message)
}

impl Claim {
    /// Parses the header. `authority` replaces `Host` if the protocol has none (HTTP/2).
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
        if names.len() > MAX_HEADERS || !names.is_sorted_by(|a, b| a < b) {
            return Err(refuse("Authorization: SignedHeaders must be sorted and unique"));
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
                    authority.ok_or_else(|| refuse("Host: signed but missing"))?.to_owned()
                }
                None => return Err(refuse(format!("Authorization: header {name:?} is signed but missing"))),
            };
            signed.push((name.to_owned(), value));
        }
        let date = single(headers, DATE.as_str())?.unwrap_or_default();
        let content = single(headers, CONTENT.as_str())?;
        if content.as_deref() == Some("UNSIGNED-PAYLOAD") {
            return Err(refuse("X-Sdk-Content-Sha256: UNSIGNED-PAYLOAD is not accepted, sign the body"));
        }
        Ok(Claim { access: access.to_owned(), date, headers: signed, signature, content })
    }

    /// Checks that the request is recent, and returns the identity of its signature.
    pub(in crate::api) fn check_date(&self, now: DateTime<Utc>) -> Result<Stamp, Problem> {
        let date = NaiveDateTime::parse_from_str(&self.date, DATE_FORM).ok();
        // chrono accepts other formats too, for example a sign before the year.
        let date = date.filter(|date| date.format(DATE_FORM).to_string() == self.date);
        let date = date.ok_or_else(|| refuse("X-Sdk-Date: send a UTC time like 20240101T000000Z"))?;
        let date = date.and_utc();
        if (now - date).abs() > SKEW {
            let now = now.format(DATE_FORM);
            return Err(refuse(format!(
                "X-Sdk-Date: differs by more than 15 minutes from the server time, {now}"
            )));
        }
        Ok(Stamp { date, signature: self.signature })
    }

    /// Verifies the signature over the request and its body. For an unknown key `secret` is `None`; the check
    /// then takes the same path to the same answer.
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
        let dummy = Secret::new("a secret of no access key");
        let right = request.verify(&self.date, secret.unwrap_or(&dummy), &self.signature);
        let right = right && secret.is_some();
        let stated = self.content.as_ref().is_none_or(|stated| stated.eq_ignore_ascii_case(&hex(&body)));
        match (right, stated) {
            (true, true) => Ok(()),
            (true, false) => Err(refuse("X-Sdk-Content-Sha256: the body has a different hash")),
            (false, _) => Err(refuse(WRONG)),
        }
    }
}

/// Returns the hash of the body that the head states (`X-Sdk-Content-Sha256`), signed or not.
pub(in crate::api) fn stated(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Problem> {
    let Some(text) = single(headers, CONTENT.as_str())? else { return Ok(None) };
    let hash = super::token::hash_of_hex(&text.to_ascii_lowercase());
    let hash = hash.ok_or_else(|| {
        Problem::invalid("X-Sdk-Content-Sha256: send the SHA-256 of the body, 64 hexadecimal digits")
    });
    hash.map(Some)
}

/// Returns the value of a header that can be given at most once.
fn single(headers: &HeaderMap, name: &str) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(refuse(format!("header {name:?} is repeated, but a signature covers only one")));
    }
    let text = first.map(|value| std::str::from_utf8(value.as_bytes()).map(|value| value.trim().to_owned()));
    text.transpose().map_err(|_| refuse(format!("header {name:?} is signed but not UTF-8")))
}

#[cfg(test)]
mod tests;
