//! The routes with the real service and store, and a builder that never ends.

mod extensions;
mod signed;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, Version, header};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::*;
use crate::api::auth::{SharedTenants, Tenants};
use crate::api::listen::Peer;
use crate::api::{Api, Parts};
use crate::caches::layout::Layout;
use crate::caches::record::RequestOrigin;
use crate::caches::runner::{Ended, Runner, RunnerJob};
use crate::caches::service::Service;
use crate::caches::store::sqlite::SqliteStore;
use crate::caches::volumes::host::HostVolumes;
use crate::config::Config;
use crate::telemetry::metrics::Metrics;
use larder_model::class::Class;
use larder_model::digest::hex;
use larder_model::event::{Failure, Line};
use larder_model::image_cache::TenantName;
use larder_model::job::Job;
use larder_model::plan_report::PlanReport;
use larder_model::size::ByteSize;
use larder_sys::clock::fake::FakeClock;

/// A runner whose builds run until they are stopped. Plans succeed, fail with `refusal`, or never end.
#[derive(Debug, Default)]
struct Endless {
    hangs: AtomicBool,
    hanging: AtomicUsize,
    refusal: Mutex<Option<Class>>,
}

impl Runner for Endless {
    fn build<'a>(
        &'a self,
        _: RunnerJob,
        _: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended> {
        Box::pin(async move {
            stop.cancelled().await;
            Ended::Stopped
        })
    }

    fn plan<'a>(
        &'a self,
        _: TenantName,
        _: RequestOrigin,
        _: Job,
        _: Vec<String>,
    ) -> BoxFuture<'a, Result<PlanReport, Vec<Failure>>> {
        if self.hangs.load(Ordering::Relaxed) {
            self.hanging.fetch_add(1, Ordering::Relaxed);
            return Box::pin(std::future::pending());
        }
        let refusal = *self.refusal.lock().unwrap();
        let failure = |class| Failure {
            class,
            images: Vec::new(),
            layer: None,
            message: "no such tag".into(),
            explanation: None,
        };
        Box::pin(async move {
            refusal.map_or_else(
                || Ok(PlanReport::new(Vec::new(), ByteSize(0))),
                |class| Err(vec![failure(class)]),
            )
        })
    }
}

struct Host {
    router: Router,
    service: Service,
    runner: Arc<Endless>,
    clock: Arc<FakeClock>,
    _dir: TempDir,
}

const TOKENS: [(&str, &str); 2] = [("team-a", "token-a"), ("team-b", "token-b")];

async fn host(more: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("ak");
    larder_sys::private::create(&secret, b"sk\n").unwrap();
    let hash = |text: &str| hex(&Sha256::digest(text));
    let mut text = format!("{more}\n[caches]\ncapacity = \"100GiB\"\nmax_per_tenant = 3\n");
    for (name, token) in TOKENS {
        let key = format!("{{ id = \"AK-{name}\", secret_file = {secret:?} }}");
        text += &format!(
            "[[tenant]]\nname = \"{name}\"\ntoken_sha256 = [\"{}\"]\naccess_keys = [{key}]\n",
            hash(token)
        );
    }
    let mut config = Config::parse(&text, []).unwrap();
    config.api.metrics_token_sha256 = vec![hash("scrape")];
    let clock = Arc::new(FakeClock::default());
    let runner = Arc::new(Endless::default());
    let metrics = Metrics::new();
    let volumes = HostVolumes::take(Layout::new(dir.path().join("state"))).unwrap();
    let store = SqliteStore::open(&volumes.layout().database(), false).unwrap();
    let parts = crate::caches::service::Parts {
        store: Arc::new(store),
        runner: Arc::clone(&runner) as Arc<dyn Runner>,
        volumes: Arc::new(volumes),
        clock: Arc::clone(&clock) as Arc<dyn larder_sys::clock::Clock>,
        metrics: metrics.clone(),
        progress_interval: None,
    };
    let service = Service::start(parts, &config).await.unwrap();
    let tenants = SharedTenants::new(Tenants::load(&config.api, &config.tenant, None).unwrap());
    let clock_of_api = Arc::clone(&clock) as Arc<dyn larder_sys::clock::Clock>;
    let parts = Parts { service: service.clone(), tenants, clock: clock_of_api, metrics };
    let router = Api::new(parts, config.api.clone()).router();
    Host { router, service, runner, clock, _dir: dir }
}

struct Answered {
    status: u16,
    headers: axum::http::HeaderMap,
    json: Value,
}

impl Answered {
    fn code(&self) -> &str {
        self.json["errorCode"].as_str().unwrap_or_default()
    }
}

