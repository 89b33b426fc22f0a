//! Signing in with a credential of the API, and signing out.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};

use super::form::Form;
use super::guard::{self, COOKIE, Posted, cookie, foreign};
use super::respond::{failed, go_to, page as respond_with, with_page};
use super::{Ui, frame, text};
use crate::api::errors::{Code, Problem};
use crate::api::listen::Peer;
use crate::api::pages::Proof;
use larder_model::credential::Secret;

/// Shows the form for a credential.
pub(super) async fn page() -> Response {
    respond_with(form(None))
}

/// Starts a session and sets its cookie.
pub(super) async fn sign_in(State(ui): State<Arc<Ui>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    // Without a session there is no token, so the browser must not report another site.
    let is_null = parts.headers.get(header::ORIGIN).is_some_and(|origin| origin == "null");
    match guard::origin(&parts) {
        guard::Origin::Own => {}
        guard::Origin::Unknown if !is_null => {}
        _ => return failed(foreign()),
    }
    let Some(peer) = parts.extensions.get::<Peer>().cloned() else {
        return failed(Problem::internal("the request lacks its peer extension"));
    };
    let read = ui.app.read_form(&parts.extensions).await;
    let proof = read.and_then(|body| proof(&Form::of_body(&parts.headers, &body)?));
    let proof = match proof {
        Ok(proof) => proof,
        Err(problem) => return failed(problem),
    };
    let tenants = ui.app.tenants();
    let Some(tenant) = tenants.of_proof(&proof) else {
        let message = "This token or access key is not valid.";
        let problem = ui.app.failed(&peer, Problem::new(Code::Unauthenticated, message)).await;
        let markup = form(Some(problem.message()));
        return with_page(problem, markup);
    };
    if let Err(problem) = ui.app.admit(tenant, &parts.extensions) {
        return failed(problem);
    }
    if let Some(old) = cookie(&parts.headers) {
        ui.sessions.end(&old);
    }
    let secure = ui.app.is_encrypted(&peer);
    let started = ui.sessions.start(tenant, proof, ui.now());
    (set_cookie(&started.text(), secure), go_to("/ui/")).into_response()
}

/// Ends the session and deletes its cookie.
pub(super) async fn sign_out(State(ui): State<Arc<Ui>>, posted: Posted) -> Response {
    if let Some(cookie) = &posted.visitor.cookie {
        ui.sessions.end(cookie);
    }
    let mut headers = set_cookie("", false);
    if let Ok(value) =
        HeaderValue::from_str(&format!("{COOKIE}=; Path=/ui; Max-Age=0; HttpOnly; SameSite=Strict"))
    {
        headers.insert(header::SET_COOKIE, value);
    }
    (headers, go_to("/ui/sign-in")).into_response()
}

fn set_cookie(value: &str, secure: bool) -> HeaderMap {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; Path=/ui; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text)
        .map(|value| HeaderMap::from_iter([(header::SET_COOKIE, value)]))
        .unwrap_or_default()
}

/// Reads the credential of the form: a token, or an access key and its secret key.
fn proof(form: &Form) -> Result<Proof, Problem> {
    let (access, secret) = (form.get("access"), form.get("secret"));
    match (form.get("token"), access, secret) {
        ("", "", _) | ("", _, "") => {
            Err(Problem::invalid("enter a token, or an access key and its secret key"))
        }
        ("", access, secret) => Ok(Proof::of_key(access, &Secret::new(secret))),
        (token, "", "") => Ok(Proof::of_token(&Secret::new(token))),
        _ => Err(Problem::invalid("enter either a token or an access key, not both")),
    }
}

fn form(problem: Option<&str>) -> Markup {
    frame::plain(
        "Sign in",
        html! {
            h1 { "Sign in" }
            @if let Some(problem) = problem { div.problem role="alert" { (text::lines(problem)) } }
            p { "Use a credential of the API. The browser gets a session that ends after an hour without use." }
            div.choices {
                form.card method="post" action="/ui/sign-in" {
                    h2 { "With a token" }
                    label for="token" { "Token" }
                    // Browsers store a password under a user name. Without a name, the field is not sent.
                    input type="text" value="token" autocomplete="username" hidden readonly;
                    input #token type="password" name="token" required autocomplete="current-password";
                    button.primary { "Sign in" }
                }
                form.card method="post" action="/ui/sign-in" {
                    h2 { "With an access key" }
                    label for="access" { "Access key" }
                    input #access type="text" name="access" required autocomplete="username" spellcheck="false";
                    label for="secret" { "Secret key" }
                    input #secret type="password" name="secret" required autocomplete="current-password";
                    button.primary { "Sign in" }
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_credential_is_accepted() {
        let of = |query: &str| proof(&Form::parse(query).unwrap());
        assert_eq!(of("token=a").unwrap(), Proof::of_token(&Secret::new("a")));
        assert_eq!(of("access=k&secret=s").unwrap(), Proof::of_key("k", &Secret::new("s")));
        for bad in ["", "access=k", "secret=s", "token=a&access=k", "token=+"] {
            assert_eq!(of(bad).unwrap_err().code(), Code::Invalid, "{bad}");
        }
    }
}
