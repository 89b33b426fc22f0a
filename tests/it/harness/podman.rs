//! Debian's podman, with its own store.
//!
//! A container starts from a sealed volume that is mounted read-only as an additional image store, with an
//! empty primary store and no network. On a machine with cgroup v1 or a hybrid, crun refuses to run.
//! Therefore podman runs in a mount namespace with cgroup2 on /sys/fs/cgroup, and creates no cgroup.
//! `--ulimit` keeps within the limits of a rootless container host.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::filesystem::unmount_below;
use super::succeed;

/// A podman with an empty store.
#[derive(Debug)]
pub(crate) struct Podman {
    dir: TempDir,
}

/// Options of every `podman run`.
const RUN_OPTIONS: [&str; 5] =
    ["run", "--rm", "--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];

/// Mounts cgroup2 and, if given, the volume (`$1`, at `$2`). Then executes podman with the arguments that
/// follow.
const RUN: &str = r#"
set -e
mount --make-rprivate /
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
if [ -n "$1" ]; then
    mkdir -p "$2"
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
fi
shift 2
exec podman "$@"
"#;

impl Podman {
    /// Creates a podman with an empty store.
    pub(crate) fn new() -> Self {
        Podman { dir: tempfile::tempdir().unwrap() }
    }

    /// Returns the options that keep all files of podman inside this test's directory.
    fn store(&self) -> Vec<String> {
        let path = |name| self.dir.path().join(name).display().to_string();
        let mut options = vec!["--storage-driver=overlay".into()];
        options.extend(["--cgroup-manager=cgroupfs", "--events-backend=none"].map(String::from));
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            options.extend([option.into(), path(name)]);
        }
        options
    }

    /// Runs `command` in a container of `image` from the volume and returns its standard output.
    ///
    /// The volume is mounted at a short path, because the mount options of overlayfs must fit in one page.
    pub(crate) fn run(&self, volume: &Path, image: &str, command: &[&str]) -> String {
        succeed(&mut self.run_command(volume, image, command))
    }

    /// Runs `command` in a container of an image in the primary store.
    pub(crate) fn run_own(&self, image: &str, command: &[&str]) -> String {
        succeed(&mut self.run_command(Path::new(""), image, command))
    }

    /// Loads an archive or a layout into the primary store.
    pub(crate) fn load(&self, archive: &Path) -> String {
        // podman treats the path of a layout as a name, which cannot contain capitals.
        let (dir, name) = (archive.parent().unwrap(), archive.file_name().unwrap());
        let mut podman = Command::new("podman");
        succeed(podman.current_dir(dir).args(self.store()).args(["load", "--quiet", "--input"]).arg(name))
    }

    /// Saves images of the primary store to a file.
    pub(crate) fn save(&self, format: &str, images: &[&str], archive: &Path) {
        let mut podman = Command::new("podman");
        podman.args(self.store()).args(["save", "--quiet", "--format", format]);
        if images.len() > 1 {
            podman.arg("--multi-image-archive");
        }
        succeed(podman.arg("--output").arg(archive).args(images));
    }

    fn run_command(&self, volume: &Path, image: &str, command: &[&str]) -> Command {
        let mut podman = self.isolated(volume);
        podman.args(RUN_OPTIONS).args(["--pull=never", "--network=none", image]).args(command);
        podman
    }

    /// Returns a command that runs a container of an image in the network of this machine. `image` is a name,
    /// or `oci:` and the path of a layout.
    pub(crate) fn container(&self, options: &[String], image: &str, command: &[&str]) -> Command {
        let mut podman = self.isolated(Path::new(""));
        podman.args(RUN_OPTIONS).arg("--network=host").args(options).arg(image).args(command);
        podman
    }

    /// Returns podman in a private mount namespace, where the volume, if any, is an additional store.
    fn isolated(&self, volume: &Path) -> Command {
        let mut podman = Command::new("unshare");
        podman.args(["--mount", "sh", "-c", RUN, "podman"]);
        let mounted = self.dir.path().join("v");
        podman.arg(volume).arg(&mounted).args(self.store());
        if volume != Path::new("") {
            podman.arg("--storage-opt");
            podman.arg(format!("additionalimagestore={}", mounted.display()));
        }
        podman
    }

    /// Pulls a reference from a registry on loopback into the primary store.
    pub(crate) fn pull(&self, reference: &str) {
        succeed(Command::new("podman").args(self.store()).args([
            "pull",
            "--quiet",
            "--tls-verify=false",
            reference,
        ]));
    }

    /// Returns the primary store, where a pulled image has the same layout as on a volume.
    pub(crate) fn primary_store(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Mounts a pulled image read-only and returns the mount point. Call it in an isolated test.
    pub(crate) fn mount(&self, reference: &str) -> PathBuf {
        let path = succeed(Command::new("podman").args(self.store()).args(["image", "mount", reference]));
        PathBuf::from(path.trim())
    }
}

impl Drop for Podman {
    /// Unmounts leftovers of podman, so that the directory can be deleted.
    fn drop(&mut self) {
        unmount_below(self.dir.path());
    }
}
