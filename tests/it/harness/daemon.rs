//! `larder serve` on loopback, with its own configuration and state directory.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_model::digest::Digest;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Response, send};
use super::larder;
use super::served::Running;

/// Time limit for a daemon to accept requests, and to stop.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Settings for most tests: room for many caches on any disk, no rate limits, failures after a short time.
pub(crate) const ROOMY: &str = "\
caches.capacity = '20TiB'
caches.volume_kind = 'directory'
api.requests_per_second = 2000
registry.retries = 1
registry.backoff_max_seconds = 1
registry.connect_timeout_seconds = 2
";

/// Returns the same settings for caches on disks.
pub(crate) fn on_disks() -> String {
    ROOMY.replace("volume_kind = 'directory'", "volume_kind = 'disk'")
}

/// A tenant of the daemon. Its token and keys are derived from its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant(pub(crate) &'static str);

impl Tenant {
    pub(crate) fn token(self) -> String {
        format!("token-of-{}", self.0)
    }

    fn access_key(self) -> String {
        format!("AK-{}", self.0)
    }

    fn secret_key(self) -> String {
        format!("secret-key-of-{}", self.0)
    }

    /// Returns the credentials of a client.
    pub(crate) fn credentials(self) -> Value {
        json!({
            "name": self.0, "token": self.token(),
            "access_key": self.access_key(), "secret_key": self.secret_key(),
        })
    }

    fn configured(self, dir: &Path) -> String {
        let secret_file = dir.join(format!("{}.secret", self.0));
        fs::write(&secret_file, self.secret_key()).unwrap();
        fs::set_permissions(&secret_file, Permissions::from_mode(0o600)).unwrap();
        let token = Digest::sha256(self.token().as_bytes());
        let (name, hash, key) = (self.0, token.hex(), self.access_key());
        format!(
            "[[tenant]]\nname = '{name}'\ntoken_sha256 = ['{hash}']\n\
             access_keys = [{{ id = '{key}', secret_file = '{}' }}]\npull_secrets = ['{name}:*']\n",
            secret_file.display()
        )
    }
}

/// A daemon process. Killed when it is dropped, and its state is deleted.
#[derive(Debug)]
pub(crate) struct Daemon {
    running: Option<Running>,
    /// Command line that starts it, in front of its own.
    starter: Vec<String>,
    address: SocketAddr,
    dir: TempDir,
}

impl Daemon {
    /// Starts a daemon for `tenants`, with `more` keys in dotted form, and waits until it accepts requests.
    pub(crate) fn start(tenants: &[Tenant], more: &str) -> Self {
        Daemon::start_by(&[], tenants, more)
    }

