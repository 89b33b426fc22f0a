//! The routes that are Larder's own.

use super::*;

#[tokio::test]
async fn extensions_of_the_vendor_api() {
    let host = host("").await;
    let id = host.created("token-a", "web").await;
    let details = host.call("token-a", "GET", &format!("/larder/v1/caches/{id}"), None).await;
    assert_eq!(details.json["image_cache"]["id"], id.as_str());
    assert_eq!(details.json["details"]["events"][0]["sequence"], 1);
    let refresh = host.call("token-a", "POST", &format!("/larder/v1/caches/{id}/refresh"), None).await;
    assert_eq!((refresh.status, refresh.code()), (409, "CCE.01409101"));
    let none = host.call("token-a", "GET", "/larder/v1/match?image=nginx%3A1", None).await;
    assert_eq!((none.status, none.json), (200, json!({"match": null})));
    for query in ["", "?image=UPPER", &format!("?{}", "image=a&".repeat(21))] {
        assert_eq!(host.call("token-a", "GET", &format!("/larder/v1/match{query}"), None).await.status, 400);
    }
    let cancelled = host.call("token-a", "POST", &format!("/larder/v1/caches/{id}/cancel"), None).await;
    assert_eq!((cancelled.status, cancelled.json["image_cache"]["status"].as_str()), (202, Some("Failed")));
    let plan = host.call("token-a", "POST", "/larder/v1/plan", Some(order("x"))).await;
    assert_eq!((plan.status, plan.json["plan"]["version"].as_u64()), (200, Some(1)));
    for (class, status) in
        [(Class::NotFound, 400), (Class::Denied, 400), (Class::Transient, 503), (Class::Internal, 500)]
    {
        *host.runner.refusal.lock().unwrap() = Some(class);
        let plan = host.call("token-a", "POST", "/larder/v1/plan", Some(order("x"))).await;
        assert_eq!(plan.status, status, "{class:?}");
    }
    host.service.stop().await;
}

#[tokio::test]
async fn a_plan_is_refused_for_the_same_reasons_as_a_create() {
    let host = host("").await;
    host.created("token-a", "web").await;
    let plan = async |token: &str, body: Value| {
        let answer = host.call(token, "POST", "/larder/v1/plan", Some(body)).await;
        (answer.status, answer.code().to_owned())
    };
    let answered = |status, code: &str| (status, code.to_owned());
    assert_eq!(plan("token-a", order("web")).await, answered(409, "CCE.01409001"));
    assert_eq!(plan("token-b", order("web")).await, answered(200, ""));
    let mut large = order("large");
    large["image_cache_size"] = json!(81);
    assert_eq!(plan("token-b", large).await, answered(507, "CCE.01507001"));
    for name in ["two", "three"] {
        host.created("token-a", name).await;
    }
    assert_eq!(plan("token-a", order("four")).await, answered(403, "CCE.01403101"));
    assert_eq!(plan("token-b", order("last")).await, answered(200, ""), "nothing was stored");
    host.service.stop().await;
}

#[tokio::test]
async fn plans_are_limited_per_tenant() {
    let host = host("").await;
    host.runner.hangs.store(true, Ordering::Relaxed);
    let plan = async |token| host.call(token, "POST", "/larder/v1/plan", Some(order("x"))).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let mut request = Request::post("/larder/v1/plan")
            .header("Host", "h")
            .header("X-Auth-Token", "token-a")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(order("x").to_string()))
            .unwrap();
        request.extensions_mut().insert(tcp_client());
        waiting.spawn(host.router.clone().oneshot(request));
    }
    let refused = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    while host.runner.hanging.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    host.runner.hangs.store(false, Ordering::Relaxed);
    assert_eq!(plan("token-b").await.status, 200, "each tenant has its own limit");
    assert_eq!(plan("token-a").await.code(), "CCE.01429001");
    waiting.shutdown().await;
    assert_eq!(plan("token-a").await.status, 200, "a disconnected client releases its plan");
    host.service.stop().await;
}

#[tokio::test]
async fn events_until_it_is_settled() {
    let host = host("").await;
    let id = host.created("token-a", "web").await;
    let follow = async |after: Option<&str>| {
        let mut request =
            Request::get(format!("/larder/v1/caches/{id}/events")).header("X-Auth-Token", "token-a");
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after);
        }
        host.raw(tcp_client(), request.body(Body::empty()).unwrap()).await
    };
    let response = follow(None).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut held = Vec::new();
    loop {
        let response = follow(None).await;
        match response.status().as_u16() {
            200 if held.len() < 100 => held.push(response),
            status => break assert_eq!(status, 429, "streams are bounded"),
        }
    }
    assert_eq!(host.call("token-b", "GET", "/v5/imagecaches", None).await.status, 200);
    drop(held);
    let resumed = follow(Some("1")).await;
    assert_eq!(follow(Some("x")).await.status(), 400);
    let cancelled = host.call("token-a", "POST", &format!("/larder/v1/caches/{id}/cancel"), None).await;
    assert_eq!(cancelled.status, 202);
    let whole = |response: Response<Body>| async {
        let body = tokio::time::timeout(Duration::from_secs(30), response.into_body().collect()).await;
        String::from_utf8(body.expect("the stream ends").unwrap().to_bytes().to_vec()).unwrap()
    };
    let events = whole(response).await;
    assert!(events.contains("event: status\nid: 1\ndata: {\"sequence\":1,"), "{events}");
    assert!(events.contains("\"status\":\"Failed\""), "{events}");
    let resumed = whole(resumed).await;
    assert!(!resumed.contains("\"sequence\":1,") && resumed.contains("Failed"), "{resumed}");
    host.service.stop().await;
}

#[tokio::test]
async fn probes_and_metrics() {
    let host = host("").await;
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(host.send(tcp_client(), plain("GET", path)).await.status, 200, "{path}");
    }
    assert_eq!(host.send(operator(true), plain("GET", "/metrics")).await.status, 200);
    assert_eq!(host.send(operator(false), plain("GET", "/metrics")).await.status, 401);
    assert_eq!(host.send(tcp_client(), plain("GET", "/metrics")).await.status, 401);
    assert_eq!(
        host.call("token-a", "GET", "/metrics", None).await.status,
        401,
        "metrics are not available to tenants"
    );
    assert_eq!(host.call("scrape", "GET", "/metrics", None).await.status, 200);
    host.service.stop().await;
    let stopped = host.send(tcp_client(), plain("GET", "/readyz")).await;
    assert_eq!((stopped.status, stopped.code()), (503, "CCE.01503001"));
    let create = host.call("token-a", "POST", "/v5/imagecaches", Some(order("late"))).await;
    assert_eq!(create.status, 503);
}
