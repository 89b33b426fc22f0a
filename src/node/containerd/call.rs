//! gRPC calls with a namespace, an optional lease, and a timeout.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::error::refused;
use super::{Client, Error, LEASE};
use crate::node::grpc::{self, Channel};
use larder_containerd_api::services::leases::v1 as leases;
use larder_containerd_api::services::leases::v1::leases_client::LeasesClient;
use larder_containerd_api::services::namespaces::v1 as namespaces;
use larder_containerd_api::services::namespaces::v1::namespaces_client::NamespacesClient;
use larder_containerd_api::services::version::v1::version_client::VersionClient;

/// Maximum duration of a call. A call that triggers garbage collection waits for it.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Name of the lease label with the expiry time.
const EXPIRES: &str = "containerd.io/gc.expire";

/// The namespace and the lease of calls.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) containerd: &'a Client,
    namespace: &'a str,
    /// ID of the lease. Empty if there is none.
    lease: String,
}

/// The description of a call, for error messages.
pub(super) struct Call<'a> {
    pub(super) doing: &'static str,
    pub(super) what: &'a str,
}

/// The error of a call.
#[derive(Debug)]
pub(super) enum Failure {
    /// The error status that containerd returned.
    Status(Status),
    /// The call timed out.
    Late,
}

impl Client {
    pub(super) fn channel(&self) -> Channel {
        grpc::channel(self.address.clone())
    }

    /// Returns a session in the configured namespace, without a lease.
    pub(super) fn session(&self) -> Session<'_> {
        self.session_in(&self.namespace)
    }

    pub(super) fn session_in<'a>(&'a self, namespace: &'a str) -> Session<'a> {
        Session { containerd: self, namespace, lease: String::new() }
    }

    /// Returns the version of containerd as it reports it: `1.6.20`, `v2.1.3`.
    ///
    /// # Errors
    /// [`Error`]: containerd does not answer.
    pub async fn version(&self) -> Result<String, Error> {
        let mut client = VersionClient::with_origin(self.channel(), grpc::origin());
        let call = Call { doing: "requesting", what: "the version of containerd" };
        let answer = self.session().send(call, (), async |request| client.version(request).await).await?;
        Ok(answer.version)
    }

    pub(super) async fn namespaces(&self) -> Result<Vec<String>, Error> {
        let mut client = NamespacesClient::with_origin(self.channel(), grpc::origin());
        let request = namespaces::ListNamespacesRequest::default();
        let call = Call { doing: "listing", what: "namespaces" };
        let answer = self.session().send(call, request, async |request| client.list(request).await).await?;
        Ok(answer.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }
}

impl<'a> Session<'a> {
    /// Returns the session with a new lease, which [`release`](Self::release) deletes, or which expires.
    pub(super) async fn leased(self) -> Result<Session<'a>, Error> {
        let id = format!("larder-{}", Uuid::new_v4());
        let ends = (Utc::now() + LEASE).to_rfc3339_opts(SecondsFormat::Secs, true);
        let labels = HashMap::from([(EXPIRES.to_owned(), ends)]);
        let request = leases::CreateRequest { id: id.clone(), labels };
        let mut client = LeasesClient::with_origin(self.containerd.channel(), grpc::origin());
        let call = Call { doing: "creating", what: "a lease" };
        self.send(call, request, async |request| client.create(request).await).await?;
        Ok(Session { lease: id, ..self })
    }

    pub(super) async fn release(self) -> Result<(), Error> {
        self.delete_lease(false).await
    }

    /// Waits until containerd has run its garbage collection.
    pub(super) async fn collect(self) -> Result<(), Error> {
        self.leased().await?.delete_lease(true).await
    }

    /// Deletes the lease. With `sync`, also waits for the garbage collection.
    async fn delete_lease(self, sync: bool) -> Result<(), Error> {
        let mut client = LeasesClient::with_origin(self.containerd.channel(), grpc::origin());
        let request = leases::DeleteRequest { id: self.lease.clone(), sync };
        let call = Call { doing: "deleting", what: "a lease" };
        self.send(call, request, async |request| client.delete(request).await).await
    }

    /// Returns the ID of the lease, or an empty string.
    pub(super) fn lease(&self) -> &str {
        &self.lease
    }

    /// Makes a call and returns the response.
    pub(super) async fn send<Q, A>(
        &self,
        call: Call<'_>,
        message: Q,
        make: impl AsyncFnOnce(Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        match self.attempt(message, make).await {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.failed(&call, &failure)),
        }
    }

    /// Makes a call and returns the raw error, for callers that expect some error codes.
    pub(super) async fn attempt<Q, A>(
        &self,
        message: Q,
        make: impl AsyncFnOnce(Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        let mut request = Request::new(message);
        for (key, value) in [("containerd-namespace", self.namespace), ("containerd-lease", &self.lease)] {
            if !value.is_empty() {
                let value = MetadataValue::try_from(value).map_err(|_| {
                    Failure::Status(Status::invalid_argument(format!("{key} cannot be {value:?}")))
                })?;
                request.metadata_mut().insert(key, value);
            }
        }
        match tokio::time::timeout(TIMEOUT, make(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::Status(status)),
            Err(_) => Err(Failure::Late),
        }
    }

    pub(super) fn failed(&self, call: &Call<'_>, failure: &Failure) -> Error {
        match failure {
            Failure::Status(status) => refused(call.doing, call.what, &self.containerd.snapshotter, status),
            Failure::Late => {
                Error::Late { doing: call.doing, what: call.what.to_owned(), seconds: TIMEOUT.as_secs() }
            }
        }
    }
}

impl Failure {
    pub(super) fn is(&self, code: Code) -> bool {
        matches!(self, Failure::Status(status) if status.code() == code)
    }
}
