//! Debian's containerd with its own root: pulls an image and mounts it, as a second opinion.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::succeed;

/// A running containerd. Stopped when it is dropped. It mounts, so start it in an isolated test.
#[derive(Debug)]
pub(crate) struct Containerd {
    process: Child,
    dir: TempDir,
    config: PathBuf,
}

impl Containerd {
    /// Starts it and waits until it answers.
    pub(crate) fn start() -> Self {
        Containerd::start_with("disabled_plugins = ['io.containerd.grpc.v1.cri']\n", "")
    }

    /// Starts it with CRI, with the snapshotter at `socket` under the name `larder`, and with an image for
    /// pod sandboxes.
    pub(crate) fn start_with_snapshotter(socket: &Path, sandbox: &str) -> Self {
        let tables = format!(
            "[proxy_plugins.larder]\ntype = 'snapshot'\naddress = '{}'\n\
             [plugins.'io.containerd.grpc.v1.cri']\ndisable_cgroup = true\nrestrict_oom_score_adj = true\nstream_server_port = '0'\n\
             sandbox_image = '{sandbox}'\n\
             [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'larder'\n",
            socket.display()
        );
        Containerd::start_with("", &tables)
    }

    /// Starts it with the snapshotters that the files in `conf.d` of the directory `etc` configure.
    pub(crate) fn start_importing(etc: &Path, sandbox: &str) -> Self {
        let tables = format!(
            "[plugins.'io.containerd.grpc.v1.cri']\ndisable_cgroup = true\nrestrict_oom_score_adj = true\nstream_server_port = '0'\n\
             sandbox_image = '{sandbox}'\n"
        );
        fs::create_dir_all(etc.join("conf.d")).unwrap();
        // containerd 1.6 resolves the pattern relative to its working directory.
        Containerd::start_at(etc.join("config.toml"), "imports = ['conf.d/*.toml']\n", &tables)
    }

    fn start_with(keys: &str, tables: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = path_of(&dir, "config.toml");
        Containerd::start_in(dir, config, keys, tables)
    }

    fn start_at(config: PathBuf, keys: &str, tables: &str) -> Self {
        Containerd::start_in(tempfile::tempdir().unwrap(), config, keys, tables)
    }

    fn start_in(dir: TempDir, config: PathBuf, keys: &str, tables: &str) -> Self {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\n{keys}\
             [grpc]\naddress = '{}'\n[ttrpc]\naddress = '{}'\n{tables}",
            path("root"),
            path("state"),
            path("socket"),
            path("ttrpc"),
        );
        fs::write(&config, text).unwrap();
        let containerd = Containerd { process: spawn(&dir, &config), dir, config };
        containerd.wait();
        containerd
    }

    /// Kills it. Its containers continue.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Kills it and starts it again.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = spawn(&self.dir, &self.config);
        self.wait();
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            assert!(Instant::now() < deadline, "containerd did not start:\n{}", self.log());
            sleep(Duration::from_millis(50));
        }
    }

    /// Returns the log of the process.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(path_of(&self.dir, "log")).unwrap_or_default()
    }

    fn answers(&self) -> bool {
        let mut version = self.ctr(&["version"]);
        version.stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    /// Returns the path of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        path_of(&self.dir, "socket")
    }

    /// Returns a `ctr` command in the namespace of kubelets.
    pub(crate) fn k8s(&self, arguments: &[&str]) -> Command {
        self.ctr(&[&["--namespace", "k8s.io"], arguments].concat())
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(path_of(&self.dir, "socket"));
        ctr.args(arguments);
        ctr
    }

    /// Imports an image archive.
    pub(crate) fn import(&self, archive: &Path) {
        succeed(self.ctr(&["images", "import"]).arg(archive));
    }

    /// Runs `command` in a container of an image, and then removes the image.
    pub(crate) fn run_once(&self, image: &str, command: &[&str]) -> String {
        let printed = succeed(self.ctr(&["run", "--rm", image, "container"]).args(command));
        succeed(&mut self.ctr(&["images", "rm", "--sync", image]));
        printed
    }

    /// Pulls a reference from a registry on loopback and mounts its file system read-only. Returns the mount
    /// point.
    pub(crate) fn pull_and_mount(&self, reference: &str) -> PathBuf {
        succeed(&mut self.ctr(&["images", "pull", "--plain-http", reference]));
        let target = self.dir.path().join("mount");
        fs::create_dir(&target).unwrap();
        succeed(self.ctr(&["images", "mount", reference]).arg(&target));
        target
    }
}

fn spawn(dir: &TempDir, config: &Path) -> Child {
    let log = File::options().append(true).create(true).open(path_of(dir, "log")).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(config).current_dir(config.parent().unwrap()).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn path_of(dir: &TempDir, name: &str) -> PathBuf {
    Path::join(dir.path(), name)
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Fails if it is not mounted, which does not matter.
        let _ = nix::mount::umount2(&path_of(&self.dir, "mount"), nix::mount::MntFlags::MNT_DETACH);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
