//! Requests with a signature.

use super::*;

#[tokio::test]
async fn the_date_of_a_signed_request_is_checked() {
    use larder_sys::clock::Clock as _;
    let host = host("").await;
    let send = async |secret: &str, access: &str, body: &str| {
        let date = host.clock.now().format("%Y%m%dT%H%M%SZ").to_string();
        let headers = [("host".to_owned(), "h:1".to_owned()), ("x-sdk-date".to_owned(), date.clone())];
        let signed = larder_model::signature::Signable {
            method: "POST",
            path: "/v5/imagecaches",
            query: &[],
            headers: &headers,
            body: Sha256::digest(order("signed").to_string()).into(),
        };
        let signature = hex(&signed.sign(&date, &larder_model::credential::Secret::new(secret)));
        let claim =
            format!("SDK-HMAC-SHA256 Access={access}, SignedHeaders=host;x-sdk-date, Signature={signature}");
        let request = Request::post("/v5/imagecaches").header("host", "h:1").header("x-sdk-date", &date);
        let request = request.header("authorization", claim).header("content-type", "application/json");
        host.send(tcp_client(), request.body(Body::from(body.to_owned())).unwrap()).await
    };
    let body = order("signed").to_string();
    let wrong = send("another", "AK-team-a", &body).await;
    let unknown = send("sk", "AK-nobody", &body).await;
    assert_eq!((wrong.status, &wrong.json), (401, &unknown.json));
    assert_eq!(wrong.headers[header::WWW_AUTHENTICATE], "SDK-HMAC-SHA256");
    assert_eq!(send("sk", "AK-team-a", &order("tampered").to_string()).await.status, 401);
    assert_eq!(send("sk", "AK-team-a", &body).await.status, 201);
    host.service.stop().await;
}

/// A signed request with the current date. A clone is a replay by an eavesdropper.
struct SignedRequest {
    method: &'static str,
    path: String,
    body: String,
    date: String,
    signature: String,
}

impl SignedRequest {
    fn new(host: &Host, method: &'static str, path: &str, body: &str) -> Self {
        use larder_sys::clock::Clock as _;
        let date = host.clock.now().format("%Y%m%dT%H%M%SZ").to_string();
        let headers = [("host".to_owned(), "h:1".to_owned()), ("x-sdk-date".to_owned(), date.clone())];
        let signed = larder_model::signature::Signable {
            method,
            path,
            query: &[],
            headers: &headers,
            body: Sha256::digest(body).into(),
        };
        let signature = hex(&signed.sign(&date, &larder_model::credential::Secret::new("sk")));
        SignedRequest { method, path: path.to_owned(), body: body.to_owned(), date, signature }
    }

    async fn send(&self, host: &Host, more: &[(&str, &str)]) -> Answered {
        let claim = format!(
            "SDK-HMAC-SHA256 Access=AK-team-a, SignedHeaders=host;x-sdk-date, Signature={}",
            self.signature
        );
        let mut request = Request::builder().method(self.method).uri(&self.path).header("host", "h:1");
        for (name, value) in more.iter().chain(&[("content-type", "application/json")]) {
            request = request.header(*name, *value);
        }
        let request = request.header("x-sdk-date", &self.date).header("authorization", claim);
        host.send(tcp_client(), request.body(Body::from(self.body.clone())).unwrap()).await
    }
}

#[tokio::test]
async fn a_signed_create_is_carried_out_once() {
    let host = host("").await;
    let create = SignedRequest::new(&host, "POST", "/v5/imagecaches", &order("web").to_string());
    let first = create.send(&host, &[]).await;
    assert_eq!(first.status, 201, "{}", first.json);
    let again = create.send(&host, &[]).await;
    assert_eq!((again.status, again.code()), (409, "CCE.01409001"), "the name is taken");
    let id = first.json["image_cache"]["id"].as_str().unwrap().to_owned();
    let refresh = SignedRequest::new(&host, "POST", &format!("/larder/v1/caches/{id}/refresh"), "");
    assert_eq!(refresh.send(&host, &[]).await.status, 409);
    assert_eq!(refresh.send(&host, &[]).await.status, 401);

    let delete = SignedRequest::new(&host, "DELETE", &format!("/v5/imagecaches/{id}"), "");
    assert_eq!(delete.send(&host, &[]).await.status, 202);
    for _ in 0..500 {
        if host.call("token-a", "GET", &format!("/v5/imagecaches/{id}"), None).await.status == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for more in [&[][..], &[("idempotency-key", "of-an-attacker")]] {
        let replayed = create.send(&host, more).await;
        assert_eq!((replayed.status, replayed.code()), (401, "CCE.01401001"), "{}", replayed.json);
        assert!(replayed.json["errorMessage"].as_str().unwrap().contains("used before"), "{}", replayed.json);
    }
    let listed = host.call("token-a", "GET", "/v5/imagecaches", None).await;
    assert_eq!(listed.json["image_caches"], json!([]));
    for name in ["one", "two", "three"] {
        host.created("token-a", name).await;
    }
    let refused = SignedRequest::new(&host, "POST", "/v5/imagecaches", &order("four").to_string());
    for _ in 0..2 {
        let answer = refused.send(&host, &[]).await;
        assert_eq!(
            (answer.status, answer.code()),
            (403, "CCE.01403101"),
            "the reason for the refusal is the same"
        );
    }
    let listed = host.call("token-a", "GET", "/v5/imagecaches", None).await;
    let id = listed.json["image_caches"][0]["id"].as_str().unwrap();
    host.call("token-a", "DELETE", &format!("/v5/imagecaches/{id}"), None).await;
    for _ in 0..500 {
        if host.call("token-a", "GET", &format!("/v5/imagecaches/{id}"), None).await.status == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(refused.send(&host, &[]).await.status, 401, "the refused request cannot be used later");
    // With a new signature it is a different request.
    host.clock.pass(Duration::from_secs(1));
    let fresh = SignedRequest::new(&host, "POST", "/v5/imagecaches", &order("web").to_string());
    assert_eq!(fresh.send(&host, &[]).await.status, 201);
    host.service.stop().await;
}
