//! What a cluster says when it does not do what it was asked.

use std::fmt;
use std::time::Duration;

use tokio::time::error::Elapsed;

use crate::caches::store::StoreError;
use crate::caches::volumes::StateError;
use larder_model::class::Class;

/// Most time of one request that is no watch and no log.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
/// How often a request is made again after a failure that a later try may heal.
const RETRIES: u32 = 5;
/// The pause before it is; doubles each time.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest text of an API server that is repeated, characters.
const LONGEST: usize = 1024;

/// A request to the API server failed.
#[derive(Debug)]
pub struct Fault {
    doing: String,
    error: Error,
}

#[derive(Debug)]
enum Error {
    Kube(kube::Error),
    Late,
}

impl Fault {
    /// A failure of the client, while doing this.
    pub fn new(doing: impl Into<String>, error: kube::Error) -> Self {
        Fault { doing: doing.into(), error: Error::Kube(error) }
    }

    /// The HTTP status; 0 where there was no answer.
    pub fn code(&self) -> u16 {
        match &self.error {
            Error::Kube(kube::Error::Api(status)) => status.code,
            _ => 0,
        }
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Somebody made an object of that name.
    pub fn is_already_there(&self) -> bool {
        matches!(&self.error, Error::Kube(kube::Error::Api(status)) if status.reason == "AlreadyExists")
    }

    /// The object is another version or another object than the one that was read. A patch for another object is 422, because
    /// `metadata.uid` is immutable (Kubernetes 1.36).
    pub fn is_conflict(&self) -> bool {
        (self.code() == 409 && !self.is_already_there()) || self.is_other_object()
    }

    fn is_other_object(&self) -> bool {
        let Error::Kube(kube::Error::Api(status)) = &self.error else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        status.code == 422 && causes.into_iter().any(|cause| cause.field == "metadata.uid")
    }

    /// A ResourceQuota is used up. Its refusal is told from one of RBAC by text alone (k8s.io/apiserver
    /// pkg/admission/plugin/resourcequota/controller.go: `exceeded quota: …`); both are 403 Forbidden.
    pub fn is_quota(&self) -> bool {
        let text = match &self.error {
            Error::Kube(kube::Error::Api(status)) if status.code == 403 => status.message.as_str(),
            _ => "",
        };
        text.contains("exceeded quota")
    }

    /// A ResourceQuota is not counted yet, and the API server refuses what it limits (the same file: `status unknown for quota: …`).
    /// The controller manager counts a new kind within five and a half minutes: it looks for new kinds every 30 s, and at all
    /// quotas every 5 minutes (pkg/controller/resourcequota).
    fn is_uncounted(&self) -> bool {
        matches!(&self.error, Error::Kube(kube::Error::Api(status))
            if status.code == 403 && status.message.contains("status unknown for quota"))
    }

    /// Whether a later try may heal it.
    pub fn is_transient(&self) -> bool {
        match &self.error {
            Error::Late => true,
            Error::Kube(kube::Error::Api(_)) if self.is_uncounted() => true,
            // 401: the token is being renewed. Whoever asks can do nothing but ask again.
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

    /// The class that decides status and retry.
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
            Error::Late => write!(f, "the API server gave no answer within {} s", TIMEOUT.as_secs()),
            Error::Kube(kube::Error::Api(status)) => {
                let message: String = status.message.chars().take(LONGEST).collect();
                write!(f, "the API server says {} {}: {message}", status.code, status.reason)
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
            false => {
                StoreError::Failed { doing: "asking the cluster for", reason: fault.to_string(), full: false }
            }
        }
    }
}

/// How often a request was made.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Looks at what came of a try: what is to be answered, or nothing after a pause, where another may help.
    pub(super) async fn judge<T>(
        &mut self,
        doing: &str,
        tried: Result<kube::Result<T>, Elapsed>,
    ) -> Option<Result<T, Fault>> {
        let error = match tried {
            Ok(Ok(done)) => return Some(Ok(done)),
            Ok(Err(error)) => Error::Kube(error),
            Err(_) => Error::Late,
        };
        let fault = Fault { doing: doing.to_owned(), error };
        if self.0 == RETRIES || !fault.is_transient() {
            return Some(Err(fault));
        }
        let pause = PAUSE * 2_u32.pow(self.0);
        self.0 += 1;
        tracing::debug!("{fault}; it is tried again in {} ms", pause.as_millis());
        tokio::time::sleep(pause).await;
        None
    }
}

/// Makes a request, and makes it again while that may help. It may have been carried out without an answer: what is asked
/// must bear to be done twice.
macro_rules! ask {
    ($doing:expr, $request:expr $(,)?) => {{
        let mut tries = $crate::kubernetes::fault::Tries::default();
        loop {
            let tried = tokio::time::timeout($crate::kubernetes::fault::TIMEOUT, $request).await;
            if let Some(result) = tries.judge(AsRef::<str>::as_ref(&$doing), tried).await {
                break result;
            }
        }
    }};
}
pub(super) use ask;

/// What is not there is nothing to complain of.
pub(super) fn opt<T>(asked: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match asked {
        Ok(found) => Ok(Some(found)),
        Err(fault) if fault.is_not_found() => Ok(None),
        Err(fault) => Err(fault),
    }
}
