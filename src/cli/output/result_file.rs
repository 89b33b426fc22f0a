//! The result file: one JSON line under 4 KiB, which Kubernetes reads as the termination message.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use larder_model::event::Outcome;

/// Kubernetes cuts a termination message at 4096 bytes (kubelet, `MaxContainerTerminationMessageLength`).
const LIMIT: usize = 4096;

/// Writes `outcome` to `path`, in place: the termination message file of a pod is a bind mount and cannot be
/// replaced by a rename. A failure is only logged, because the build has already ended.
pub(in crate::cli) fn write(path: &Path, outcome: &Outcome) {
    if let Err(error) = try_write(path, outcome) {
        tracing::error!(path = %path.display(), %error, "cannot write the result file");
    }
}

fn try_write(path: &Path, outcome: &Outcome) -> io::Result<()> {
    // One byte is reserved for the newline.
    let mut line = outcome.to_short_line(LIMIT - 1)?;
    line.push('\n');
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::outcome::usage_outcome;
    use larder_model::class::Class;

    #[test]
    fn in_place_and_short() {
        let path = std::env::temp_dir().join(format!("larder-result-{}", std::process::id()));
        std::fs::write(&path, "x".repeat(9000)).unwrap();
        write(&path, &usage_outcome(Class::Invalid, &"é".repeat(9000)));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(text.len() < LIMIT && text.ends_with('\n') && text.lines().count() == 1);
        let back: Outcome = serde_json::from_str(&text).unwrap();
        assert_eq!((back.exit_code, back.truncated), (64, true));
    }
}
