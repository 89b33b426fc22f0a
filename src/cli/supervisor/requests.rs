//! The supervisor's services for its children: mounts, credentials and signatures. The children read
//! untrusted bytes, so their requests are not trusted either.

use std::collections::HashSet;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{io, thread};

use tokio::runtime::Handle;

use super::BuildParams;
use super::child::Child;
use super::mounts::Mounts;
use crate::builder::registry::{repositories, secrets};
use crate::builder::supervisor::{Greeting, Refusal, Reply, Request, credentials_body};
use crate::builder::wire;
use crate::cli::args::internal::ChildRole;
use crate::volume::disk::HostSpace;
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::plan_report::PlanReport;
use larder_model::seal::CacheManifest;
use larder_model::trust::SealSignature;
use larder_secrets::Secrets;

/// Maximum number of signatures per build. A seal that could not be written is signed again.
const MAX_SIGNATURES: u32 = 3;

/// The registries and repositories of an order.
type Repositories = HashSet<(String, String)>;

/// Answers the requests of the children of one build.
#[derive(Debug)]
pub(super) struct RequestHandler {
    params: Arc<BuildParams>,
    mounts: Mutex<Mounts>,
    secrets: Secrets,
    /// Registries and repositories that can need credentials. A compromised fetcher gets no others.
    repositories: Repositories,
    /// Number of signatures issued.
    signed: AtomicU32,
    /// The space of the host for the disk that is being filled.
    host_space: OnceLock<HostSpace>,
    runtime: Handle,
}

impl RequestHandler {
    /// Reads the secrets of the order.
    pub(super) fn new(params: &Arc<BuildParams>) -> Self {
        RequestHandler {
            mounts: Mutex::new(Mounts::new(&params.request)),
            secrets: secrets(&params.request.registry, &params.request.images),
            // If the configuration is invalid, the fetcher reports it.
            repositories: repositories(&params.request, &params.config).unwrap_or_default(),
            signed: AtomicU32::new(0),
            host_space: OnceLock::new(),
            params: Arc::clone(params),
            runtime: Handle::current(),
        }
    }

    /// Sets the space of the host, before a child fills the disk.
    pub(super) fn set_host_space(&self, space: HostSpace) {
        // A build fills one disk, and its directory does not change.
        let _ = self.host_space.set(space);
    }

    /// Serves the child of `role` at the other end of `stream`, on a thread that ends with the child.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn serve(self: &Arc<Self>, role: ChildRole, stream: UnixStream) -> io::Result<()> {
        let handler = Arc::clone(self);
        let answer = move || {
            while let Ok(Some(frame)) = wire::receive::<Request>(&stream) {
                let (reply, body) = match handler.answer(role, frame.header, &frame.body) {
                    Ok(body) => (Reply::default(), body),
                    Err(refusal) => (Reply { refused: Some(refusal) }, Vec::new()),
                };
                if wire::send(&stream, &reply, &body, &[]).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name(format!("handler-{}", role.name())).spawn(answer).map(drop)
    }

    fn answer(self: &Arc<Self>, role: ChildRole, request: Request, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        check(role, &request, &self.repositories)?;
        match request {
            Request::Mount(volume) => {
                let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
                mounts.mount(volume).map_err(|why| Refusal::new(Class::Invalid, why))?;
                Ok(Vec::new())
            }
            Request::Sign => self.sign(body),
            Request::CheckSpace { bytes } => {
                let checked = self.host_space.get().map_or(Ok(()), |host| host.check(bytes));
                checked.map_err(|e| Refusal::new(e.class(), e.to_string()))?;
                Ok(Vec::new())
            }
            Request::Credentials { registry, repository } => {
                let found = self.runtime.block_on(self.secrets.lookup(&registry, &repository));
                let found = found.map_err(|e| Refusal::new(Class::Denied, e.to_string()))?;
                credentials_body(&found).map_err(|e| Refusal::new(Class::Internal, e.to_string()))
            }
        }
    }

    /// Signs a seal if it contains exactly the images of the order, as a second process resolves them.
    fn sign(self: &Arc<Self>, cache_json: &[u8]) -> Result<Vec<u8>, Refusal> {
        let signer = self.params.signer.as_ref();
        let signer = signer.ok_or_else(|| Refusal::new(Class::Denied, "this build has no signing key"))?;
        if self.signed.fetch_add(1, Ordering::Relaxed) >= MAX_SIGNATURES {
            return Err(Refusal::new(Class::Denied, "the build has used all its signatures"));
        }
        let sealed = CacheManifest::parse(cache_json).map_err(|e| {
            Refusal::new(Class::Internal, format!("the builder wrote an invalid cache.json: {e}"))
        })?;
        if sealed.content.job != self.params.request.identity().digest()
            && !self.params.request.images.is_empty()
        {
            return Err(Refusal::new(Class::Internal, "the builder wrote a cache.json of another job"));
        }
        let resolved = self.resolve().map_err(|failures| {
            let class = Class::decisive(failures.iter().map(|failure| failure.class));
            let messages: Vec<String> = failures.into_iter().map(|failure| failure.message).collect();
            let message = format!("resolving the images again: {}", messages.join("; "));
            Refusal::new(class.unwrap_or(Class::Internal), message)
        })?;
        compare(&resolved, &sealed)?;
        let signature = SealSignature::new(cache_json, signer).to_json();
        signature.map_err(|e| Refusal::new(Class::Internal, e.to_string()))
    }
}

impl RequestHandler {
    /// Resolves the images of the order, in a process that has read no layer. Blocks.
    pub(super) fn resolve(self: &Arc<Self>) -> Result<PlanReport, Vec<Failure>> {
        let failed = |e: io::Error| {
            vec![Failure::job(Class::Internal, format!("starting a process that resolves the images: {e}"))]
        };
        let _context = self.runtime.enter();
        let greeting = self.greeting();
        let (child, stream) =
            Child::start(&self.params, ChildRole::Resolve, None, greeting, None).map_err(failed)?;
        self.serve(ChildRole::Resolve, stream).map_err(failed)?;
        self.runtime.block_on(child.report())
    }

