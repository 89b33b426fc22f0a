//! What goes wrong between us and containerd.

use std::error::Error as _;
use std::io;

use tonic::{Code, Status};

use super::usage::User;
use crate::node::grpc::Unreachable;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::escape::escape;

/// Images cannot be made known, or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers.
    #[error("containerd does not answer at {socket}: {source}{}", remedy(source))]
    Unreachable {
        /// Its socket.
        socket: String,
        /// Why.
        source: io::Error,
    },
    /// containerd has no snapshotter of this name.
    #[error(
        "containerd has no snapshotter {0:?}: write the drop-in file that `larder attach --dry-run` shows, see that config.toml imports it, and restart containerd"
    )]
    NoSnapshotter(String),
    /// containerd does not reach the snapshotter.
    #[error(
        "containerd does not reach the snapshotter {snapshotter:?}: is `larder snapshotter` running? ({message})"
    )]
    SnapshotterDown {
        /// Its name.
        snapshotter: String,
        /// What containerd says.
        message: String,
    },
    /// The snapshotter would have a layer unpacked that the volume has.
    #[error(
        "the snapshotter {snapshotter:?} has no layer {layer} of {image}: is the volume attached, and is it Larder's snapshotter?"
    )]
    NoLayer {
        /// Its name.
        snapshotter: String,
        /// The layer.
        layer: ChainId,
        /// The image.
        image: String,
    },
    /// containerd refused something.
    #[error("{doing} {}: containerd says: {message}", escape(what))]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Its kind of error.
        code: Code,
        /// What it says.
        message: String,
    },
    /// containerd took too long.
    #[error(
        "{doing} {}: containerd has not answered for {seconds} s: try again, or look at its log",
        escape(what)
    )]
    Late {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// For how long it was waited, seconds.
        seconds: u64,
    },
    /// A document of the volume is not what its seal says.
    #[error("the volume at {at} is damaged: {reason}: it is not used; `larder verify` says more")]
    Damaged {
        /// Where it is mounted.
        at: String,
        /// What differs.
        reason: String,
    },
    /// A document of the volume cannot be read.
    #[error("reading {path} of the volume: {source}")]
    Read {
        /// Path from the root of the volume.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Containers stand on layers of the volume.
    #[error("the volume is in use: {}: stop and remove them first", told(.0))]
    InUse(Vec<User>),
    /// No thread can be started.
    #[error("starting a runtime: {0}")]
    Runtime(io::Error),
}

impl Error {
    /// The class, which decides about the exit code.
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
            Error::Read { source, .. } => larder_layer::error::io_class(source),
            Error::InUse(_) => Class::Busy,
            Error::Runtime(_) => Class::Internal,
        }
    }
}

/// What containerd answered instead of doing as asked.
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

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (its socket is root's)",
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ": is it running, and is this its socket?"
        }
        _ => "",
    }
}

/// Most users that are named.
const MAX_TOLD: usize = 10;

fn told(users: &[User]) -> String {
    let mut text: Vec<String> = users.iter().take(MAX_TOLD).map(User::to_string).collect();
    if users.len() > MAX_TOLD {
        text.push(format!("{} more", users.len() - MAX_TOLD));
    }
    text.join(", ")
}
