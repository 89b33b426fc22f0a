//! A directory of secrets as Kubernetes writes them: `<dir>/<namespace>/<name>/.dockerconfigjson` or `.dockercfg`.
//!
//! Only the secrets that the job names are read. Symlinks inside (`..data`) are the operator's and are followed.

use std::io::{self, Read as _};
use std::path::Path;

use super::keyring::{Entries, Keyring};
use super::pull_secret_data::{MAX_BYTES, parse_dockercfg, parse_dockerconfigjson};
use larder_model::pull_secret::PullSecretName;
use larder_sys::private;

/// Reads the named secrets in their order.
///
/// A secret that is missing, unreadable or malformed counts as no credential, as with the kubelet, and is remembered in
/// [`Keyring::absent`]: a caller may name secrets that are not theirs, so the three are not told apart.
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

/// Reads at most one byte more than [`MAX_BYTES`], which the parser then refuses. Warns of a file that others can read: it is
/// used all the same, because that is the default mode of a Secret that Kubernetes mounts.
pub(crate) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (file, exposed) = private::open(path)?;
    if let Some(exposed) = exposed {
        tracing::warn!(path = %path.display(), "a pull secret is not private: {exposed}");
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
