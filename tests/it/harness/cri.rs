//! Kubernetes' container runtime interface (its published proto, runtime.v1): image requests of a kubelet,
//! and a pod.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder::node::grpc;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// Stands for several messages whose first member is an image.
#[derive(Clone, PartialEq, Message)]
struct OfImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// Stands for several messages whose first member is a string. Other members are not used.
#[derive(Clone, PartialEq, Message)]
struct OfName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// An image in CRI.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) repo_digests: Vec<String>,
    #[prost(bool, tag = "8")]
    pub(crate) pinned: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatus {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Images {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// The namespaces of the node, by their number in the proto.
#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
}

const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerState {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatus {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerState>,
}

const EXITED: i32 = 2;

/// Pulls an image with the request that a kubelet sends.
pub(crate) fn pull(socket: &Path, image: &str) -> Result<(), Status> {
    Cri::new(socket).call::<_, Nothing>("/runtime.v1.ImageService/PullImage", of_image(image)).map(drop)
}

fn of_image(image: &str) -> OfImage {
    OfImage { image: Some(ImageSpec { image: image.to_owned() }) }
}

/// A CRI client that sends the requests of a kubelet.
#[derive(Debug)]
pub(crate) struct Cri {
    socket: PathBuf,
    runtime: Runtime,
}

impl Cri {
    pub(crate) fn new(socket: &Path) -> Self {
        Cri { socket: socket.to_owned(), runtime: Runtime::new().unwrap() }
    }

    fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let call = async |request| {
            let mut client = Grpc::with_origin(grpc::channel(self.socket.clone()), grpc::origin());
            client.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            client.unary(Request::new(request), PathAndQuery::from_static(path), codec).await
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.runtime.block_on(call(request.clone())) {
                // containerd answers before its CRI plugin does.
                Err(status) if status.message().contains("not initialized") && Instant::now() < deadline => {
                    sleep(Duration::from_millis(100));
                }
                other => return other.map(tonic::Response::into_inner),
            }
        }
    }

    /// Looks up an image by name, digest or ID.
    pub(crate) fn image(&self, image: &str) -> Option<Image> {
        let answer: ImageStatus = self.call("/runtime.v1.ImageService/ImageStatus", of_image(image)).unwrap();
        answer.image
    }

    /// Lists all images of the node.
    pub(crate) fn images(&self) -> Vec<Image> {
        let answer: Images = self.call("/runtime.v1.ImageService/ListImages", Nothing {}).unwrap();
        answer.images
    }

    /// Starts a pod on the node's network that logs to `logs`. Returns its ID.
    pub(crate) fn pod(&self, name: &str, logs: &Path) -> String {
        let request = RunSandbox { config: Some(sandbox(name, logs)) };
        let answer: OfName = self.call("/runtime.v1.RuntimeService/RunPodSandbox", request).unwrap();
        answer.name
    }

    /// Runs a script in a container of a pod to its end. Returns the lines of its log.
    pub(crate) fn run(&self, pod: &str, name: &str, logs: &Path, image: &str, script: &str) -> Vec<String> {
        let namespaces = Some(Namespaces { network: NODE, pid: 1, ipc: NODE });
        let request = CreateContainer {
            sandbox: pod.to_owned(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".into() }),
                image: Some(ImageSpec { image: image.to_owned() }),
                command: ["/bin/sh", "-c", script].map(Into::into).to_vec(),
                log_path: "main.log".into(),
                linux: Some(ContainerLinux { security: Some(ContainerSecurity { namespaces }) }),
            }),
            sandbox_config: Some(sandbox(name, logs)),
        };
        let container: OfName = self.call("/runtime.v1.RuntimeService/CreateContainer", request).unwrap();
        let _: Nothing = self.call("/runtime.v1.RuntimeService/StartContainer", container.clone()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer: ContainerStatus =
                self.call("/runtime.v1.RuntimeService/ContainerStatus", container.clone()).unwrap();
            let status = answer.status.unwrap();
            if status.state == EXITED {
                assert_eq!(status.exit_code, 0);
                break;
            }
            assert!(Instant::now() < deadline, "the container did not end");
            sleep(Duration::from_millis(50));
        }
        // "<time> stdout F <line>"
        let log = std::fs::read_to_string(logs.join("main.log")).unwrap();
        log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()).collect()
    }

    /// Stops a pod and all of its containers.
    pub(crate) fn end(&self, pod: &str) {
        let pod = OfName { name: pod.to_owned() };
        let _: Nothing = self.call("/runtime.v1.RuntimeService/StopPodSandbox", pod.clone()).unwrap();
        let _: Nothing = self.call("/runtime.v1.RuntimeService/RemovePodSandbox", pod).unwrap();
    }
}

fn sandbox(name: &str, logs: &Path) -> Sandbox {
    let namespaces = Some(Namespaces { network: NODE, pid: 1, ipc: NODE });
    Sandbox {
        metadata: Some(Metadata { name: name.into(), uid: name.into(), namespace: "test".into() }),
        log_directory: logs.display().to_string(),
        linux: Some(Linux { security: Some(SandboxSecurity { namespaces }) }),
    }
}
