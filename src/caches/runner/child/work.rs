//! The work directory of a child, with its pull secrets and configuration. It is deleted when the child ends.
//!
//! ```text
//! work/<id>/larder.toml                               settings for registries and builds; no tenants or keys
//! work/<id>/secrets/<namespace>/<name>/.dockerconfigjson
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::caches::pull_secrets::{Content, Unusable};
use larder_model::pull_secret::PullSecretName;

/// Deletes the leftovers of a crashed daemon. Creates the directory if it is missing and makes it private.
///
/// # Errors
/// Fails if the directory cannot be created or emptied.
pub fn clear_work(dir: &Path) -> io::Result<()> {
    make(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The directory of one child, deleted on drop.
#[derive(Debug)]
pub(super) struct Work {
    dir: PathBuf,
}

impl Work {
    /// Creates the directory `name` in `parent` and writes the configuration into it.
    pub(super) fn new(parent: &Path, name: &str, config: &str) -> io::Result<Self> {
        make(parent)?;
        let dir = parent.join(name);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        make(&dir)?;
        let work = Work { dir };
        make(&work.secrets())?;
        write(&work.config(), config.as_bytes())?;
        Ok(work)
    }

    /// Returns the directory of secrets.
    pub(super) fn secrets(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// Returns the file with the configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("larder.toml")
    }

    /// Writes the secrets that are found, returns their names in the order given, and adds the others to
    /// `unusable`.
    pub(super) fn lay_secrets(
        &self,
        names: &[PullSecretName],
        find: impl Fn(&PullSecretName) -> Option<Content>,
        unusable: &mut Unusable,
    ) -> io::Result<Vec<PullSecretName>> {
        let mut usable: Vec<PullSecretName> = Vec::new();
        for name in names {
            if usable.contains(name) {
                continue;
            }
            let Some(content) = find(name) else {
                unusable.add(&name.to_string());
                continue;
            };
            let dir = self.secrets().join(name.namespace());
            make(&dir)?;
            let dir = dir.join(name.name());
            make(&dir)?;
            write(&dir.join(content.form.file_name()), content.expose())?;
            usable.push(name.clone());
        }
        Ok(usable)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove the secrets of a builder");
        }
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caches::pull_secrets::HostSecrets;
    use crate::config::secrets::Secrets;

    #[test]
    fn secrets_are_written_for_one_child() {
        let root = tempfile::tempdir().unwrap();
        let host = root.path().join("host");
        for (name, content) in [("good", r#"{"auths":{}}"#), ("bad", "[")] {
            fs::create_dir_all(host.join("team").join(name)).unwrap();
            fs::write(host.join("team").join(name).join(".dockerconfigjson"), content).unwrap();
        }
        let host = HostSecrets::new(None, &Secrets { dir: host });
        let parent = root.path().join("work");
        fs::create_dir_all(parent.join("x/secrets/old")).unwrap();

        let work = Work::new(&parent, "x", "[log]\n").unwrap();
        let names = ["team:bad", "team:good", "team:none", "team:good"].map(|name| name.parse().unwrap());
        let mut unusable = Unusable::default();
        let usable = work.lay_secrets(&names, |name| host.find(name), &mut unusable).unwrap();
        assert_eq!(usable, names[1..2]);
        assert_eq!(unusable, ["team:bad", "team:none"].into_iter().collect());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let secret = work.secrets().join("team/good/.dockerconfigjson");
        assert_eq!((mode(secret.clone()), mode(work.config())), (0o600, 0o600));
        for dir in secret.ancestors().skip(1).take(4) {
            assert_eq!(mode(dir.to_owned()), 0o700, "{}", dir.display());
        }
        assert!(!work.secrets().join("old").exists());
        drop(work);
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_are_cleared() {
        let root = tempfile::tempdir().unwrap();
        let work = root.path().join("work");
        clear_work(&work).unwrap();
        fs::create_dir_all(work.join("a/secrets")).unwrap();
        fs::write(work.join("b"), "").unwrap();
        std::os::unix::fs::symlink("/", work.join("c")).unwrap();
        clear_work(&work).unwrap();
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    }
}
