//! The errors of requests to containerd.

use std::error::Error as _;
use std::io;

use tonic::{Code, Status};

use super::user::User;
use crate::node::grpc::Unreachable;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::io_error::{FileRole, Operation, class, hint};

/// Registering or removing images in containerd failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd does not accept connections.
    #[error(
        "containerd does not answer at {socket}: {source}{}",
        hint(Operation::ConnectToContainerd, source)
    )]
    Unreachable {
        /// Path of the socket.
        socket: String,
        /// The error of the connection.
        r#source: io::Error,
    },
    /// containerd has no snapshotter with this name.
    #[error(
        "containerd has no snapshotter {0:?}: write the drop-in file that `larder attach --dry-run` shows, check that config.toml imports it, and restart containerd"
    )]
    NoSnapshotter(String),
    /// containerd cannot connect to the snapshotter.
    #[error(
        "containerd cannot connect to the snapshotter {snapshotter:?}: is `larder snapshotter` running? ({message})"
    )]
    SnapshotterDown {
        /// Name of the snapshotter.
        snapshotter: String,
        /// The message of containerd.
        message: String,
    },
    /// The snapshotter does not have a layer of the volume.
    #[error(
        "the snapshotter {snapshotter:?} has no layer {layer} of {image}: is the volume attached, and is it Larder's snapshotter?"
    )]
    NoLayer {
        /// Name of the snapshotter.
        snapshotter: String,
        /// Chain ID of the layer.
        layer: ChainId,
        /// Reference of the image.
        image: String,
    },
    /// containerd returned an error.
    #[error("{doing} {}: containerd answered: {message}", escape(what))]
    Refused {
        /// The action that failed.
        doing: &'static str,
        /// The object of the action.
        what: String,
        /// The gRPC status code.
        code: Code,
        /// The message of containerd.
        message: String,
    },
    /// containerd did not answer in time.
    #[error(
        "{doing} {}: no answer from containerd within {seconds} s: try again, or check its log",
        escape(what)
    )]
    Late {
        /// The action that failed.
        doing: &'static str,
        /// The object of the action.
        what: String,
        /// The timeout, seconds.
        seconds: u64,
    },
    /// A document of the volume does not match its seal.
    #[error("the volume at {at} is damaged: {reason}: it is not used; run `larder verify` for details")]
    Damaged {
        /// Mount point of the volume.
        at: String,
        /// The difference from the seal.
        reason: String,
    },
    /// A document of the volume cannot be read.
    #[error("reading {path} of the volume: {source}")]
    Read {
        /// Path from the root of the volume.
        path: String,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// Containers use layers of the volume.
    #[error("the volume is in use: {}: stop and remove them first", listed(.0))]
    InUse(Vec<User>),
    /// No thread can be started.
    #[error("starting a runtime: {0}")]
    Runtime(io::Error),
}

impl Error {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Class::Denied
            }
            Error::Unreachable { .. } | Error::SnapshotterDown { .. } | Error::Late { .. } => {
                Class::Transient
            }
            Error::NoSnapshotter(_) => Class::Invalid,
            Error::NoLayer { .. } => Class::NotFound,
            Error::Refused { code, .. } => match code {
                Code::Unavailable | Code::DeadlineExceeded | Code::Aborted => Class::Transient,
                Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Class::Invalid,
                Code::PermissionDenied | Code::Unauthenticated => Class::Denied,
                Code::ResourceExhausted => Class::NoSpace,
                Code::NotFound => Class::NotFound,
                Code::AlreadyExists | Code::FailedPrecondition => Class::Conflict,
                _ => Class::Internal,
            },
            Error::Damaged { .. } => Class::Corrupt,
            Error::Read { source, .. } => class(source, FileRole::Sealed),
            Error::InUse(_) => Class::Busy,
            Error::Runtime(_) => Class::Internal,
        }
    }
}

/// Converts an error status of containerd.
pub(super) fn refused(doing: &'static str, what: &str, snapshotter: &str, status: &Status) -> Error {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(Unreachable { socket, source }) = error.downcast_ref() {
            let socket = socket.display().to_string();
            return Error::Unreachable { socket, source: io::Error::new(source.kind(), source.to_string()) };
        }
        source = error.source();
    }
    let message = escape(status.message());
    if status.code() == Code::InvalidArgument && message.contains("snapshotter not loaded") {
        return Error::NoSnapshotter(snapshotter.to_owned());
    }
    Error::Refused { doing, what: what.to_owned(), code: status.code(), message }
}

/// Maximum number of users listed in a message.
const MAX_LISTED: usize = 10;

fn listed(users: &[User]) -> String {
    let mut text: Vec<String> = users.iter().take(MAX_LISTED).map(User::to_string).collect();
    if users.len() > MAX_LISTED {
        text.push(format!("{} more", users.len() - MAX_LISTED));
    }
    text.join(", ")
}
