//! Which credentials get access, and where credentials are never sent.

use super::*;

fn users() -> Vec<(String, String)> {
    vec![("anna".into(), "hunter2".into())]
}

fn bearer(uses: u32, anonymous: bool) -> fake::Auth {
    fake::Auth::Bearer { users: users(), anonymous, uses }
}

async fn pull(client: &Registry, server: &fake::Registry) -> Result<FetchedManifest, Error> {
    client.manifest(&image(server), ManifestReference::Tag("1")).await
}

async fn server(auth: fake::Auth) -> fake::Registry {
    let server = fake::Registry::start().await;
    server.put_manifest("team/app", "1", MANIFEST, "{}");
    server.require(auth);
    server
}

#[tokio::test]
async fn every_match_is_tried_in_order_then_anonymous() {
    let good = || user("anna", "hunter2");
    let bad = || user("bob", "wrong");
    let identity = || Credential::IdentityToken(Secret::new("hunter2"));
    for (auth, credentials, passes) in [
        (fake::Auth::Basic(users()), vec![good()], true),
        (fake::Auth::Basic(users()), vec![bad(), identity(), good()], true),
        (fake::Auth::Basic(users()), vec![bad()], false),
        (fake::Auth::Basic(users()), vec![], false),
        (bearer(9, false), vec![bad(), good()], true),
        (bearer(9, false), vec![bad(), identity()], true),
        (bearer(9, false), vec![bad()], false),
        (bearer(9, true), vec![bad()], true),
        (bearer(9, true), vec![], true),
    ] {
        let server = server(auth.clone()).await;
        let (client, listed, _) = client(fast(), credentials.clone());
        let got = pull(&client, &server).await;
        assert_eq!(got.is_ok(), passes, "{auth:?} {credentials:?}");
        assert_eq!(*listed.asked.lock().unwrap(), [format!("{}/team/app", server.host())]);
        if let Err(failed) = got {
            assert_eq!(failed.class(), Class::Denied);
            let text = failed.to_string();
            assert!(text.contains(&server.host()) && text.contains("team/app"), "{text}");
            assert!(!text.contains("wrong") && !text.contains("bob"), "{text}");
            let found = if credentials.is_empty() { "no credentials were found" } else { "refused" };
            assert!(text.contains(found), "{text}");
        }
    }
}

