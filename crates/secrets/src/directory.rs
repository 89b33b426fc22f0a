//! A directory of secrets in Kubernetes' format: `<dir>/<namespace>/<name>/.dockerconfigjson` or
//! `.dockercfg`.
//!
//! Only the secrets in the job are read. Symbolic links in the directory (`..data`) belong to the operator
//! and are followed.

use std::io::{self, Read as _};
use std::path::Path;

use super::keyring::{Entries, Keyring};
use super::pull_secret_data::{MAX_BYTES, parse_dockercfg, parse_dockerconfigjson};
use larder_model::pull_secret::PullSecretName;
use larder_sys::private;

/// Reads the given secrets in their order.
///
/// A missing, unreadable or malformed secret counts as no credential, as in the kubelet, and is listed in
/// [`Keyring::absent`]. The three cases are not distinguished, because a caller can specify secrets of other
/// users.
pub fn read(dir: &Path, names: &[PullSecretName]) -> Keyring {
    let mut keyring = Keyring::default();
    for name in names {
        match read_secret(&dir.join(name.namespace()).join(name.name())) {
            Some(entries) => keyring.add(entries),
            None => keyring.add_absent(name.clone()),
        }
    }
    keyring
}

fn read_secret(dir: &Path) -> Option<Entries> {
    if let Ok(bytes) = read_limited(&dir.join(".dockerconfigjson")) {
        return parse_dockerconfigjson(&bytes).ok();
    }
    let bytes = read_limited(&dir.join(".dockercfg")).ok()?;
    parse_dockercfg(&bytes).ok()
}

/// Reads at most one byte more than [`MAX_BYTES`], which the parser then refuses. Logs a warning if other
/// users can read the file. It still uses the file, because Kubernetes mounts a Secret with such a mode by
/// default.
///
/// # Errors
/// Returns the error of opening or reading the file.
pub fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (file, exposed) = private::open(path)?;
    if let Some(exposed) = exposed {
        tracing::warn!(path = %path.display(), "the file of a pull secret is not private: {exposed}");
    }
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn secrets_as_kubernetes_mounts_them() {
        let root = tempfile::tempdir().unwrap();
        let secret = |name: &str| {
            let dir = root.path().join("team").join(name);
            fs::create_dir_all(dir.join("..2026")).unwrap();
            symlink("..2026", dir.join("..data")).unwrap();
            dir
        };
        let json = secret("json");
        fs::write(
            json.join("..data/.dockerconfigjson"),
            r#"{"auths":{"r.io":{"username":"json","password":"p"}}}"#,
        )
        .unwrap();
        symlink("..data/.dockerconfigjson", json.join(".dockerconfigjson")).unwrap();
        fs::write(secret("cfg").join(".dockercfg"), r#"{"r.io":{"username":"cfg","password":"p"}}"#).unwrap();
        fs::write(secret("bad").join(".dockerconfigjson"), "[").unwrap();

        let names = ["team:cfg", "team:bad", "team:missing", "team:json"].map(|n| n.parse().unwrap());
        let keyring = read(root.path(), &names);
        let found = format!("{:?}", keyring.lookup("r.io", "a"));
        assert!(found.find("cfg") < found.find("json") && found.contains("json"), "{found}");
        assert_eq!(keyring.absent(), &names[1..3]);
    }
}
