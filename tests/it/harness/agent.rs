//! `larder node` on a node of the API server of `larder_testing`, whose kubelet mounts volumes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use larder_fake_kubernetes::Cluster;
use tempfile::TempDir;

use super::larder;
use super::served::Running;
use super::snapshots::Client;

/// The user of the agents.
pub(crate) const AGENT: &str = "system:serviceaccount:larder-nodes:larder-node";

/// An agent process. Killed when it is dropped; its mounts are removed with the namespace of the test.
#[derive(Debug)]
pub(crate) struct Agent {
    running: Option<Running>,
    dir: TempDir,
    /// A client of its snapshotter, as containerd would be.
    pub(crate) client: Client,
}

impl Agent {
    /// Starts an agent for an existing node, with `more` keys of `[node]`. Call it in an isolated test.
    pub(crate) fn start(cluster: &Cluster, node: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(dir.path().join("socket"));
        let mut agent = Agent { running: None, dir, client };
        let at = |name: &str| agent.at(name).display().to_string();
        fs::create_dir_all(at("kubelet/pods")).unwrap();
        cluster.mount_volumes(node, Path::new(&at("kubelet")));
        fs::write(at("token"), cluster.token(AGENT)).unwrap();
        fs::write(at("kubeconfig"), cluster.kubeconfig(Path::new(&at("token")), "default")).unwrap();
        let config = format!(
            "state.dir = '{}'\n[node]\nname = '{node}'\nkubeconfig = '{}'\nimage = 'larder:1'\n\
             storage_class = 'csi'\nmounts = '{}'\nkubelet = '{}'\n{more}\n",
            at("state"),
            at("kubeconfig"),
            at("icv"),
            at("kubelet"),
        );
        fs::write(at("larder.toml"), config).unwrap();
        agent.restart();
        agent
    }

    /// Starts it again after a kill.
    pub(crate) fn restart(&mut self) {
        assert!(self.running.is_none(), "it is running");
        let log = File::options().append(true).create(true).open(self.at("log")).unwrap();
        let mut command = larder();
        command
            .arg("node")
            .arg("--config")
            .arg(self.at("larder.toml"))
            .arg("--socket")
            .arg(self.at("socket"));
        command.args(["--log-level", "larder=debug"]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.running = Some(Running::of(child.unwrap()));
    }

    /// Sends SIGKILL, so none of its handlers runs.
    pub(crate) fn kill(&mut self) {
        self.running.take().unwrap().kill();
    }

    /// Returns the running process.
    pub(crate) fn process(&mut self) -> &mut Running {
        self.running.as_mut().unwrap()
    }

    /// Returns a path in the agent's own directory.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the mount points of the volumes that are attached according to records and mounts.
    pub(crate) fn attached(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = mounts.lines().map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
        // A mount inside such a directory belongs to its view.
        let icv = self.at("icv");
        let mut found: Vec<PathBuf> = points.filter(|point| point.parent() == Some(&icv)).collect();
        found.sort();
        found
    }

    /// Returns the log of the process.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }
}
