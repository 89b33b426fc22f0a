//! Failed requests to the API server, and retries.

use std::fmt;
use std::time::Duration;

use tokio::time::error::Elapsed;

use crate::caches::store::StoreError;
use crate::caches::volumes::StateError;
use larder_model::class::Class;

/// Maximum duration of one request that is not a watch or a log stream.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of retries after a transient failure.
const MAX_RETRIES: u32 = 5;
/// Delay before the first retry. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of characters of an API server's message that are kept.
const MAX_MESSAGE_CHARS: usize = 1024;

/// A request to the API server failed.
#[derive(Debug)]
pub struct Fault {
    doing: String,
    error: Error,
}

#[derive(Debug)]
enum Error {
    Kube(kube::Error),
    Timeout,
}

impl Fault {
    /// Creates a fault of the client library. `doing` describes the failed action.
    pub fn new(doing: impl Into<String>, error: kube::Error) -> Self {
        Fault { doing: doing.into(), error: Error::Kube(error) }
    }

    /// Returns the HTTP status; 0 if there was no response.
    pub fn code(&self) -> u16 {
        match &self.error {
            Error::Kube(kube::Error::Api(status)) => status.code,
            _ => 0,
        }
    }

    /// Reports whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Reports whether an object of that name already exists.
    pub fn already_exists(&self) -> bool {
        matches!(&self.error, Error::Kube(kube::Error::Api(status)) if status.reason == "AlreadyExists")
    }

    /// Reports whether the object has changed since it was read, or was replaced by another of the same name.
    /// A patch of a replaced object fails with 422, because `metadata.uid` is immutable (Kubernetes 1.36).
    pub fn is_conflict(&self) -> bool {
        (self.code() == 409 && !self.already_exists()) || self.is_other_object()
    }

    fn is_other_object(&self) -> bool {
        let Error::Kube(kube::Error::Api(status)) = &self.error else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        status.code == 422 && causes.into_iter().any(|cause| cause.field == "metadata.uid")
    }

    /// Reports whether a ResourceQuota is exhausted. Only the text distinguishes this from an RBAC refusal
    /// (k8s.io/apiserver pkg/admission/plugin/resourcequota/controller.go: `exceeded quota: …`); both are 403
    /// Forbidden.
    pub fn is_quota(&self) -> bool {
        let text = match &self.error {
            Error::Kube(kube::Error::Api(status)) if status.code == 403 => status.message.as_str(),
            _ => "",
        };
        text.contains("exceeded quota")
    }

    /// Reports whether the usage of a ResourceQuota is not computed yet, so that the API server refuses the
    /// kinds that it limits (the same file: `status unknown for quota: …`). The controller manager computes
    /// the usage of a new kind within five and a half minutes: it discovers new kinds every 30 s, and
    /// recomputes all quotas every 5 minutes (pkg/controller/resourcequota).
    fn is_uncounted(&self) -> bool {
        matches!(&self.error, Error::Kube(kube::Error::Api(status))
            if status.code == 403 && status.message.contains("status unknown for quota"))
    }

    /// Reports whether a retry can succeed.
    pub fn is_transient(&self) -> bool {
        match &self.error {
            Error::Timeout => true,
            Error::Kube(kube::Error::Api(_)) if self.is_uncounted() => true,
            // 401: the token is being renewed. The caller can only retry.
            Error::Kube(kube::Error::Api(status)) => matches!(status.code, 401 | 429 | 500..),
            Error::Kube(
                kube::Error::Auth(_)
                | kube::Error::HyperError(_)
                | kube::Error::Service(_)
                | kube::Error::ReadEvents(_)
                | kube::Error::HttpError(_),
            ) => true,
            Error::Kube(_) => false,
        }
    }

    /// Returns the class, which decides status and retry.
    pub fn class(&self) -> Class {
        match self.code() {
            _ if self.is_transient() => Class::Transient,
            _ if self.is_quota() => Class::NoSpace,
            403 => Class::Denied,
            404 => Class::NotFound,
            409 => Class::Conflict,
            _ => Class::Internal,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.doing)?;
        match &self.error {
            Error::Timeout => write!(f, "the API server did not answer within {} s", TIMEOUT.as_secs()),
            Error::Kube(kube::Error::Api(status)) => {
                let message: String = status.message.chars().take(MAX_MESSAGE_CHARS).collect();
                write!(f, "the API server returned {} {}: {message}", status.code, status.reason)
            }
            Error::Kube(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for StateError {
    fn from(fault: Fault) -> Self {
        StateError::Cluster { class: fault.class(), reason: fault.to_string() }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault.is_transient() {
            true => StoreError::Unreachable(fault.to_string()),
            false => StoreError::Failed { doing: "accessing", reason: fault.to_string(), full: false },
        }
    }
}

/// Counts the retries of one request.
#[derive(Debug, Default)]
pub(super) struct Retries(u32);

impl Retries {
    /// Evaluates one attempt. Returns its result, or `None` after a pause if the caller must retry.
    pub(super) async fn next_step<T>(
        &mut self,
        doing: &str,
        attempt: Result<kube::Result<T>, Elapsed>,
    ) -> Option<Result<T, Fault>> {
        let error = match attempt {
            Ok(Ok(done)) => return Some(Ok(done)),
            Ok(Err(error)) => Error::Kube(error),
            Err(_) => Error::Timeout,
        };
        let fault = Fault { doing: doing.to_owned(), error };
        if self.0 == MAX_RETRIES || !fault.is_transient() {
            return Some(Err(fault));
        }
        let pause = FIRST_PAUSE * 2_u32.pow(self.0);
        self.0 += 1;
        tracing::debug!("{fault}; retrying in {} ms", pause.as_millis());
        tokio::time::sleep(pause).await;
        None
    }
}

/// Sends a request, with retries after transient failures. A request without a response may have been
/// executed, so it must be idempotent.
macro_rules! request {
    ($doing:expr, $request:expr $(,)?) => {{
        let mut retries = $crate::kubernetes::fault::Retries::default();
        loop {
            let attempt = tokio::time::timeout($crate::kubernetes::fault::TIMEOUT, $request).await;
            if let Some(result) = retries.next_step(AsRef::<str>::as_ref(&$doing), attempt).await {
                break result;
            }
        }
    }};
}
pub(super) use request;

/// Maps "not found" to `Ok(None)`.
pub(super) fn opt<T>(result: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(fault) if fault.is_not_found() => Ok(None),
        Err(fault) => Err(fault),
    }
}