impl Host {
    async fn raw(&self, peer: Peer, mut request: Request<Body>) -> Response<Body> {
        request.extensions_mut().insert(peer);
        if !request.headers().contains_key("host") {
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("larder"));
        }
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn send(&self, peer: Peer, request: Request<Body>) -> Answered {
        let response = self.raw(peer, request).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let id = head.headers["x-request-id"].to_str().unwrap();
        assert_eq!(id.len(), 32, "{id}");
        if head.status.as_u16() >= 400 && !body.is_empty() {
            assert_eq!(json["errorCode"], json["error_code"]);
            assert_eq!(json["errorMessage"], json["error_msg"]);
            assert!(json["errorCode"].is_string(), "{json}");
        }
        Answered { status: head.status.as_u16(), headers: head.headers, json }
    }

    async fn call(&self, token: &str, method: &str, uri: &str, body: Option<Value>) -> Answered {
        let request = Request::builder().method(method).uri(uri).header("X-Auth-Token", token);
        let request = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json;charset=UTF-8")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.send(tcp_client(), request.unwrap()).await
    }

    async fn created(&self, token: &str, name: &str) -> String {
        let answer = self.call(token, "POST", "/v5/imagecaches", Some(order(name))).await;
        assert_eq!(answer.status, 201, "{}", answer.json);
        answer.json["image_cache"]["id"].as_str().unwrap().to_owned()
    }
}

fn tcp_client() -> Peer {
    Peer::Tcp { address: "192.0.2.1:1".parse().unwrap() }
}

fn operator(admitted: bool) -> Peer {
    Peer::Unix { uid: 0, admitted }
}

fn order(name: &str) -> Value {
    json!({"name": name, "images": ["nginx:1"], "building_config": {"cluster": "c"}})
}

fn plain(method: &str, uri: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_four_calls_of_the_vendor_api() {
    let host = host("").await;
    let id = host.created("token-a", "web").await;
    let listed = host.call("token-a", "GET", "/v5/imagecaches", None).await;
    assert_eq!((listed.status, listed.json["image_caches"][0]["id"].as_str()), (200, Some(id.as_str())));
    for (query, count) in [("?name=web", 1), ("?name=we", 0), ("?name=", 0), ("?other=x&name=web", 1)] {
        let listed = host.call("token-a", "GET", &format!("/v5/imagecaches{query}"), None).await;
        assert_eq!(listed.json["image_caches"].as_array().unwrap().len(), count, "{query}");
    }
    let twice = host.call("token-a", "GET", "/v5/imagecaches?name=web&name=web", None).await;
    assert_eq!((twice.status, twice.code()), (400, "CCE.01400001"));
    let shown = host.call("token-a", "GET", &format!("/v5/imagecaches/{id}"), None).await;
    assert_eq!((shown.status, shown.json["image_cache"]["name"].as_str()), (200, Some("web")));
    let deleted = host.call("token-a", "DELETE", &format!("/v5/imagecaches/{id}"), None).await;
    assert_eq!((deleted.status, deleted.json["image_cache"]["status"].as_str()), (202, Some("Deleting")));
    host.service.stop().await;
}

#[tokio::test]
async fn refusals_of_a_create() {
    let host = host("").await;
    host.created("token-a", "web").await;
    let taken = host.call("token-a", "POST", "/v5/imagecaches", Some(order("web"))).await;
    assert_eq!((taken.status, taken.code()), (409, "CCE.01409001"));
    let mut large = order("large");
    large["image_cache_size"] = json!(400);
    let full = host.call("token-a", "POST", "/v5/imagecaches", Some(large)).await;
    assert_eq!((full.status, full.code()), (507, "CCE.01507001"));
    assert!(full.json["error_msg"].as_str().unwrap().contains("400 GiB"));
    host.created("token-a", "two").await;
    host.created("token-a", "three").await;
    let quota = host.call("token-a", "POST", "/v5/imagecaches", Some(order("four"))).await;
    assert_eq!((quota.status, quota.code()), (403, "CCE.01403101"));
    let long = order(&"a".repeat(2 << 20));
    let long = host.call("token-a", "POST", "/v5/imagecaches", Some(long)).await;
    assert_eq!((long.status, long.code()), (413, "CCE.01413001"));
    let typed = Request::post("/v5/imagecaches").header("X-Auth-Token", "token-a");
    let typed = typed.header(header::CONTENT_TYPE, "text/plain").body(Body::from(order("x").to_string()));
    assert_eq!(host.send(tcp_client(), typed.unwrap()).await.status, 415);
    let get = Request::get("/v5/imagecaches").header("X-Auth-Token", "token-a");
    let get = get.header(header::CONTENT_TYPE, "text/plain").body(Body::empty()).unwrap();
    assert_eq!(host.send(tcp_client(), get).await.status, 200, "the body of a GET is ignored");
    host.service.stop().await;
}

#[tokio::test]
async fn a_request_must_have_one_host() {
    let host = host("").await;
    let status = async |version: Version, hosts: &[&str]| {
        let mut request = plain("GET", "/healthz");
        *request.version_mut() = version;
        for value in hosts {
            request.headers_mut().append(header::HOST, HeaderValue::from_str(value).unwrap());
        }
        request.extensions_mut().insert(tcp_client());
        host.router.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    for good in ["h", "h:8080", "[::1]:80", ""] {
        assert_eq!(status(Version::HTTP_11, &[good]).await, 200, "{good}");
    }
    for bad in [&[][..], &["h", "h"], &["a b"], &["u@h"], &["h/x"]] {
        assert_eq!(status(Version::HTTP_11, bad).await, 400, "{bad:?}");
    }
    assert_eq!(status(Version::HTTP_10, &[]).await, 200);
    assert_eq!(status(Version::HTTP_2, &[]).await, 200);
    host.service.stop().await;
}

#[tokio::test]
async fn a_list_that_has_not_changed_is_not_sent_again() {
    let host = host("").await;
    let list = async |uri: &str, known: &str| {
        let request = Request::get(uri).header("X-Auth-Token", "token-a").header("if-none-match", known);
        let answer = host.raw(tcp_client(), request.body(Body::empty()).unwrap()).await;
        let tag = answer.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "private, no-cache");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.is_empty(), status == 304);
        (status, tag)
    };
    let (status, empty) = list("/v5/imagecaches", "\"x\"").await;
    assert_eq!(status, 200);
    for known in [empty.clone(), format!("\"x\", W/{empty}"), "*".to_owned()] {
        assert_eq!(list("/v5/imagecaches", &known).await, (304, empty.clone()), "{known}");
    }
    let id = host.created("token-a", "web").await;
    let (status, one) = list("/v5/imagecaches", &empty).await;
    assert!(status == 200 && one != empty);
    assert_eq!(list("/v5/imagecaches?name=web", &one).await.0, 304, "the same content");
    assert_eq!(list("/v5/imagecaches?name=other", &one).await, (200, empty.clone()));
    host.created("token-b", "web").await;
    assert_eq!(list("/v5/imagecaches", &one).await.0, 304, "the tag of another tenant");
    host.call("token-a", "DELETE", &format!("/v5/imagecaches/{id}"), None).await;
    assert_eq!(list("/v5/imagecaches", &one).await.0, 200);
    host.service.stop().await;
}

