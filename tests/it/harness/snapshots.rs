//! `larder snapshotter` with its own directory, and a client that sends the requests of containerd.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use chrono::Utc;
use larder::caches::attachments::{Attachment, Attachments};
use larder::node::snapshotter::SOCKET;
use larder_containerd_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use larder_containerd_api::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, UsageResponse,
    ViewSnapshotRequest,
};
use larder_containerd_api::types::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::{Code, Response, Status};

use super::served::Running;
use super::{larder, succeed};
use larder::node::grpc::{self, Channel};

/// Time limit for the start, and for the release of volumes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The label that names a layer by its chain ID.
pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";

/// A snapshotter. Killed when it is dropped; its mounts are removed with the namespace of the test.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    running: Option<Running>,
    /// Command line that starts it, in front of its own.
    starter: Vec<String>,
    /// The socket that it inherits, as from a systemd socket unit.
    listener: Option<UnixListener>,
    dir: TempDir,
    pub(crate) client: Client,
}

impl Snapshotter {
    /// Starts it and waits until it answers. It mounts, so call it in an isolated test.
    pub(crate) fn start() -> Self {
        Snapshotter::start_by(&[])
    }

    /// Does the same as [`Snapshotter::start`], by another program that executes it.
    pub(crate) fn start_by(starter: &[String]) -> Self {
        let mut snapshotter = Snapshotter::stopped(starter);
        snapshotter.restart();
        snapshotter
    }

    /// Prepares a snapshotter that does not run yet. This process already listens on its socket, in place of
    /// systemd.
    pub(crate) fn activated_by(starter: &[String]) -> Self {
        let activate = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
        let activate = ["bash", "-c", activate, "activate"].map(str::to_owned);
        let mut snapshotter = Snapshotter::stopped(&[&activate, starter].concat());
        snapshotter.listener = Some(UnixListener::bind(snapshotter.socket()).unwrap());
        snapshotter
    }

    fn stopped(starter: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(dir.path().join("s"));
        // The root has a short path, so that the paths of 120 layers fit in one page. Other commands look for
        // it in the state directory.
        fs::create_dir(dir.path().join("state")).unwrap();
        symlink("../root", dir.path().join("state/snapshotter")).unwrap();
        Snapshotter { running: None, starter: starter.to_vec(), listener: None, dir, client }
    }

    /// Returns the command line.
    pub(crate) fn command(&self) -> Command {
        let program = larder().get_program().to_str().unwrap().to_owned();
        let mut words = self.starter.iter().chain([&program]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .arg("snapshotter")
            .arg("--socket")
            .arg(self.socket())
            .arg("--root")
            .arg(self.root());
        command.env("LARDER_STATE__DIR", self.state());
        command
    }

    /// Starts it again after a kill.
    pub(crate) fn restart(&mut self) {
        assert!(self.running.is_none(), "it is running");
        let log = File::options().append(true).create(true).open(self.dir.path().join("log")).unwrap();
        let input = match &self.listener {
            Some(listener) => OwnedFd::from(listener.try_clone().unwrap()).into(),
            None => Stdio::null(),
        };
        let child = self.command().stdin(input).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let mut running = Running::of(child.unwrap());
        let deadline = Instant::now() + TIMEOUT;
        while self.client.list(&["name==none"]).is_err() {
            let ended = running.has_ended();
            assert!(!ended && Instant::now() < deadline, "the snapshotter did not start:\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
        self.running = Some(running);
    }

    /// Sends SIGKILL, so none of its handlers runs.
    pub(crate) fn kill(&mut self) {
        self.running.take().unwrap().kill();
    }

    /// Returns the running process.
    pub(crate) fn process(&mut self) -> &mut Running {
        self.running.as_mut().unwrap()
    }

    /// Returns the path of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Makes it available at containerd's default path for it.
    pub(crate) fn link_default_socket(&self) {
        let place = Path::new(SOCKET);
        let parent = place.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        mount(Some("test"), parent, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        symlink(self.socket(), place).unwrap();
    }

    /// Returns its root directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Returns the log of the process.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Returns the state directory that it uses.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn records(&self) -> Attachments {
        Attachments::new(self.state().join("attached"))
    }

    /// Mounts a volume read-only under `name` and writes its record. Returns the mount point.
    pub(crate) fn attach(&self, volume: &Path, name: &str) -> PathBuf {
        let at = self.dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        self.records().note(&Attachment::new(volume, &at, Utc::now())).unwrap();
        mount(Some(volume), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &at, None::<&str>, flags, None::<&str>).unwrap();
        at
    }

    /// Removes the record of the volume at `at`, and unmounts it as soon as it is released.
    pub(crate) fn detach(&self, at: &Path) {
        self.records().forget(at).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while let Err(e) = umount2(at, MntFlags::empty()) {
            assert!(Instant::now() < deadline, "unmounting {}: {e}\n{}", at.display(), self.log());
            sleep(Duration::from_millis(50));
        }
    }
}

/// A client that sends the requests of containerd.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: Runtime,
    socket: PathBuf,
}

type Answer<T> = Result<T, Status>;

/// Returns the labels of a request.
pub(crate) fn labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Client { runtime: Runtime::new().unwrap(), socket }
    }

