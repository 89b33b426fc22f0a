//! Handles requests: responses and faults.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION,
    RANGE, RETRY_AFTER, WARNING, WWW_AUTHENTICATE,
};
use hyper::http::response::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::body::{self, Body, Break};
use super::{Auth, Fault, Seen, State};
use larder_model::digest::Digest;

type Shared = Arc<Mutex<State>>;

/// Accepts connections until the future is dropped.
pub(super) async fn serve(listener: std::net::TcpListener, address: SocketAddr, state: Shared) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the socket is non-blocking");
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let number = OnceLock::new();
            let service = service_fn(|request| {
                let (state, number) = (Arc::clone(&state), &number);
                async move { Ok::<_, Infallible>(respond(request, address, number, state).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            // A client that disconnects is not an error of the server.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    address: SocketAddr,
    number: &OnceLock<u64>,
    shared: Shared,
) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let path = head.uri.path().to_owned();
    let header = |name| head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (authorization, range) = (header(AUTHORIZATION), header(RANGE));
    let query = head.uri.query().map(str::to_owned);
    let form = if head.method == Method::POST {
        let body = Limited::new(incoming, 64 << 10).collect().await;
        body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default()
    } else {
        String::new()
    };
    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    state.seen.push(Seen {
        path: path.clone(),
        query,
        authorization: authorization.clone(),
        range: range.clone(),
    });
    if let Some(response) = state.status_fault(&path) {
        return response;
    }
    if path == "/token" {
        return state.token(authorization.as_deref(), &form);
    }
    if let Some(challenge) = state.challenge(authorization.as_deref(), address) {
        let mut challenge = challenge.into_bytes();
        for fault in &state.faults {
            if let Fault::ChallengeEnd(more) = fault {
                challenge.extend_from_slice(more);
            }
        }
        let response = status(StatusCode::UNAUTHORIZED).header(WWW_AUTHENTICATE, challenge);
        return finish(response, body::full(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#));
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return not_found();
    };
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        return state.manifest(repository, reference);
    }
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return state.tags(repository);
    }
    match rest.split_once("/blobs/").and_then(|(_, digest)| digest.parse().ok()) {
        Some(digest) => {
            // Connections without blobs do not count.
            let connection = *number.get_or_init(|| {
                state.connections += 1;
                state.connections - 1
            });
            state.blob(&shared, &path, digest, range.as_deref(), connection)
        }
        None => not_found(),
    }
}

impl State {
    fn status_fault(&mut self, seen: &str) -> Option<Response<Body>> {
        for fault in &mut self.faults {
            if let Fault::Status { path, status: code, times, retry_after } = fault
                && *times > 0
                && seen.contains(path.as_str())
            {
                *times -= 1;
                let mut response =
                    status(StatusCode::from_u16(*code).expect("a test uses a valid status code"));
                if let Some(after) = retry_after {
                    response = response.header(RETRY_AFTER, &*after);
                }
                return Some(finish(response, body::full("failing on purpose")));
            }
        }
        None
    }

    /// Returns the challenge, unless the request is authorized.
    fn challenge(&mut self, authorization: Option<&str>, address: SocketAddr) -> Option<String> {
        match self.auth.as_ref()? {
            Auth::Basic(users) => {
                let passes = authorization.is_some_and(|given| users.iter().any(|user| basic(user) == given));
                (!passes).then(|| "Basic realm=\"test\"".to_owned())
            }
            Auth::Bearer { .. } => {
                let token = authorization.and_then(|given| given.strip_prefix("Bearer "));
                if let Some(left) =
                    token.and_then(|token| self.tokens.get_mut(token)).filter(|left| **left > 0)
                {
                    *left -= 1;
                    return None;
                }
                let own = format!("http://{address}/token");
                let realm = self.faults.iter().find_map(|fault| match fault {
                    Fault::Realm(realm) => Some(realm.clone()),
                    _ => None,
                });
                Some(format!("Bearer realm=\"{}\",service=\"test\"", realm.unwrap_or(own)))
            }
        }
    }

    fn token(&mut self, authorization: Option<&str>, form: &str) -> Response<Body> {
        let Some(Auth::Bearer { users, anonymous, uses }) = &self.auth else {
            return not_found();
        };
        for fault in &mut self.faults {
            if let Fault::RedirectTokens { to, status: code, times } = fault
                && *times > 0
            {
                *times -= 1;
                let code = StatusCode::from_u16(*code).expect("a test uses a valid status code");
                return finish(status(code).header(LOCATION, &*to), body::full("elsewhere"));
            }
        }
        let refresh = form.split('&').find_map(|field| field.strip_prefix("refresh_token="));
        let known = match (refresh, authorization) {
            (Some(refresh), _) => users.iter().any(|(_, password)| password == refresh),
            (None, Some(given)) => users.iter().any(|user| basic(user) == given),
            (None, None) => *anonymous,
        };
        if !known {
            return finish(status(StatusCode::UNAUTHORIZED), body::full("who are you?"));
        }
        self.issued += 1;
        let chosen = self.faults.iter().find_map(|fault| match fault {
            Fault::Token(token) => Some(token.clone()),
            _ => None,
        });
        let token = chosen.unwrap_or(format!("token-{}", self.issued));
        self.tokens.insert(token.clone(), *uses);
        let json = serde_json::json!({ "token": token, "expires_in": 300 });
        finish(status(StatusCode::OK), body::full(json.to_string()))
    }

    fn manifest(&self, repository: &str, reference: &str) -> Response<Body> {
        let Some((media_type, bytes)) = self.manifests.get(&(repository.to_owned(), reference.to_owned()))
        else {
            let is_known = self.manifests.keys().any(|(name, _)| name == repository);
            return absent(if is_known { "MANIFEST_UNKNOWN" } else { "NAME_UNKNOWN" });
        };
        let (mut media_type, mut body) = (media_type.clone(), body::full(bytes.clone()));
        let mut response = status(StatusCode::OK);
        for fault in &self.faults {
            match fault {
                Fault::ContentType(other) => media_type.clone_from(other),
                Fault::EndlessManifest => body = body::endless(),
                Fault::WrongManifest => body = body::full("{}"),
                Fault::DribbleManifests(every) => body = body::dribble(bytes.clone(), *every),
                Fault::Warning(text) => response = response.header(WARNING, text),
                _ => {}
            }
        }
        finish(response.header(CONTENT_TYPE, media_type), body)
    }

    /// Returns all tags of a repository. With [`Fault::DribbleTags`], it is slow.
    fn tags(&self, repository: &str) -> Response<Body> {
        let names = self.manifests.keys().filter(|(name, _)| name == repository).map(|(_, tag)| tag);
        let mut tags: Vec<&String> = names.filter(|tag| !tag.contains(':')).collect();
        tags.sort_unstable();
        let json = serde_json::json!({ "name": repository, "tags": tags }).to_string();
        let is_slow = self.faults.iter().any(|fault| matches!(fault, Fault::DribbleTags));
        let every = Duration::from_secs(1);
        let body = if is_slow { body::dribble(json.into(), every) } else { body::full(json) };
        finish(status(StatusCode::OK), body)
    }

    fn blob(
        &mut self,
        shared: &Shared,
        path: &str,
        digest: Digest,
        range: Option<&str>,
        connection: u64,
    ) -> Response<Body> {
        let Some(blob) = self.blobs.get(&digest).cloned() else {
            return not_found();
        };
        let requested = range.and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.min(blob.size - 1)))
        });
        let (mut first, mut end, mut code) = (0, blob.size, StatusCode::OK);
        let mut content_range = None;
        if let Some((from, last)) = requested.filter(|(from, last)| from <= last) {
            (first, end, code) = (from, last + 1, StatusCode::PARTIAL_CONTENT);
            content_range = Some(format!("bytes {from}-{last}/{}", blob.size));
        }
        let (mut broken, mut lengthened, mut encoding, mut pace) = (None, 0, None, None);
        let mut is_whole = false;
        for fault in &mut self.faults {
            match fault {
                Fault::ShortRanges { bytes } if content_range.is_some() => {
                    end = end.min(first + *bytes);
                    content_range = Some(format!("bytes {first}-{}/{}", end - 1, blob.size));
                }
                Fault::IgnoreRange => is_whole = true,
                Fault::IgnoreRangeOf(of) if *of == digest => is_whole = true,
                Fault::WrongContentRange { value, times } if *times > 0 && content_range.is_some() => {
                    *times -= 1;
                    content_range = Some(value.clone());
                }
                Fault::RangeRefused { times } if *times > 0 && content_range.is_some() => {
                    *times -= 1;
                    return finish(status(StatusCode::RANGE_NOT_SATISFIABLE), body::full(""));
                }
                Fault::RedirectBlobs { to, exact } => {
                    let to = if *exact { to.clone() } else { format!("{to}{path}?X-Signature=secret") };
                    return finish(
                        status(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, to),
                        body::full(""),
                    );
                }
                Fault::ContentEncoding(coding) => encoding = Some(coding.clone()),
                Fault::Length(by) => lengthened = *by,
                Fault::DropAt { digest: of, offsets } if *of == digest => {
                    broken = broken.or(take(offsets, first, end).map(|at| (at, Break::Drop)));
                }
                Fault::Dribble { digest: of, bytes, every } if *of == digest => pace = Some((*bytes, *every)),
                Fault::StallAt { digest: of, offsets } if *of == digest => {
                    broken = broken.or(take(offsets, first, end).map(|at| (at, Break::Stall)));
                }
                _ => {}
            }
        }
        let mut response = status(code);
        if is_whole {
            (first, end, content_range) = (0, blob.size, None);
            response = status(StatusCode::OK);
        } else {
            response = response.header(ACCEPT_RANGES, "bytes");
        }
        if let Some(value) = content_range {
            response = response.header(CONTENT_RANGE, value);
        }
        if let Some(coding) = encoding {
            response = response.header(CONTENT_ENCODING, coding);
        }
        if lengthened == 0 {
            response = response.header(CONTENT_LENGTH, end - first);
        }
        let end = end.saturating_add_signed(lengthened).max(first);
        finish(
            response,
            body::blob(
                Arc::clone(shared),
                digest,
                blob,
                first,
                end,
                body::Delivery { broken, pace, connection },
            ),
        )
    }
}

/// Removes and returns the first offset in `first..end`.
fn take(offsets: &mut Vec<u64>, first: u64, end: u64) -> Option<u64> {
    let at = offsets.iter().enumerate().filter(|(_, offset)| (first..end).contains(*offset));
    let (index, _) = at.min_by_key(|(_, offset)| **offset)?;
    Some(offsets.swap_remove(index))
}

fn basic((name, password): &(String, String)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

fn status(code: StatusCode) -> Builder {
    Response::builder().status(code)
}

fn finish(response: Builder, body: Body) -> Response<Body> {
    response.body(body).expect("a test sets valid headers")
}

fn not_found() -> Response<Body> {
    absent("NOT_FOUND")
}

fn absent(code: &str) -> Response<Body> {
    let json = serde_json::json!({ "errors": [{ "code": code }] });
    finish(status(StatusCode::NOT_FOUND), body::full(json.to_string()))
}