#[tokio::test]
async fn caches_of_other_tenants_are_not_found() {
    let host = host("").await;
    let id = host.created("token-a", "web").await;
    host.created("token-b", "web").await;
    let unknown = uuid::Uuid::new_v4().to_string();
    let escaped = id.replacen(&id[..1], &format!("%{:02x}", id.as_bytes()[0]), 1);
    for (method, path) in [
        ("GET", "/v5/imagecaches/ID"),
        ("DELETE", "/v5/imagecaches/ID"),
        ("GET", "/larder/v1/caches/ID"),
        ("GET", "/larder/v1/caches/ID/events"),
        ("POST", "/larder/v1/caches/ID/cancel"),
        ("POST", "/larder/v1/caches/ID/refresh"),
    ] {
        let mut answers = Vec::new();
        for id in [&unknown, &id, "nonsense", "a%2Fb%20c", "%ff", &id.to_uppercase(), &escaped] {
            let answer = host.call("token-b", method, &path.replace("ID", id), None).await;
            assert_eq!(answer.status, 404, "{method} {path} {id}");
            answers.push(answer.json);
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "the answers differ: {answers:?}");
    }
    let own = host.call("token-a", "GET", &format!("/v5/imagecaches/{escaped}"), None).await;
    assert_eq!(own.status, 404, "a cache has only one path");
    let listed = host.call("token-b", "GET", "/v5/imagecaches", None).await;
    assert_eq!(listed.json["image_caches"].as_array().unwrap().len(), 1);
    host.service.stop().await;
}

