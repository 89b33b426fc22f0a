//! HTTP requests and responses (apiserver pkg/endpoints/handlers).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WARNING};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};

use super::access::Attributes;
use super::body::Body;
use super::fault::{Effect, Seen};
use super::kind::Kind;
use super::read::{self, ListOptions, Scope};
use super::route::{Query, Route};
use super::select::Selection;
use super::shared::Shared;
use super::status::Refusal;
use super::store::State;
use super::write::{DeleteOptions, Deleted, PatchBody, Unknown, WriteOptions, Written};
use super::{discovery, logs, watch};

/// Maximum size of a request body, in bytes (apiserver pkg/server/config.go, MaxRequestBodyBytes).
const MAX_BODY: usize = 3 << 20;

/// A parsed request for a resource.
struct Call {
    route: Route,
    query: Query,
    verb: &'static str,
    kind: Arc<Kind>,
    user: String,
    manager: String,
    media_type: String,
    partial: bool,
    body: Bytes,
}

/// Content of a response.
struct Answer {
    code: u16,
    body: Value,
    warnings: Vec<String>,
}

impl Answer {
    fn ok(body: Value) -> Self {
        Answer { code: 200, body, warnings: Vec::new() }
    }
}

impl From<Written> for Answer {
    fn from(written: Written) -> Self {
        Answer {
            code: if written.created { 201 } else { 200 },
            body: written.object.as_ref().clone(),
            warnings: written.warnings,
        }
    }
}

/// Responds to a request. An error closes the connection without a response.
pub(super) async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let (head, incoming) = request.into_parts();
    let Ok(body) = Limited::new(incoming, MAX_BODY).collect().await else {
        let why = format!("limit is {MAX_BODY}");
        return Ok(refused(&Refusal::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: {why}"),
        )));
    };
    let call = match parse_request(&head, body.to_bytes(), &shared) {
        Ok(Parsed::Call(call)) => call,
        Ok(Parsed::Answer(answer)) => return Ok(json_response(answer)),
        Err(refusal) => return Ok(refused(&refusal)),
    };
    let harm = shared.write(|state| {
        let seen = Seen {
            verb: call.verb,
            resource: call.route.resource(),
            namespace: call.route.namespace.clone(),
            name: call.route.name.clone(),
            user: call.user.clone(),
        };
        let harm = state.faults.meet(&seen);
        state.faults.seen.push(seen);
        harm
    });
    match &harm {
        Some(Effect::Refused) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Effect::Slow(by)) => tokio::time::sleep(*by).await,
        Some(harm) => {
            if let Some(refusal) = harm.refusal() {
                return Ok(refused(&refusal));
            }
        }
        None => {}
    }
    let done = execute(&call, &shared, harm.as_ref());
    if matches!(harm, Some(Effect::NoAnswer)) {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(done.unwrap_or_else(|refusal| refused(&refusal)))
}

enum Parsed {
    Call(Box<Call>),
    Answer(Answer),
}

fn parse_request(head: &Parts, body: Bytes, shared: &Shared) -> Result<Parsed, Refusal> {
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let user = shared.read(|state| state.tokens.user(header(AUTHORIZATION)))?;
    if head.method == Method::GET
        && let Some(document) = shared.read(|state| discovery::document(state, head.uri.path()))
    {
        return Ok(Parsed::Answer(Answer::ok(document)));
    }
    let route = Route::read(head.uri.path()).ok_or_else(Refusal::no_route)?;
    let query = Query::read(head.uri.query());
    let kind = shared.read(|state| state.kind(&route.group, &route.version, &route.plural))?;
    let verb = route.verb(&head.method, &query).ok_or_else(Refusal::method_not_allowed)?;
    let of_all = kind.namespaced && route.namespace.is_empty();
    if (of_all && !matches!(verb, "list" | "watch")) || (!kind.namespaced && !route.namespace.is_empty()) {
        return Err(Refusal::no_route());
    }
    let manager = match query.get("fieldManager") {
        // apiserver pkg/endpoints/handlers/create.go, managerOrUserAgent.
        "" => header(USER_AGENT).unwrap_or("unknown").split('/').next().unwrap_or_default(),
        given => given,
    };
    Ok(Parsed::Call(Box::new(Call {
        manager: manager.to_owned(),
        media_type: header(CONTENT_TYPE).unwrap_or("application/json").to_owned(),
        partial: header(ACCEPT).is_some_and(|accept| accept.contains("as=PartialObjectMetadata")),
        route,
        query,
        verb,
        kind,
        user,
        body,
    })))
}