    /// Does the same as [`Daemon::start`], by another program that executes the daemon.
    pub(crate) fn start_by(starter: &[String], tenants: &[Tenant], more: &str) -> Self {
        // Another process can take the free port before the daemon binds it, so a lost race is repeated.
        let mut failed = String::new();
        for _ in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            configure(dir.path(), Some(address), tenants, more);
            let mut daemon = Daemon { running: None, starter: starter.to_vec(), address, dir };
            match daemon.try_run() {
                Ok(()) => return daemon,
                Err(log) => failed = log,
            }
        }
        panic!("larder serve did not start:\n{failed}");
    }

    /// Starts it again after a stop, with the same state and address.
    pub(crate) fn restart(&mut self) {
        assert!(self.running.is_none(), "it is running");
        if let Err(log) = self.try_run() {
            panic!("larder serve did not restart:\n{log}");
        }
    }

    fn try_run(&mut self) -> Result<(), String> {
        let log = fs::File::options().append(true).create(true).open(self.dir.path().join("log")).unwrap();
        let serve = serve(self.dir.path());
        let mut words =
            self.starter.iter().map(OsStr::new).chain([serve.get_program()]).chain(serve.get_args());
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut running = Running::of(child);
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline && !running.has_ended() {
            if send(self.address, "GET", "/readyz", &[], &[]).is_ok_and(|answer| answer.status == 200) {
                self.running = Some(running);
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        Err(self.log())
    }

    /// Requests a stop and waits until it has stopped.
    pub(crate) fn stop(&mut self) {
        let mut running = self.running.take().unwrap();
        running.signal(Signal::SIGTERM);
        let code = running.code_within(TIMEOUT);
        assert_eq!(code, Some(0), "larder serve after SIGTERM\n{}", self.log());
    }

    /// Sends SIGKILL, so none of its handlers runs.
    pub(crate) fn kill(&mut self) {
        self.running.take().unwrap().kill();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    /// Returns the address on which it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the same address in the form that the vendor's SDK expects.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the path of its configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("larder.toml")
    }

    /// Returns the directory of its pull secrets.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.dir.path().join("secrets")
    }

    /// Returns its state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Runs `test`, and prints the log if it fails.
    pub(crate) fn explain<T>(&self, test: impl FnOnce() -> T) -> T {
        match catch_unwind(AssertUnwindSafe(test)) {
            Ok(answer) => answer,
            Err(panic) => {
                eprintln!("the log of the daemon:\n{}", self.log());
                resume_unwind(panic);
            }
        }
    }

    /// Returns its log, including the output of its builders.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.running.as_ref().unwrap().pid().as_raw()
    }

    /// Returns its child processes that still run.
    pub(crate) fn children(&self) -> Vec<i32> {
        let parent = format!("PPid:\t{}", self.pid());
        let pids =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_child = |pid: &i32| {
            // Leave out a process that has just ended.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line == parent)
        };
        pids.filter(is_child).collect()
    }

    /// Sends one request with the token of a tenant.
    pub(crate) fn ask(&self, tenant: Tenant, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let token = tenant.token();
        let headers = [("X-Auth-Token", token.as_str()), ("Content-Type", "application/json")];
        let body = body.map_or(String::new(), Value::to_string);
        let answer = send(self.address, method, path, &headers, body.as_bytes());
        Answer(answer.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log())))
    }

    /// Creates a cache of `images` and returns its ID.
    pub(crate) fn order(&self, tenant: Tenant, name: &str, images: &[String]) -> String {
        let order = json!({"name": name, "images": images, "building_config": {"cluster": "here"}});
        let answer = self.ask(tenant, "POST", "/v5/imagecaches", Some(&order)).expect(201);
        answer["image_cache"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a cache has this status and returns it. Panics on another final status.
    pub(crate) fn settle(&self, tenant: Tenant, id: &str, status: &str, limit: Duration) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let cache = self.ask(tenant, "GET", &format!("/v5/imagecaches/{id}"), None).expect(200);
            let now = cache["image_cache"]["status"].as_str().unwrap();
            if now == status {
                return cache["image_cache"].clone();
            }
            assert_eq!(now, "Creating", "{cache}\n{}", self.log());
            assert!(Instant::now() < deadline, "not {status} within {limit:?}: {cache}\n{}", self.log());
            sleep(Duration::from_millis(50));
        }
    }
}

/// A response of the daemon.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Response);

impl Answer {
    /// Checks the status and returns the body.
    pub(crate) fn expect(&self, status: u16) -> Value {
        let text = String::from_utf8_lossy(&self.0.body);
        assert_eq!(self.0.status, status, "{text}");
        serde_json::from_slice(&self.0.body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Writes `larder.toml` into `dir`. Registries of tests are on loopback, so tenants can reach it unless
/// `more` sets another `registry.allow`.
pub(crate) fn configure(dir: &Path, tcp: Option<SocketAddr>, tenants: &[Tenant], more: &str) {
    let path = |name: &str| dir.join(name).display().to_string();
    let tcp = tcp.map_or(String::new(), |address| format!("api.tcp = '{address}'\n"));
    let tenants: String = tenants.iter().map(|tenant| tenant.configured(dir)).collect();
    let allow = if more.contains("registry.allow") { "" } else { "registry.allow = ['127.0.0.0/8']\n" };
    // The smallest cache of the API has 20 GiB, which a machine for tests does not need to have.
    let sparse = if more.contains("caches.sparse") { "" } else { "caches.sparse = true\n" };
    let text = format!(
        "state.dir = '{}'\napi.socket = '{}'\nsecrets.dir = '{}'\n{tcp}{allow}{sparse}{more}\n{tenants}",
        path("state"),
        path("larder.sock"),
        path("secrets"),
    );
    fs::write(dir.join("larder.toml"), text).unwrap();
}

/// Returns the command `larder serve` with the configuration in `dir`.
pub(crate) fn serve(dir: &Path) -> Command {
    let mut serve = larder();
    serve.arg("serve").arg("--config").arg(dir.join("larder.toml"));
    serve
}