    /// Returns the first message to every child.
    pub(super) fn greeting(&self) -> Greeting {
        Greeting {
            job: self.params.job.clone(),
            absent: self.secrets.absent().to_vec(),
            signer: self.params.signer.as_ref().map(|key| key.public()),
            descriptors: Vec::new(),
        }
    }
}

/// Checks whether a child of `role` can make the request. The extractor can request mounts, signatures and a
/// check of the space.
/// Fetchers can request the credentials of the order's repositories.
fn check(role: ChildRole, request: &Request, repositories: &Repositories) -> Result<(), Refusal> {
    match (role, request) {
        (ChildRole::Fill, Request::Mount(_) | Request::Sign | Request::CheckSpace { .. }) => Ok(()),
        (ChildRole::Fetch | ChildRole::Resolve, Request::Credentials { registry, repository }) => {
            let is_in_order = repositories.contains(&(registry.clone(), repository.clone()));
            let refusal = || Refusal::new(Class::Denied, "the order has no image in this repository");
            if is_in_order { Ok(()) } else { Err(refusal()) }
        }
        _ => Err(Refusal::new(Class::Denied, "this process cannot make that request")),
    }
}

/// Checks that the seal and the report have the same images and manifests.
fn compare(resolved: &PlanReport, sealed: &CacheManifest) -> Result<(), Refusal> {
    let images = &sealed.content.images;
    if images.len() != resolved.images.len() {
        let message =
            format!("the seal has {} images, the order has {}", images.len(), resolved.images.len());
        return Err(Refusal::new(Class::Internal, message));
    }
    for (image, wanted) in images.iter().zip(&resolved.images) {
        if image.reference != wanted.reference || image.name != wanted.name {
            let message = format!("the seal has {:?} instead of {:?}", image.name, wanted.name);
            return Err(Refusal::new(Class::Internal, message));
        }
        if image.manifest != wanted.manifest {
            let message = format!(
                "{} is {} on the volume and {} at the registry: its tag has changed since the build started; \
                 build into another directory, or specify the image by digest",
                image.reference, image.manifest, wanted.manifest
            );
            return Err(Refusal::new(Class::Conflict, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_make_the_requests_of_their_role() {
        let of = |registry: &str, repository: &str| (registry.to_owned(), repository.to_owned());
        let order = Repositories::from([of("r.io", "team/app")]);
        let credentials = |registry: &str, repository: &str| {
            let (registry, repository) = of(registry, repository);
            Request::Credentials { registry, repository }
        };
        let all = [ChildRole::Fill, ChildRole::Sweep, ChildRole::Prove, ChildRole::Fetch, ChildRole::Resolve];
        for (request, permitted) in [
            (Request::Sign, &[ChildRole::Fill][..]),
            (Request::CheckSpace { bytes: 1 }, &[ChildRole::Fill]),
            (credentials("r.io", "team/app"), &[ChildRole::Fetch, ChildRole::Resolve]),
            (credentials("r.io", "team/other"), &[]),
            (credentials("other.io", "team/app"), &[]),
        ] {
            for role in all {
                let answer = check(role, &request, &order);
                assert_eq!(answer.is_ok(), permitted.contains(&role), "{role:?} {request:?}");
            }
        }
    }
}
