//! A node with podman and buildah: an `/etc/containers` of its own, an empty store, and what is mounted in the test's mount
//! namespace.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder::node::podman::config::Change;
use tempfile::TempDir;

use super::filesystem::unmount_below;
use super::succeed;

/// The node. Use it in an isolated test.
#[derive(Debug)]
pub(crate) struct Node {
    dir: TempDir,
}

/// Has the node (`$0`) in the place of this machine, cgroup2 on /sys/fs/cgroup, and becomes the command.
const ENTER: &str = r#"
set -e
mount --make-rprivate /
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
mkdir -p /var/lib/containers /run/containers
mount --bind "$0/etc/containers" /etc/containers
mount --bind "$0/var/lib/containers" /var/lib/containers
mount --bind "$0/run" /run/containers
exec "$@"
"#;

impl Node {
    /// A node with what Debian has in `/etc/containers`, and nothing else.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["etc", "var/lib/containers", "run", "usr/bin"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        succeed(Command::new("cp").args(["-a", "/etc/containers"]).arg(dir.path().join("etc")));
        let _ = fs::remove_file(dir.path().join("etc/containers/storage.conf"));
        Node { dir }
    }

    /// Its root directory, as far as there is one.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Writes and removes files as it says.
    pub(crate) fn apply(&self, change: &Change) {
        for (path, text) in &change.files {
            let path = self.root().join(path);
            match text {
                Some(text) => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, text).unwrap();
                }
                None => drop(fs::remove_file(path)),
            }
        }
    }

    /// A program on the node.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", ENTER]).arg(self.root()).arg(program);
        if program == "podman" {
            command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]);
        }
        command
    }

    /// `podman run` of an image that is there; a container in no network.
    pub(crate) fn container(&self, options: &[&str], image: &str, command: &[&str]) -> Command {
        let mut podman = self.command("podman");
        podman.args(["run", "--rm", "--cgroups=disabled", "--pull=never", "--network=none"]);
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        podman.args(options).arg(image).args(command);
        podman
    }

    /// What a script prints in a container of an image.
    pub(crate) fn printed(&self, image: &str, script: &str) -> String {
        succeed(&mut self.container(&[], image, &["/bin/sh", "-c", script]))
    }

    /// The names of all images, sorted.
    pub(crate) fn images(&self) -> Vec<String> {
        let mut podman = self.command("podman");
        let printed = succeed(podman.args(["images", "--format", "{{.Repository}}:{{.Tag}}"]));
        let mut names: Vec<String> = printed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    /// Unmounts what podman left mounted, so that the directory can go.
    fn drop(&mut self) {
        unmount_below(self.dir.path());
    }
}
