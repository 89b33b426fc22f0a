//! What the pages of [`ui`](crate::ui) use of the API: tenants, limits and bodies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Extensions, HeaderMap};
use chrono::{DateTime, Utc};

use super::auth::{self, Tenants};
use super::body::{Keep, Pending};
use super::errors::{Code, Problem};
use super::limit::Share;
use super::listen::Peer;
use super::{App, caller};
use crate::caches::service::Service;
use larder_model::image_cache::TenantName;

pub(crate) use super::auth::Proof;

/// Maximum size of a form, bytes.
const MAX_FORM: usize = 32 << 10;
/// Time after which a tenant can retry while its other plans or streams run.
const PAUSE: Duration = Duration::from_secs(2);

impl App {
    /// Returns the image cache service.
    pub(crate) fn service(&self) -> &Service {
        &self.parts.service
    }

    /// Returns the tenants as they are now.
    pub(crate) fn tenants(&self) -> Arc<Tenants> {
        self.parts.tenants.current()
    }

    /// Returns the current time.
    pub(crate) fn time(&self) -> DateTime<Utc> {
        self.now()
    }

    /// Returns `true` if the connection of `peer` is encrypted.
    pub(crate) fn is_encrypted(&self, peer: &Peer) -> bool {
        self.tls && matches!(peer, Peer::Tcp { .. })
    }

    /// Counts an authenticated request of a tenant, and refuses it if there are too many.
    pub(crate) fn admit(&self, tenant: &TenantName, extensions: &Extensions) -> Result<(), Problem> {
        caller::authenticated(extensions);
        tracing::Span::current().record("tenant", tenant.as_str());
        self.rates.take(tenant, Instant::now()).map_err(|wait| {
            Problem::new(Code::TooMany, "this tenant exceeds its request rate: slow down").retry_after(wait)
        })
    }

    /// Counts a failed authentication, and delays the answer if there are too many.
    pub(crate) async fn failed(&self, peer: &Peer, problem: Problem) -> Problem {
        caller::failed(self, peer, problem).await
    }

    /// Takes one of the concurrent plans of a tenant.
    pub(crate) fn take_plan(&self, tenant: &TenantName) -> Result<Share<TenantName>, Problem> {
        self.plans.take(tenant).ok_or_else(|| {
            let message = "this tenant has reached its maximum number of concurrent plans";
            Problem::new(Code::TooMany, message).retry_after(PAUSE)
        })
    }

    /// Takes one of the concurrent event streams of a tenant.
    pub(crate) fn take_stream(&self, tenant: &TenantName) -> Result<Share<TenantName>, Problem> {
        self.streams.take(tenant).ok_or_else(|| {
            let message = "this tenant has reached its maximum number of event streams";
            Problem::new(Code::TooMany, message).retry_after(PAUSE)
        })
    }

    /// Reads the body of a form.
    pub(crate) async fn read_form(&self, extensions: &Extensions) -> Result<Bytes, Problem> {
        let body = extensions.get::<Pending>();
        let body = body.ok_or_else(|| Problem::internal("the request lacks its body extension"))?;
        let received = body.receive(self.body_time, Keep::Bytes(&self.room)).await?;
        if received.bytes.len() > MAX_FORM {
            return Err(Problem::new(Code::TooLarge, format!("the form is longer than {MAX_FORM} bytes")));
        }
        Ok(received.bytes)
    }
}

/// Returns `true` if the request contains a credential of the API.
pub(crate) fn has_credential(headers: &HeaderMap) -> bool {
    headers.contains_key(auth::TOKEN) || headers.contains_key(axum::http::header::AUTHORIZATION)
}
