//! The person behind a request: the tenant of a session, or a peer of the Unix socket.
//!
//! A page takes a [`Visitor`], an action takes a [`Posted`]. Both are the only way to get a tenant.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse as _, Redirect, Response};

use super::Ui;
use super::form::Form;
use super::respond::failed;
use super::session::Secret256;
use crate::api::errors::{Code, Problem};
use crate::api::host;
use crate::api::listen::Peer;
use crate::api::pages::has_credential;
use crate::config::tenant::ADMIN;
use larder_model::image_cache::TenantName;

/// Name of the cookie of a session.
pub(super) const COOKIE: &str = "larder_session";
/// Name of the field with the token of a form.
pub(super) const TOKEN: &str = "csrf";
/// Path of the stream of events. It does not extend the session either.
const STREAM: &str = "/ui/events";
/// The header by which the script requests only a part of a page. Such a request does not extend the session.
const FRAGMENT: HeaderName = HeaderName::from_static("x-larder-fragment");
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A person who can read the pages of a tenant.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    /// The tenant whose caches are shown.
    pub(super) tenant: TenantName,
    /// The token of the forms.
    pub(super) token: Secret256,
    /// The cookie of the session. `None` for a peer of the Unix socket.
    pub(super) cookie: Option<String>,
    /// The query of the request.
    pub(super) query: Form,
    /// `true` if the script requests only a part of the page.
    pub(super) is_fragment: bool,
}

impl Visitor {
    /// Returns `true` for the tenant `admin`.
    pub(super) fn is_admin(&self) -> bool {
        self.tenant.as_str() == ADMIN
    }
}

/// A form that a person sent from one of the pages.
#[derive(Debug)]
pub(super) struct Posted {
    /// The sender of the form.
    pub(super) visitor: Visitor,
    /// The fields of the form.
    pub(super) form: Form,
}

impl FromRequestParts<Arc<Ui>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, ui: &Arc<Ui>) -> Result<Self, Response> {
        let visitor = identify(ui, parts).ok_or_else(|| sign_in_first(&parts.headers))?;
        ui.app.admit(&visitor.tenant, &parts.extensions).map_err(failed)?;
        Ok(visitor)
    }
}

impl FromRequest<Arc<Ui>> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, ui: &Arc<Ui>) -> Result<Self, Response> {
        let (mut parts, _) = request.into_parts();
        let origin = origin(&parts);
        if origin == Origin::Foreign {
            return Err(failed(foreign()));
        }
        let visitor = Visitor::from_request_parts(&mut parts, ui).await?;
        let body = ui.app.read_form(&parts.extensions).await.map_err(failed)?;
        let form = Form::of_body(&parts.headers, &body).map_err(failed)?;
        if !visitor.token.is(form.get(TOKEN)) {
            let message = "the form is not from this session: open the page again and repeat";
            return Err(failed(Problem::new(Code::Forbidden, message)));
        }
        Ok(Posted { visitor, form })
    }
}

/// Returns the error for a form of another site.
pub(super) fn foreign() -> Problem {
    Problem::new(Code::Forbidden, "the form was sent from another site")
}

/// Returns the visitor. `None` without a session and without an admitted peer.
fn identify(ui: &Ui, parts: &Parts) -> Option<Visitor> {
    let query = Form::parse(parts.uri.query().unwrap_or_default()).unwrap_or_default();
    let is_fragment = parts.headers.contains_key(FRAGMENT);
    if let Some(cookie) = cookie(&parts.headers) {
        let is_use = !is_fragment && parts.uri.path() != STREAM;
        if let Some(session) = ui.sessions.find(&cookie, ui.now(), is_use) {
            if ui.app.tenants().of_proof(&session.proof) == Some(&session.tenant) {
                let (tenant, token) = (session.tenant, session.token);
                return Some(Visitor { tenant, token, cookie: Some(cookie), query, is_fragment });
            }
            // The configuration no longer has the credential.
            ui.sessions.end(&cookie);
        }
    }
    let admitted = parts.extensions.get::<Peer>().is_some_and(Peer::is_admitted);
    if admitted
        && !has_credential(&parts.headers)
        && host::of(parts).is_some_and(|host| host::is_local(&host))
    {
        let tenant = ui.app.tenants().admin().clone();
        return Some(Visitor { tenant, token: ui.socket_token.clone(), cookie: None, query, is_fragment });
    }
    None
}

fn sign_in_first(headers: &HeaderMap) -> Response {
    if headers.contains_key(FRAGMENT)
        || headers.get(header::ACCEPT).is_some_and(|it| it == "text/event-stream")
    {
        return failed(Problem::new(Code::Unauthenticated, "sign in first"));
    }
    Redirect::to("/ui/sign-in").into_response()
}

/// Returns the cookie of the session.
pub(super) fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut ours = pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned());
    ours.next()
}

/// The site from which a form was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A page of this daemon.
    Own,
    /// Another site.
    Foreign,
    /// The client does not report it: it is no browser, or an old one.
    Unknown,
}

/// Returns the site from which a form was sent. A page cannot forge either header.
pub(super) fn origin(parts: &Parts) -> Origin {
    let text = |name: &HeaderName| parts.headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text(&SITE), text(&header::ORIGIN)) {
        (Some("same-origin"), _) => Origin::Own,
        (Some(_), _) => Origin::Foreign,
        // With the policy `no-referrer`, browsers send this instead of the origin of a form.
        (None, Some("null") | None) => Origin::Unknown,
        (None, Some(origin)) => {
            let from = origin.split_once("://").map(|(_, rest)| rest);
            let to = host::of(parts);
            let same = from.zip(to.as_ref()).is_some_and(|(from, to)| to.as_str().eq_ignore_ascii_case(from));
            if same { Origin::Own } else { Origin::Foreign }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/ui/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).unwrap().into_parts().0
    }

    #[test]
    fn the_site_of_a_form() {
        let of = |headers: &[(&str, &str)]| {
            let mut all = vec![("host", "localhost:80")];
            all.extend(headers);
            origin(&parts(&all))
        };
        assert_eq!(of(&[]), Origin::Unknown);
        assert_eq!(of(&[("origin", "null")]), Origin::Unknown);
        assert_eq!(of(&[("origin", "http://localhost:80")]), Origin::Own);
        assert_eq!(of(&[("sec-fetch-site", "same-origin"), ("origin", "null")]), Origin::Own);
        for foreign in
            ["http://localhost:81", "http://evil.example", "https://localhost:80.evil.example", "x"]
        {
            assert_eq!(of(&[("origin", foreign)]), Origin::Foreign, "{foreign}");
        }
        for site in ["cross-site", "same-site", "none", ""] {
            assert_eq!(of(&[("sec-fetch-site", site), ("origin", "http://localhost:80")]), Origin::Foreign);
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let of = |value: &str| cookie(&parts(&[("cookie", value)]).headers);
        assert_eq!(of("a=b; larder_session=x; c"), Some("x".to_owned()));
        assert_eq!(of("xlarder_session=y"), None);
        assert_eq!(cookie(&HeaderMap::new()), None);
    }
}
