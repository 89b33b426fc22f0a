//! Verification in a separate sandboxed process. The caller has privileges on the node, and an untrusted
//! volume is parsed without them.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::volume;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::trust::Trust;
use larder_sys::Dir;

/// Path of the volume in the process, whose standard input is the open directory.
pub const PATH: &str = "/proc/self/fd/0";

/// Maximum size of a verdict, in bytes.
const MAX: u64 = 1 << 20;

/// JSON output of the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The volume with this digest of `cache.json` is verified.
    Verified(Digest),
    /// The volume could not be verified.
    Refused {
        /// Class of the error.
        class: Class,
        /// Description of the difference.
        message: String,
    },
}

/// Verifies the volume at `path` as [`verify_for_use`](super::verify_for_use) does, by running `larder
/// internal verify-child` in a sandbox. The signature is checked in this process. The running program must be
/// `larder`.
///
/// # Errors
/// The first difference, a signature that `trust` does not accept, or a process without a verdict.
pub fn verify_apart(path: &Path, trust: &Trust) -> Result<(), Error> {
    let failed = |doing| move |source| Error::io(doing, path.display(), source);
    let (sealed, _) = volume::read_trusted(path, trust)?;
    let dir = Dir::open(path).map_err(failed("opening the volume"))?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["internal", "verify-child", PATH]).env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| name == "TMPDIR"));
    command.stdin(OwnedFd::from(dir)).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed("starting the verifier for"))?;
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX).read_to_end(&mut text).map_err(failed("reading the output of the verifier for"))?;
    }
    let status = child.wait().map_err(failed("waiting for the verifier for"))?;
    match serde_json::from_slice(&text) {
        Ok(Verdict::Verified(digest)) if status.success() && digest == sealed.digest => Ok(()),
        Ok(Verdict::Refused { class, message }) => Err(Error::Apart { class, message }),
        _ => {
            let source = io::Error::other(format!("the verifier ended with {status} and gave no result"));
            Err(Error::io("verifying", path.display(), source))
        }
    }
}
