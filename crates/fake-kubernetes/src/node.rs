//! Nodes, and the parts of kubelets that are in no object.

mod log;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::kind::Id;

pub(super) use log::{Log, Tail};

/// A node that runs pods.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// Labels of the node, for `nodeSelector`.
    pub labels: Vec<(String, String)>,
    /// Program that is started for every container, with the container's `args`.
    pub program: PathBuf,
    /// Images that can be pulled. `None` means all.
    pub images: Option<Vec<String>>,
    /// Environment variables of containers, in addition to their own.
    pub environment: Vec<(OsString, OsString)>,
}

/// State of the kubelets that is in no object.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) nodes: HashMap<String, Node>,
    pub(super) lost: Vec<String>,
    /// Directory of the pods.
    pub(super) root: PathBuf,
    /// Directories of kubelets that mount volumes, by node name.
    pub(super) kubelets: HashMap<String, PathBuf>,
    /// Mount points of each pod, by pod uid.
    pub(super) mounted: HashMap<String, Vec<PathBuf>>,
    /// Started containers, by pod uid.
    pub(super) started: HashMap<String, mpsc::UnboundedSender<Kill>>,
    pub(super) logs: HashMap<String, Arc<Log>>,
    pub(super) start_requests: Vec<StartRequest>,
}

impl Nodes {
    /// Creates the state without nodes. Their pods are placed below `root`.
    pub(super) fn new(root: &Path) -> Self {
        Nodes { root: root.to_owned(), ..Nodes::default() }
    }

    /// Reports whether a node is lost.
    pub(super) fn is_lost(&self, node: &str) -> bool {
        self.lost.iter().any(|lost| lost == node)
    }

    pub(super) fn kill(&self, uid: &str, out_of_memory: bool) {
        if let Some(kill) = self.started.get(uid) {
            let _ = kill.send(if out_of_memory { Kill::OutOfMemory } else { Kill::Now });
        }
    }

    /// Returns the log of a pod's container, if it has started.
    pub(super) fn log(&self, uid: &str) -> Option<Arc<Log>> {
        self.logs.get(uid).cloned()
    }
}

/// Way in which a container is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    /// SIGTERM to the first process.
    Terminate,
    /// SIGKILL to all processes.
    Now,
    /// SIGKILL by the kernel, because memory ran out.
    OutOfMemory,
}

/// A request to start a container.
#[derive(Debug)]
pub(super) struct StartRequest {
    pub(super) id: Id,
    pub(super) uid: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) layout: PodLayout,
    pub(super) log: Arc<Log>,
    pub(super) kill: mpsc::UnboundedReceiver<Kill>,
}

/// Real locations of the mounts of a container.
#[derive(Clone, Debug)]
pub(super) struct PodLayout {
    /// Path in the container, and the path on this machine.
    pub(super) mounts: Vec<(String, PathBuf)>,
    /// Directory of the pod.
    pub(super) pod: PathBuf,
    /// Path of the termination message in the container, its file on this machine, and the policy.
    pub(super) termination: (String, PathBuf, String),
}

impl PodLayout {
    /// Converts a path in the container to one on this machine, including after `--flag=`.
    pub(super) fn rewrite(&self, argument: &str) -> String {
        let (flag, path) = match argument.split_once('=') {
            Some((flag, path)) => (format!("{flag}="), path),
            None => (String::new(), argument),
        };
        if path == self.termination.0 {
            return format!("{flag}{}", self.termination.1.display());
        }
        let below =
            |mount: &str| path.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let found = self.mounts.iter().filter_map(|(mount, real)| Some((mount.len(), real, below(mount)?)));
        match found.max_by_key(|(length, _, _)| *length) {
            Some((_, real, rest)) => format!("{flag}{}{rest}", real.display()),
            None => argument.to_owned(),
        }
    }
}
