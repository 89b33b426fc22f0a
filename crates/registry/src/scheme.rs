//! The scheme of servers that might not support TLS. They are tried with TLS first, then with plain http.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::Inner;
use super::hosts::Endpoint;
use super::transport::Origin;

/// The support of TLS by each server, as far as it is known. A server is tried once.
#[derive(Debug, Default)]
pub(crate) struct Schemes(Mutex<HashMap<Origin, Arc<OnceCell<bool>>>>);

impl Inner {
    /// Returns the endpoint with the scheme that its server supports.
    pub(crate) async fn with_scheme<'a>(&self, endpoint: &'a Endpoint) -> Cow<'a, Endpoint> {
        let Some(plain) = &endpoint.plain else { return Cow::Borrowed(endpoint) };
        let known = {
            let mut known = self.schemes.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(Origin::of(&endpoint.base)).or_default())
        };
        let attempt = async || self.transport.supports_tls(&endpoint.base, &endpoint.tls).await.ok_or(());
        // If the attempt shows nothing, try plain http now and TLS again for the next request.
        match known.get_or_try_init(attempt).await {
            Ok(true) => Cow::Borrowed(endpoint),
            Ok(false) | Err(()) => {
                Cow::Owned(Endpoint { base: plain.clone(), plain: None, ..endpoint.clone() })
            }
        }
    }
}