#[tokio::test]
async fn tokens_that_end_in_mid_pull_are_renewed_with_fresh_credentials() {
    let server = server(bearer(2, false)).await;
    let bytes = noise(100_000);
    let digest = server.put_blob(bytes.clone());
    let offsets = (1..10).map(|n| n * 10_000).collect();
    server.fault(fake::Fault::DropAt { digest: digest.clone(), offsets });
    let (client, listed, _) = client(fast(), vec![user("anna", "hunter2")]);
    pull(&client, &server).await.unwrap();
    assert_eq!(drain(client.blob(&image(&server), &descriptor(&digest, 100_000), 0)).await.unwrap(), bytes);
    // 11 successful requests, two per token.
    assert_eq!(server.requests("/token"), 6);
    assert_eq!(listed.asked.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn credentials_stay_home_on_redirects() {
    let (home, cdn) = (server(bearer(99, false)).await, fake::Registry::start().await);
    let bytes = noise(10_000);
    let digest = home.put_blob(bytes.clone());
    cdn.put_blob(bytes.clone());
    home.fault(fake::Fault::RedirectBlobs { to: format!("http://{}", cdn.host()), exact: false });
    let (client, ..) = client(fast(), vec![user("anna", "hunter2")]);
    assert_eq!(drain(client.blob(&image(&home), &descriptor(&digest, 10_000), 0)).await.unwrap(), bytes);
    assert_eq!(cdn.served(&digest), 10_000);
    assert!(cdn.seen().iter().all(|seen| seen.authorization.is_none()));
    assert!(home.seen().iter().any(|seen| seen.authorization.is_some()));
    // The error of a redirect target names its host but not the signature.
    cdn.fault(fake::Fault::Status { path: "blobs".into(), status: 400, times: 9, retry_after: None });
    let failed =
        drain(client.blob(&image(&home), &descriptor(&digest, 10_000), 0)).await.unwrap_err().to_string();
    assert!(failed.contains(&cdn.host()) && !failed.contains("secret"), "{failed}");
}

#[tokio::test]
async fn redirects_are_not_all_ascii() {
    let (home, cdn) = (fake::Registry::start().await, fake::Registry::start().await);
    let digest = home.put_blob(noise(10));
    cdn.put_blob(noise(10));
    let to = format!("http://{}/v2/t\u{e9}am/blobs/{digest}?name=\u{e9}", cdn.host());
    home.fault(fake::Fault::RedirectBlobs { to, exact: true });
    let (client, ..) = client(fast(), vec![]);
    assert_eq!(drain(client.blob(&image(&home), &descriptor(&digest, 10), 0)).await.unwrap(), noise(10));
    assert_eq!(cdn.requests("/v2/t%C3%A9am/blobs"), 1);
}

#[tokio::test]
async fn redirects_to_forbidden_places_are_refused() {
    let home = fake::Registry::start().await;
    let digest = home.put_blob(noise(10));
    let (client, ..) = client(fast(), vec![]);
    let own = format!("http://{}/v2/team/app/blobs/{digest}", home.host());
    for to in
        ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://0.0.0.0/", own.as_str()]
    {
        home.heal();
        home.fault(fake::Fault::RedirectBlobs { to: to.into(), exact: true });
        let failed = drain(client.blob(&image(&home), &descriptor(&digest, 10), 0)).await.unwrap_err();
        assert!(failed.to_string().contains("refused"), "{to}: {failed}");
    }
}

#[tokio::test]
async fn hostile_token_servers() {
    for (fault, class) in [
        (fake::Fault::Token("a\r\nX-Evil: 1".into()), Class::Corrupt),
        (fake::Fault::Token(String::new()), Class::Corrupt),
        (fake::Fault::Realm("http://169.254.169.254/token".into()), Class::Corrupt),
        (fake::Fault::Realm("http://registry.invalid/token".into()), Class::Corrupt),
        (fake::Fault::Realm("not a url".into()), Class::Corrupt),
    ] {
        let server = server(bearer(9, false)).await;
        server.fault(fault.clone());
        let (client, ..) = client(fast(), vec![user("anna", "hunter2")]);
        let failed = pull(&client, &server).await.unwrap_err();
        assert_eq!(failed.class(), class, "{fault:?}: {failed}");
        assert!(!failed.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn token_servers_redirect_within_their_origin() {
    let identity = Credential::IdentityToken(Secret::new("hunter2"));
    for (credentials, anonymous) in
        [(vec![user("anna", "hunter2")], false), (vec![identity], false), (vec![], true)]
    {
        for status in [301, 302, 303, 307, 308] {
            let server = server(bearer(9, anonymous)).await;
            let own = format!("http://{}/token?again", server.host());
            for to in ["/token?service=test", own.as_str()] {
                server.fault(fake::Fault::RedirectTokens { to: to.into(), status, times: 1 });
            }
            let (client, ..) = client(fast(), credentials.clone());
            pull(&client, &server).await.unwrap();
            assert_eq!(server.requests("/token"), 3, "{status} {credentials:?}");
        }
    }
}

#[tokio::test]
async fn token_servers_redirect_nowhere_else() {
    let other = server(bearer(9, false)).await;
    for to in [format!("http://{}/token", other.host()), "https://registry.invalid/token".into()] {
        let server = server(bearer(9, false)).await;
        server.fault(fake::Fault::RedirectTokens { to, status: 307, times: 1 });
        let (client, ..) = client(fast(), vec![user("anna", "hunter2")]);
        let failed = pull(&client, &server).await.unwrap_err();
        assert_eq!(failed.class(), Class::Corrupt, "{failed}");
        assert!(failed.to_string().contains("redirects to") && !failed.to_string().contains("hunter2"));
    }
    assert!(other.seen().is_empty());
    let server = server(bearer(9, false)).await;
    server.fault(fake::Fault::RedirectTokens { to: "/token".into(), status: 307, times: u32::MAX });
    let (client, ..) = client(fast(), vec![user("anna", "hunter2")]);
    let failed = pull(&client, &server).await.unwrap_err();
    assert!(failed.to_string().contains("more than 10 times"), "{failed}");
}

#[tokio::test]
async fn challenges_are_not_all_ascii() {
    for auth in [fake::Auth::Basic(users()), bearer(9, false)] {
        let server = server(auth).await;
        server.fault(fake::Fault::ChallengeEnd(b",error_description=\"acc\xe8s refus\xe9\"".to_vec()));
        let (client, ..) = client(fast(), vec![user("anna", "hunter2")]);
        pull(&client, &server).await.unwrap();
    }
}

#[tokio::test]
async fn tls_is_spoken_as_configured() {
    let server = fake::Registry::start().await;
    let tls = |ca: &[&str]| hosts::Tls { ca: ca.iter().map(Into::into).collect(), ..hosts::Tls::default() };
    for (tls, class, expected) in [
        (tls(&[]), Class::Invalid, "does not support TLS"),
        (tls(&["/nonexistent/ca.pem"]), Class::Invalid, "/nonexistent/ca.pem"),
        (hosts::Tls { skip_verify: true, ..hosts::Tls::default() }, Class::Invalid, "does not support TLS"),
    ] {
        let mut options = fast();
        let url = format!("https://{}", server.host());
        let upstream = hosts::Server { url, tls, ..hosts::Server::default() };
        let host = hosts::Host { server: upstream, ..hosts::Host::default() };
        options.hosts.registries.insert(server.host(), host);
        let (client, ..) = client(options, vec![user("anna", "hunter2")]);
        let failed = pull(&client, &server).await.unwrap_err();
        assert_eq!(failed.class(), class, "{failed}");
        assert!(failed.to_string().contains(expected), "{failed}");
    }
    // Nothing was sent in plain text.
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_tenant_cannot_reach_loopback_in_any_way() {
    let (home, other) = (server(bearer(99, true)).await, fake::Registry::start().await);
    let bytes = noise(10_000);
    let digest = home.put_blob(bytes.clone());
    other.put_blob(bytes.clone());
    other.put_manifest("team/app", "1", MANIFEST, "{}");
    let tenant = |allow: &[String]| {
        let allow = allow.iter().map(|range| range.parse().unwrap()).collect();
        Options { rules: Rules { reach: NetworkAccess::Tenant, allow, ..Rules::default() }, ..fast() }
    };
    let port = home.host().split_once(':').unwrap().1.to_owned();
    let refused = |failed: Error| {
        assert_eq!(failed.class(), Class::Invalid, "{failed}");
        assert!(failed.to_string().contains("registry.allow"), "{failed}");
    };

    // By address and by name.
    for host in [home.host(), format!("localhost:{port}")] {
        let (client, ..) = client(tenant(&[]), vec![]);
        let image: ImageReference = format!("{host}/team/app:1").parse().unwrap();
        refused(client.manifest(&image, ManifestReference::Tag("1")).await.unwrap_err());
    }
    assert!(home.seen().is_empty());

    // An allowed host can be reached. A mirror that is not allowed is skipped.
    let mut options = tenant(&[home.host()]);
    let mirror = hosts::Server { url: format!("http://{}", other.host()), ..hosts::Server::default() };
    let mirror = hosts::Mirror { server: mirror, prefix: None, resolve: true };
    let host = hosts::Host { mirrors: vec![mirror], ..hosts::Host::default() };
    options.hosts.registries.insert(home.host(), host);
    let (mirrored, ..) = client(options, vec![]);
    pull(&mirrored, &home).await.unwrap();
    let (allowed, ..) = client(tenant(&[home.host()]), vec![]);
    assert_eq!(drain(allowed.blob(&image(&home), &descriptor(&digest, 10_000), 0)).await.unwrap(), bytes);

    home.fault(fake::Fault::RedirectBlobs { to: format!("http://{}", other.host()), exact: false });
    refused(drain(allowed.blob(&image(&home), &descriptor(&digest, 10_000), 0)).await.unwrap_err());
    home.fault(fake::Fault::Realm(format!("http://{}/token", other.host())));
    let (fresh, ..) = client(tenant(&[home.host()]), vec![]);
    refused(pull(&fresh, &home).await.unwrap_err());
    assert!(other.seen().is_empty(), "{:?}", other.seen());
}
