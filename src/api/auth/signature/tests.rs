//! Requests that the vendor's own signer made, and what each change to them does.

use axum::body::Body;
use axum::http::{HeaderValue, Request};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::*;

/// Made by the Python SDK's signer.
const VECTORS: &str = include_str!("../../../../tests/it/sdk/vectors.json");

#[derive(Clone, Deserialize)]
struct Vector {
    method: String,
    uri: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    access_key: String,
    secret_key: String,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(VECTORS).unwrap()
}

impl Vector {
    fn parts(&self) -> Parts {
        let mut request = Request::builder().method(self.method.as_str()).uri(&self.uri);
        for (name, value) in &self.headers {
            request = request.header(name.as_str(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(Body::empty()).unwrap().into_parts().0
    }
}

fn signed_at() -> DateTime<Utc> {
    "2024-01-01T00:00:00Z".parse().unwrap()
}

/// The whole way of a signed request.
fn check(parts: &Parts, body: &str, secret: Option<&str>, now: DateTime<Utc>) -> Result<String, Problem> {
    let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    let claim = Claim::parse(authorization.unwrap_or_default(), &parts.headers, authority)?;
    claim.check_date(now)?;
    let query = Query::parse(parts.uri.query())?;
    let secret = secret.map(Secret::new);
    claim.verify(parts, &query, Sha256::digest(body).into(), secret.as_ref())?;
    Ok(claim.access)
}

#[test]
fn the_sdks_own_requests() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let access = check(&vector.parts(), &vector.body, Some(&vector.secret_key), signed_at());
        assert_eq!(access.unwrap(), vector.access_key, "{}", vector.uri);
        let claim = Claim::parse(&vector.headers["Authorization"], &vector.parts().headers, None).unwrap();
        assert_eq!(format!("{claim:?}"), "Claim { access: \"AKVECTOR000000000001\", .. }");
    }
}

#[test]
fn each_signed_part_counts() {
    for vector in vectors() {
        let secret = vector.secret_key.as_str();
        let refused = |what: &str, parts: &Parts, body: &str, secret: Option<&str>| {
            let problem = check(parts, body, secret, signed_at()).expect_err(what);
            assert_eq!(problem.code(), Code::Unauthenticated, "{what}");
            problem.message().to_owned()
        };
        let parts = vector.parts();
        let wrong = refused("key", &parts, &vector.body, Some("another"));
        assert_eq!(refused("nobody's key", &parts, &vector.body, None), wrong, "told apart");
        refused("body", &parts, &format!("{} ", vector.body), Some(secret));
        let mut changed = parts.clone();
        changed.method = axum::http::Method::PUT;
        refused("method", &changed, &vector.body, Some(secret));
        for uri in ["/v5/imagecaches/x?a=1", "/v5/imagecache", "/v5/imagecaches?name=b", "/v5//imagecaches"] {
            let mut changed = parts.clone();
            changed.uri = uri.parse().unwrap();
            refused(uri, &changed, &vector.body, Some(secret));
        }
        let authorization = parts.headers[header::AUTHORIZATION].to_str().unwrap().to_owned();
        let names =
            authorization.split_once("SignedHeaders=").unwrap().1.split_once(',').unwrap().0.to_owned();
        for name in names.split(';') {
            let name = HeaderName::try_from(name).unwrap();
            let mut changed = parts.clone();
            changed.headers.insert(&name, HeaderValue::from_static("20240101T000001Z"));
            refused(name.as_str(), &changed, &vector.body, Some(secret));
            let mut changed = parts.clone();
            changed.headers.append(&name, parts.headers[&name].clone());
            refused("a header twice", &changed, &vector.body, Some(secret));
            let mut changed = parts.clone();
            changed.headers.remove(&name);
            refused("a header less", &changed, &vector.body, Some(secret));
        }
        let mut unsigned = parts.clone();
        unsigned.headers.insert("accept", HeaderValue::from_static("*/*"));
        assert!(check(&unsigned, &vector.body, Some(secret), signed_at()).is_ok(), "not signed");
    }
}

#[test]
fn a_claim_is_well_formed() {
    let vector = vectors().remove(0);
    let good = vector.headers["Authorization"].clone();
    let with = |authorization: String| {
        let mut parts = vector.parts();
        parts.headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        check(&parts, &vector.body, Some(&vector.secret_key), signed_at())
    };
    assert!(with(good.clone()).is_ok());
    for (from, to) in [
        ("SDK-HMAC-SHA256", "SDK-HMAC-SM3"),
        ("SDK-HMAC-SHA256 ", "SDK-HMAC-SHA256"),
        ("Access=", "Credential="),
        ("host;", ""),
        (";x-sdk-date", ""),
        ("content-type;host", "host;content-type"),
        ("content-type;host", "Content-Type;host"),
        ("content-type;", "content-type;content-type;"),
        ("content-type;", ";"),
        ("Signature=", "Signature=00"),
        ("Signature=99d5", "Signature=99D5"),
        ("Signature=99d5", "Signature=99d6"),
    ] {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good, "{from}");
        assert_eq!(with(changed).unwrap_err().code(), Code::Unauthenticated, "{from} → {to}");
    }
    assert!(with(format!("{good}, More=1")).is_err());
    assert!(with(String::new()).is_err());
}

