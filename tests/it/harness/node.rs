//! A simulated node: a directory for its file system, a state directory, and podman and buildah with an empty
//! store. All mounts are in the namespace of an isolated test.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::node::podman::config::Change;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::filesystem::unmount_below;
use super::{larder, succeed};

/// A node. Use it in an isolated test.
#[derive(Debug)]
pub(crate) struct Node {
    dir: TempDir,
    entered: Cell<bool>,
}

/// The node's own directories, and their paths for programs.
const PLACES: [(&str, &str); 3] = [
    ("etc/containers", "/etc/containers"),
    ("var/lib/containers", "/var/lib/containers"),
    ("run", "/run/containers"),
];

/// Mounts the node (`$0`) over this machine, mounts cgroup2 on /sys/fs/cgroup, and executes the command.
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
for name in subuid subgid; do
    if [ -e "$0/etc/$name" ]; then
        mount --bind "$0/etc/$name" "/etc/$name"
    fi
done
exec "$@"
"#;

impl Node {
    /// Creates a node without any runtime.
    pub(crate) fn new() -> Self {
        let node = Node { dir: tempfile::tempdir().unwrap(), entered: Cell::new(false) };
        fs::create_dir(node.root()).unwrap();
        node
    }

    /// Creates a node with Debian's default `/etc/containers`.
    pub(crate) fn with_podman() -> Self {
        let node = Node::new();
        for name in ["etc", "var/lib/containers", "run", "usr/bin"] {
            fs::create_dir_all(node.path(name)).unwrap();
        }
        succeed(Command::new("cp").args(["-a", "/etc/containers"]).arg(node.path("etc")));
        let _ = fs::remove_file(node.path("etc/containers/storage.conf"));
        node
    }

    /// Gives podman IDs for containers in user namespaces (`--userns=auto`).
    pub(crate) fn with_ids(self) -> Self {
        for name in ["etc/subuid", "etc/subgid"] {
            fs::write(self.path(name), "containers:2000000:1000000\n").unwrap();
        }
        self
    }

    /// Mounts the node over this machine for the rest of the test, so that `/` is its root for `larder` and
    /// for the programs that `larder` starts.
    pub(crate) fn enter(&self) {
        for (from, over) in PLACES {
            fs::create_dir_all(over).unwrap();
            mount(Some(&self.path(from)), over, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
        self.entered.set(true);
    }

    /// Returns the root of its file system.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Returns a path in its file system.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// Returns a path for a mount point.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Returns the command `larder attach` or `larder detach`.
    pub(crate) fn larder(&self, command: &str, source: &Path) -> Command {
        let mut larder = larder();
        larder.env("LARDER_STATE__DIR", self.state());
        larder.arg(command).arg(source).arg("--node-root").arg(self.root());
        larder
    }

    /// Returns the command `larder attach --at`.
    pub(crate) fn attach(&self, source: &Path, at: &Path) -> Command {
        let mut larder = self.larder("attach", source);
        larder.arg("--at").arg(at);
        larder
    }

    pub(crate) fn detach(&self, source: &Path) -> Command {
        self.larder("detach", source)
    }

    /// Returns the names of all files below its `/etc`.
    pub(crate) fn configured(&self) -> Vec<PathBuf> {
        let (etc, mut found) = (self.path("/etc"), Vec::new());
        let mut pending = vec![etc.clone()];
        while let Some(path) = pending.pop() {
            match fs::read_dir(&path) {
                Ok(names) if !path.is_symlink() => pending.extend(names.map(|name| name.unwrap().path())),
                _ if path.symlink_metadata().is_ok() => {
                    found.push(path.strip_prefix(&etc).unwrap().to_owned())
                }
                _ => {}
            }
        }
        found.sort();
        found
    }

    /// Writes and removes the files of a change.
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

    /// Returns a command that runs a program on the node.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", ENTER]).arg(self.root()).arg(program);
        if program == "podman" {
            command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]);
        }
        command
    }

    /// Returns the command `podman run` for a local image, with a container without network.
    pub(crate) fn container(&self, options: &[&str], image: &str, command: &[&str]) -> Command {
        let mut podman = self.command("podman");
        podman.args(["run", "--rm", "--cgroups=disabled", "--pull=never", "--network=none"]);
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        podman.args(options).arg(image).args(command);
        podman
    }

    /// Returns the output of a script in a container of an image.
    pub(crate) fn printed(&self, image: &str, script: &str) -> String {
        succeed(&mut self.container(&[], image, &["/bin/sh", "-c", script]))
    }

    /// Returns the names of all images, sorted.
    pub(crate) fn images(&self) -> Vec<String> {
        let mut podman = self.command("podman");
        let printed = succeed(podman.args(["images", "--format", "{{.Repository}}:{{.Tag}}"]));
        let mut names: Vec<String> = printed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    /// Unmounts leftovers of podman, so that the directory can be deleted.
    fn drop(&mut self) {
        for (_, over) in PLACES.iter().filter(|_| self.entered.get()) {
            umount2(*over, MntFlags::MNT_DETACH).unwrap();
        }
        unmount_below(self.dir.path());
    }
}