#[tokio::test]
async fn authentication_of_peers_and_tokens() {
    let host = host("").await;
    let status = async |peer: Peer, headers: &[(&str, &str)]| {
        let mut request = Request::get("/v5/imagecaches");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        host.send(peer, request.body(Body::empty()).unwrap()).await.status
    };
    assert_eq!(status(tcp_client(), &[]).await, 401);
    assert_eq!(status(tcp_client(), &[("x-auth-token", "unknown")]).await, 401);
    assert_eq!(
        status(tcp_client(), &[("x-auth-token", "scrape")]).await,
        401,
        "the token is only for metrics"
    );
    assert_eq!(status(tcp_client(), &[("x-auth-token", "token-a")]).await, 200);
    assert_eq!(status(tcp_client(), &[("x-auth-token", "token-a"), ("authorization", "x")]).await, 400);
    for token in ["Bearer token-a", "bearer  token-a"] {
        assert_eq!(status(tcp_client(), &[("authorization", token)]).await, 200, "{token}");
    }
    for token in ["Bearer unknown", "Bearer scrape", "Bearer ", "Bearer", "Basic dG9rZW4tYQ=="] {
        assert_eq!(status(tcp_client(), &[("authorization", token)]).await, 401, "{token}");
    }
    assert_eq!(status(operator(true), &[]).await, 200);
    assert_eq!(status(operator(false), &[]).await, 403);
    assert_eq!(
        status(operator(true), &[("x-auth-token", "unknown")]).await,
        401,
        "a given credential is checked"
    );
    assert_eq!(status(operator(false), &[("x-auth-token", "token-a")]).await, 200);
    host.service.stop().await;
}

#[tokio::test]
async fn a_repeated_create_gets_the_first_answer() {
    let host = host("").await;
    let send = async |name: &str, key: &str| {
        let request =
            Request::post("/v5/imagecaches").header("X-Auth-Token", "token-a").header("Idempotency-Key", key);
        let request = request.header("content-type", "application/json");
        host.send(tcp_client(), request.body(Body::from(order(name).to_string())).unwrap()).await
    };
    let first = send("web", "k").await;
    let again = send("web", "k").await;
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.json, again.json);
    let other = send("other", "k").await;
    assert_eq!((other.status, other.code()), (400, "CCE.01400103"));
    assert_eq!(send("web", "not visible").await.status, 400);
    host.service.stop().await;
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let host = host("").await;
    for path in ["/", "/v5", "/v5/imagecaches/", "//v5/imagecaches", "/v5//imagecaches", "/v5/%69magecaches"]
    {
        let answer = host.call("token-a", "GET", path, None).await;
        assert_eq!((answer.status, answer.code()), (404, "CCE.01404101"), "{path}");
    }
    for (method, path, allow) in [
        ("PUT", "/v5/imagecaches", ["GET", "POST"]),
        ("OPTIONS", "/v5/imagecaches/x", ["GET", "DELETE"]),
        ("POST", "/healthz", ["GET", "HEAD"]),
    ] {
        let answer = host.call("token-a", method, path, None).await;
        assert_eq!((answer.status, answer.code()), (405, "CCE.01405001"), "{method} {path}");
        let allowed = answer.headers[header::ALLOW].to_str().unwrap();
        assert!(allow.iter().all(|method| allowed.contains(method)), "{allowed}");
    }
    let head = host.call("token-a", "HEAD", "/v5/imagecaches", None).await;
    assert_eq!((head.status, head.json), (200, Value::Null));
    host.service.stop().await;
}

#[tokio::test]
async fn requests_over_the_rate_limit_are_refused() {
    let host = host("[api]\nrequests_per_second = 1\n").await;
    assert_eq!(host.call("token-a", "GET", "/v5/imagecaches", None).await.status, 200);
    let mut refused = None;
    for _ in 0..50 {
        let answer = host.call("token-a", "GET", "/v5/imagecaches", None).await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("50 requests at once exceed one per second");
    assert_eq!(
        (refused.code(), refused.headers[header::RETRY_AFTER].to_str().unwrap()),
        ("CCE.01429001", "1")
    );
    assert_eq!(
        host.call("token-b", "GET", "/v5/imagecaches", None).await.status,
        200,
        "each tenant has its own limit"
    );
    host.service.stop().await;
}

#[tokio::test]
async fn every_route_is_described() {
    let host = host("").await;
    let document = host.send(tcp_client(), plain("GET", "/openapi.json")).await.json;
    let source = include_str!("../router.rs");
    let routes: Vec<&str> =
        source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next()).collect();
    assert_eq!(routes.len(), 18);
    for route in routes {
        assert!(document["paths"][route].is_object(), "{route}");
    }
    let create = &document["paths"]["/v5/imagecaches"]["post"];
    let answers = create["responses"].as_object().unwrap();
    for code in crate::api::errors::Code::ALL {
        assert!(answers.contains_key(code.status().as_str()), "{code:?}");
    }
    assert_eq!(create["security"].as_array().unwrap().len(), 3);
    let request = &document["components"]["schemas"]["CreateRequest"];
    assert_eq!(request["required"], json!(["name", "images", "building_config"]));
    // A cache without a build has no timeline.
    let timeline = &document["components"]["schemas"]["BuildTimeline"]["properties"]["timeline"];
    assert_eq!(timeline["type"], json!(["object", "null"]));
    host.service.stop().await;
}