    /// Makes a gRPC call.
    pub(crate) fn call<T>(
        &self,
        call: impl AsyncFnOnce(SnapshotsClient<Channel>) -> Answer<Response<T>>,
    ) -> Answer<T> {
        let channel = grpc::channel(self.socket.clone());
        let client = SnapshotsClient::with_origin(channel, grpc::origin());
        self.runtime.block_on(call(client)).map(Response::into_inner)
    }

    pub(crate) fn prepare(&self, key: &str, parent: &str, given: &[(&str, &str)]) -> Answer<Vec<Mount>> {
        let (key, parent, labels) = (key.into(), parent.into(), labels(given));
        let request = PrepareSnapshotRequest { key, parent, labels, ..Default::default() };
        self.call(async |mut client| client.prepare(request).await).map(|answer| answer.mounts)
    }

    pub(crate) fn view(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        let request = ViewSnapshotRequest { key: key.into(), parent: parent.into(), ..Default::default() };
        self.call(async |mut client| client.view(request).await).map(|answer| answer.mounts)
    }

    pub(crate) fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let request = MountsRequest { key: key.into(), ..Default::default() };
        self.call(async |mut client| client.mounts(request).await).map(|answer| answer.mounts)
    }

    pub(crate) fn commit(&self, name: &str, key: &str, given: &[(&str, &str)]) -> Answer<()> {
        let (name, key, labels) = (name.into(), key.into(), labels(given));
        let request = CommitSnapshotRequest { name, key, labels, ..Default::default() };
        self.call(async |mut client| client.commit(request).await)
    }

    pub(crate) fn remove(&self, key: &str) -> Answer<()> {
        let request = RemoveSnapshotRequest { key: key.into(), ..Default::default() };
        self.call(async |mut client| client.remove(request).await)
    }

    pub(crate) fn stat(&self, key: &str) -> Answer<Info> {
        let request = StatSnapshotRequest { key: key.into(), ..Default::default() };
        self.call(async |mut client| client.stat(request).await).map(|answer| answer.info.unwrap())
    }

    /// Sets labels. An empty mask means all of them.
    pub(crate) fn update(&self, name: &str, given: &[(&str, &str)], mask: &[&str]) -> Answer<Info> {
        let info = Info { name: name.into(), labels: labels(given), ..Default::default() };
        let paths: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = (!paths.is_empty()).then_some(prost_types::FieldMask { paths });
        let request = UpdateSnapshotRequest { info: Some(info), update_mask, ..Default::default() };
        self.call(async |mut client| client.update(request).await).map(|answer| answer.info.unwrap())
    }

    pub(crate) fn usage(&self, key: &str) -> Answer<UsageResponse> {
        let request = UsageRequest { key: key.into(), ..Default::default() };
        self.call(async |mut client| client.usage(request).await)
    }

    pub(crate) fn cleanup(&self) -> Answer<()> {
        self.call(async |mut client| client.cleanup(CleanupRequest::default()).await)
    }

    /// Returns the messages of a list.
    pub(crate) fn list_messages(&self, filters: &[&str]) -> Answer<Vec<Vec<Info>>> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { filters, ..Default::default() };
        self.call(async |mut client| {
            let mut stream = client.list(request).await?.into_inner();
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await? {
                messages.push(message.info);
            }
            Ok(Response::new(messages))
        })
    }

    pub(crate) fn list(&self, filters: &[&str]) -> Answer<Vec<Info>> {
        Ok(self.list_messages(filters)?.into_iter().flatten().collect())
    }

    /// Returns the names of a list, sorted.
    pub(crate) fn names(&self, filters: &[&str]) -> Vec<String> {
        let mut names: Vec<String> = self.list(filters).unwrap().into_iter().map(|info| info.name).collect();
        names.sort();
        names
    }

    /// Requests the layer `chain` on top of `parent` as containerd does before it unpacks one. Returns the
    /// name of the existing snapshot; `None` if the layer must be fetched.
    pub(crate) fn take(&self, chain: &str, parent: &str) -> Option<String> {
        let key = format!("extract {chain} {parent}");
        match self.prepare(&key, parent, &[(TARGET, chain)]) {
            Ok(_) => {
                self.remove(&key).unwrap();
                None
            }
            Err(status) => {
                assert_eq!(status.code(), Code::AlreadyExists, "{status}");
                let filter = format!("labels.{TARGET:?}=={chain},parent=={parent:?}");
                let found = self.list(&[&filter]).unwrap();
                assert_eq!(found.len(), 1, "{found:?}");
                Some(found.into_iter().next().unwrap().name)
            }
        }
    }
}

/// A snapshot mounted for inspection. Unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct Mounted(TempDir);

impl Mounted {
    /// Mounts as containerd does.
    pub(crate) fn new(mounts: &[Mount]) -> Self {
        let [what] = mounts else { panic!("{mounts:?}") };
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", &what.r#type]).arg("-o").arg(what.options.join(","));
        succeed(command.arg(&what.source).arg(dir.path()));
        Mounted(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns a path inside the snapshot.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}
