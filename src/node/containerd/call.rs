//! Calls: in a namespace, under a lease or without, and not for ever.

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

/// How long a call may take; one that has garbage collected waits for that.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the label of a lease is called that says when it ends.
const EXPIRES: &str = "containerd.io/gc.expire";

/// Where and under what calls are made.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) containerd: &'a Client,
    namespace: &'a str,
    /// Empty without one.
    lease: String,
}

/// Something is asked of one of the services.
pub(super) struct Call<'a> {
    pub(super) doing: &'static str,
    pub(super) what: &'a str,
}

/// A call that did not do as asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// What containerd answered.
    Status(Status),
    /// Nothing.
    Late,
}

impl Client {
    pub(super) fn channel(&self) -> Channel {
        grpc::channel(self.address.clone())
    }

    /// In its own namespace, without a lease.
    pub(super) fn session(&self) -> Session<'_> {
        self.session_in(&self.namespace)
    }

    pub(super) fn session_in<'a>(&'a self, namespace: &'a str) -> Session<'a> {
        Session { containerd: self, namespace, lease: String::new() }
    }

    /// The version of containerd, as it says itself: `1.6.20`, `v2.1.3`.
    ///
    /// # Errors
    /// [`Error`]: nobody answers.
    pub async fn version(&self) -> Result<String, Error> {
        let mut client = VersionClient::with_origin(self.channel(), grpc::origin());
        let call = Call { doing: "asking for", what: "the version of containerd" };
        let answer = self.session().ask(call, (), async |request| client.version(request).await).await?;
        Ok(answer.version)
    }

    pub(super) async fn namespaces(&self) -> Result<Vec<String>, Error> {
        let mut client = NamespacesClient::with_origin(self.channel(), grpc::origin());
        let request = namespaces::ListNamespacesRequest::default();
        let call = Call { doing: "listing", what: "namespaces" };
        let answer = self.session().ask(call, request, async |request| client.list(request).await).await?;
        Ok(answer.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }
}

impl<'a> Session<'a> {
    /// The same under a lease, which is given back by [`release`](Self::release), or ends by itself.
    pub(super) async fn leased(self) -> Result<Session<'a>, Error> {
        let id = format!("larder-{}", Uuid::new_v4());
        let ends = (Utc::now() + LEASE).to_rfc3339_opts(SecondsFormat::Secs, true);
        let labels = HashMap::from([(EXPIRES.to_owned(), ends)]);
        let request = leases::CreateRequest { id: id.clone(), labels };
        let mut client = LeasesClient::with_origin(self.containerd.channel(), grpc::origin());
        let call = Call { doing: "taking", what: "a lease" };
        self.ask(call, request, async |request| client.create(request).await).await?;
        Ok(Session { lease: id, ..self })
    }

    pub(super) async fn release(self) -> Result<(), Error> {
        self.give_back(false).await
    }

    /// Waits until containerd has collected its garbage.
    pub(super) async fn collect(self) -> Result<(), Error> {
        self.leased().await?.give_back(true).await
    }

    /// Gives the lease back. `sync`: and waits until its garbage is collected.
    async fn give_back(self, sync: bool) -> Result<(), Error> {
        let mut client = LeasesClient::with_origin(self.containerd.channel(), grpc::origin());
        let request = leases::DeleteRequest { id: self.lease.clone(), sync };
        let call = Call { doing: "giving back", what: "a lease" };
        self.ask(call, request, async |request| client.delete(request).await).await
    }

    /// The lease, or nothing.
    pub(super) fn lease(&self) -> &str {
        &self.lease
    }

    /// Makes a call and waits for the answer.
    pub(super) async fn ask<Q, A>(
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

    /// The same where some refusals are answers.
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
        match tokio::time::timeout(PATIENCE, make(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::Status(status)),
            Err(_) => Err(Failure::Late),
        }
    }

    pub(super) fn failed(&self, call: &Call<'_>, failure: &Failure) -> Error {
        match failure {
            Failure::Status(status) => refused(call.doing, call.what, &self.containerd.snapshotter, status),
            Failure::Late => {
                Error::Late { doing: call.doing, what: call.what.to_owned(), seconds: PATIENCE.as_secs() }
            }
        }
    }
}

impl Failure {
    pub(super) fn is(&self, code: Code) -> bool {
        matches!(self, Failure::Status(status) if status.code() == code)
    }
}
