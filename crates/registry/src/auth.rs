//! Authorization for one origin and repository: credentials in order, then anonymous access. Expired tokens
//! are renewed.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::HeaderValue;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Credentials;
use super::address::Zone;
use super::basic::basic;
use super::challenge::Challenge;
use super::error::{CredentialSearch, Fault};
use super::token::{self, Audience};
use super::transport::Transport;
use larder_model::credential::Credential;

/// Authorization for one (scheme, host, port) and repository; it is never used for another.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Zone of the origin's address, known after its first response.
    pub(crate) zone: OnceLock<Zone>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of grants so far. When many requests are refused at once, only the first one renews the grant.
    generation: u64,
    grant: Option<Grant>,
    challenge: Option<Challenge>,
    /// Credentials not tried yet; `None` means anonymous access.
    queue: VecDeque<Option<Credential>>,
    found: usize,
}

#[derive(Debug)]
struct Grant {
    header: HeaderValue,
    /// `true` once the registry has served a request with this grant.
    accepted: bool,
    expires: Option<Instant>,
}

/// Inputs that a session needs to renew its grant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Issuer<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) credentials: &'a dyn Credentials,
    /// Name under which credentials are looked up.
    pub(crate) registry: &'a str,
    pub(crate) audience: Audience<'a>,
    pub(crate) timeout: Duration,
}

impl Session {
    /// Returns the Authorization header to send, if any, and its generation. Renews an expired token first.
    pub(crate) async fn authorization(
        &self,
        issuer: Issuer<'_>,
    ) -> Result<(u64, Option<HeaderValue>), Fault> {
        let mut state = self.state.lock().await;
        if state.grant.as_ref().is_some_and(|grant| grant.expires.is_some_and(|at| at <= Instant::now())) {
            state.search(issuer).await?;
            state.next(issuer, "the token has expired").await?;
        }
        let header = state.grant.as_ref().map(|grant| grant.header.clone());
        Ok((state.generation, header))
    }

    /// Records that the registry served a request with the grant of `generation`.
    pub(crate) async fn accepted(&self, generation: u64) {
        let mut state = self.state.lock().await;
        let current = state.generation == generation;
        if let Some(grant) = state.grant.as_mut().filter(|_| current) {
            grant.accepted = true;
        }
    }

    /// Handles a 401 or 403 response to the grant of `generation`: obtains the next grant, or returns an
    /// error if there is none.
    pub(crate) async fn refused(
        &self,
        issuer: Issuer<'_>,
        generation: u64,
        expired: bool,
        challenge: Option<Challenge>,
        reason: &str,
    ) -> Result<(), Fault> {
        let mut state = self.state.lock().await;
        if state.generation != generation {
            return Ok(());
        }
        if challenge.is_some() {
            state.challenge = challenge;
        }
        let denied = |searched| Fault::Denied { reason: reason.to_owned(), searched };
        if state.challenge.is_none() {
            return Err(denied(CredentialSearch::NoChallenge));
        }
        let accepted = state.grant.as_ref().map(|grant| grant.accepted);
        match accepted {
            // The token has not expired, so the right itself is missing.
            Some(true) if !expired => return Err(denied(CredentialSearch::Accepted)),
            // Passwords of helpers expire in long builds, so look the credentials up again.
            None | Some(true) => state.search(issuer).await?,
            Some(false) => {}
        }
        state.next(issuer, reason).await
    }
}

impl State {
    async fn search(&mut self, issuer: Issuer<'_>) -> Result<(), Fault> {
        let found = issuer.credentials.lookup(issuer.registry, issuer.audience.repository).await;
        let found = found.map_err(|e| Fault::Invalid(e.to_string()))?;
        self.found = found.len();
        self.queue = found.into_iter().map(Some).chain([None]).collect();
        Ok(())
    }

    async fn next(&mut self, issuer: Issuer<'_>, reason: &str) -> Result<(), Fault> {
        let mut reason = reason.to_owned();
        while let Some(candidate) = self.queue.pop_front() {
            match self.grant(issuer, candidate.as_ref()).await {
                Ok(Some(grant)) => {
                    self.generation += 1;
                    self.grant = Some(grant);
                    return Ok(());
                }
                Ok(None) => {}
                Err(Fault::Denied { reason: why, .. }) => reason = why,
                Err(fault) => {
                    self.queue.push_front(candidate);
                    return Err(fault);
                }
            }
        }
        // The next request starts over with a new credential lookup.
        self.grant = None;
        self.generation += 1;
        Err(Fault::Denied { reason, searched: CredentialSearch::Tried(self.found) })
    }

    /// Obtains a grant for `candidate`. `None` if it does not fit the challenge.
    async fn grant(
        &self,
        issuer: Issuer<'_>,
        candidate: Option<&Credential>,
    ) -> Result<Option<Grant>, Fault> {
        match (&self.challenge, candidate) {
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let request =
                    token::TokenRequest { realm, service: service.as_deref(), scope: scope.as_deref() };
                let exchange = token::fetch(issuer.transport, issuer.audience, request, candidate);
                let token = tokio::time::timeout(issuer.timeout, exchange).await;
                let token =
                    token.map_err(|_| Fault::transient("the token server did not respond in time"))??;
                Ok(Some(Grant { header: token.header, accepted: false, expires: Some(token.expires) }))
            }
            (Some(Challenge::Basic), Some(Credential::Basic { username, password })) => Ok(Some(Grant {
                header: basic(username, password.expose())?,
                accepted: false,
                expires: None,
            })),
            _ => Ok(None),
        }
    }
}