#[test]
fn the_date_is_of_now() {
    let vector = vectors().remove(1);
    let at = |now| check(&vector.parts(), &vector.body, Some(&vector.secret_key), now);
    for seconds in [0, 900, -900] {
        assert!(at(signed_at() + TimeDelta::seconds(seconds)).is_ok(), "{seconds}");
    }
    for seconds in [901, -901, 86_400 * 366] {
        let problem = at(signed_at() + TimeDelta::seconds(seconds)).unwrap_err();
        assert!(problem.message().contains("15 minutes"), "{}", problem.message());
    }
    for date in ["", "2024-01-01T00:00:00Z", "20240101T000000", "+20240101T000000Z", "yesterday"] {
        let mut parts = vector.parts();
        parts.headers.insert(DATE, date.parse().unwrap());
        let problem = check(&parts, &vector.body, Some(&vector.secret_key), signed_at()).unwrap_err();
        assert!(problem.message().contains("X-Sdk-Date"), "{date}");
    }
}

/// Signs as the SDK does, to try what it would not send.
fn sign(parts: &mut Parts, names: &[&str], body: &[u8], secret: &str) {
    let headers: Vec<(String, String)> = names
        .iter()
        .map(|name| ((*name).to_owned(), parts.headers[*name].to_str().unwrap().to_owned()))
        .collect();
    let query = Query::parse(parts.uri.query()).unwrap();
    let request = Signable {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: query.pairs(),
        headers: &headers,
        body: Sha256::digest(body).into(),
    };
    let signature = hex(&request.sign("20240101T000000Z", &Secret::new(secret)));
    let names = names.join(";");
    let value = format!("{ALGORITHM} Access=AK, SignedHeaders={names}, Signature={signature}");
    parts.headers.insert(header::AUTHORIZATION, value.parse().unwrap());
}

#[test]
fn a_stated_hash_is_the_bodys() {
    let names = ["host", "x-sdk-content-sha256", "x-sdk-date"];
    let with = |stated: &str| {
        let request =
            Request::post("/v5/imagecaches").header(header::HOST, "h").header(DATE, "20240101T000000Z");
        let mut parts = request.header(CONTENT, stated).body(()).unwrap().into_parts().0;
        sign(&mut parts, &names, b"{}", "s");
        check(&parts, "{}", Some("s"), signed_at())
    };
    assert!(with(&hex(&Sha256::digest("{}"))).is_ok());
    for bad in ["UNSIGNED-PAYLOAD", "", &hex(&Sha256::digest("{ }"))] {
        assert_eq!(with(bad).unwrap_err().code(), Code::Unauthenticated, "{bad}");
    }
}

#[test]
fn http2_names_the_host_in_its_authority() {
    let request = Request::get("https://larder.example:8443/v5/imagecaches").header(DATE, "20240101T000000Z");
    let mut parts = request.header(header::HOST, "larder.example:8443").body(()).unwrap().into_parts().0;
    sign(&mut parts, &["host", "x-sdk-date"], b"", "s");
    parts.headers.remove(header::HOST);
    assert!(check(&parts, "", Some("s"), signed_at()).is_ok());
    parts.uri = "https://elsewhere.example/v5/imagecaches".parse().unwrap();
    assert!(check(&parts, "", Some("s"), signed_at()).is_err());
}