fn execute(call: &Call, shared: &Arc<Shared>, harm: Option<&Effect>) -> Result<Response<Body>, Refusal> {
    let Call { route, query, kind, .. } = call;
    let selection = Selection::new(kind, query.get("labelSelector"), query.get("fieldSelector"))?;
    let name = selection.name().unwrap_or(&route.name).to_owned();
    let wanted = Attributes {
        verb: call.verb,
        kind,
        subresource: &route.subresource,
        namespace: &route.namespace,
        name: &name,
    };
    shared.read(|state| state.authorize(&call.user, wanted))?;
    let scope = Scope { kind: Arc::clone(kind), namespace: route.namespace.clone(), selection };
    if call.verb == "watch" {
        let body = watch::body(shared, scope, query, call.partial, harm)?;
        return Ok(response(200, "application/json", body));
    }
    if kind.is("", "pods") && route.subresource == "log" && call.verb == "get" {
        let body = shared.read(|state| logs::body(state, route, query, harm))?;
        return Ok(response(200, "text/plain", body));
    }
    if kind.is("", "serviceaccounts") && route.subresource == "token" && call.verb == "create" {
        let request = json_body(&call.body)?;
        let made = shared.write(|state| state.request_token(&route.namespace, &route.name, request))?;
        return Ok(json_response(Answer { code: 201, ..Answer::ok(made) }));
    }
    let mut answer = shared.write(|state| change(state, call, &scope))?;
    if call.partial {
        answer.body = match answer.body["items"].take() {
            Value::Array(items) => json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                "metadata": answer.body["metadata"], "items": items.iter().map(read::partial).collect::<Vec<_>>(),
            }),
            _ => read::partial(&answer.body),
        };
    }
    Ok(json_response(answer))
}

fn change(state: &mut State, call: &Call, scope: &Scope) -> Result<Answer, Refusal> {
    let Call { route, query, kind, .. } = call;
    let (namespace, name) = (route.namespace.as_str(), route.name.as_str());
    let status = match route.subresource.as_str() {
        "" => false,
        "status" if kind.status => true,
        _ => return Err(Refusal::new(404, "NotFound", "the server could not find the requested resource")),
    };
    let how = WriteOptions {
        manager: call.manager.clone(),
        force: query.flag("force"),
        dry_run: query.get("dryRun") == "All",
        unknown: match query.get("fieldValidation") {
            "Strict" => Unknown::Refuse,
            "Ignore" => Unknown::Drop,
            _ => Unknown::Warn,
        },
        whole: false,
    };
    let id = kind.id(namespace, name);
    match call.verb {
        "get" => Ok(Answer::ok(state.read(kind, namespace, name)?.as_ref().clone())),
        "list" => {
            let options = ListOptions {
                limit: query.get("limit").parse().unwrap_or(0),
                continues: query.get("continue").to_owned(),
                version: query.get("resourceVersion").to_owned(),
                exact: query.get("resourceVersionMatch") == "Exact",
            };
            state.list(scope, &options).map(Answer::ok)
        }
        "create" if status => Err(Refusal::method_not_allowed()),
        "create" => state.create(kind, namespace, json_body(&call.body)?, &how).map(Answer::from),
        "update" => state.replace(kind, &id, status, json_body(&call.body)?, &how).map(Answer::from),
        "patch" => {
            let patch = PatchBody::read(&call.media_type, &call.body)?;
            let how = match patch {
                // An apply must name its manager; the user agent does not replace it.
                PatchBody::Apply(_) => WriteOptions { manager: query.get("fieldManager").to_owned(), ..how },
                _ => how,
            };
            if state.patch_creates(&id, &patch) && !status {
                let wanted = Attributes { verb: "create", kind, subresource: "", namespace, name };
                state.authorize(&call.user, wanted)?;
            }
            state.patch(kind, &id, status, patch, &how).map(Answer::from)
        }
        "delete" if status => Err(Refusal::method_not_allowed()),
        "delete" => Ok(deleted(state.delete(kind, &id, &DeleteOptions::read(&call.body)?)?)),
        "deletecollection" => {
            let options = DeleteOptions::read(&call.body)?;
            let list = state.list(scope, &ListOptions::default())?;
            for object in state.select(scope) {
                let id =
                    kind.id(super::object::meta(&object, "namespace"), super::object::meta(&object, "name"));
                state.delete(kind, &id, &options)?;
            }
            Ok(Answer::ok(list))
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn deleted(deleted: Deleted) -> Answer {
    match deleted {
        Deleted::Gone(status) => Answer::ok(status),
        Deleted::Marked(object) => Answer::ok(object.as_ref().clone()),
    }
}

fn json_body(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body)
        .map_err(|e| Refusal::bad_request(format!("the object provided is unrecognized (must be JSON): {e}")))
}

fn json_response(answer: Answer) -> Response<Body> {
    let mut response = response(answer.code, "application/json", full(answer.body.to_string()));
    for warning in answer.warnings {
        // RFC 7234, 5.5: code 299, no agent, quoted text.
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = format!("299 - \"{text}\"").parse() {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}

fn refused(refusal: &Refusal) -> Response<Body> {
    if refusal.reason.is_empty() {
        return response(refusal.code, "text/plain; charset=utf-8", full(refusal.message.clone()));
    }
    let mut response = response(refusal.code, "application/json", full(refusal.body().to_string()));
    if let Some(after) = refusal.retry_after {
        response.headers_mut().insert(RETRY_AFTER, Duration::from_secs(after.into()).as_secs().into());
    }
    response
}

pub(super) fn response(code: u16, media_type: &'static str, body: Body) -> Response<Body> {
    let builder = Response::builder().status(code).header(CONTENT_TYPE, media_type);
    builder.body(body).expect("the status and the headers are valid")
}

pub(super) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}
