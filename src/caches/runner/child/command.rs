//! The command line and environment of a child.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;

use tokio::process::Command;

use super::super::RunnerJob;
use super::Settings;
use super::work::Work;
use crate::config::caches::Caches;
use crate::config::environment::{GENERAL, NETWORK};
use crate::config::log::Format;
use larder_model::job::VolumeKind;

/// Selects the variables of `all` that a child gets: `PATH` and those of
/// [`config::environment`](crate::config::environment). The child reads Larder's configuration from its own
/// file. Other variables are not passed on. This includes `$CREDENTIALS_DIRECTORY`, `$NOTIFY_SOCKET` and
/// `$LARDER_TOKEN`. It also includes the variables that lead to Docker configs (`$HOME`, `$DOCKER_CONFIG`,
/// `$REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR`), because the credentials of the daemon's user belong to no
/// tenant.
pub(super) fn environment(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let passed =
        |name: &OsString| name == "PATH" || GENERAL.iter().chain(&NETWORK).any(|passed| name == passed);
    all.into_iter().filter(|(name, _)| passed(name)).collect()
}

/// Returns the command for `larder build`, with the job on standard input and layers shared with the tenant's
/// other volumes.
pub(super) fn build(
    settings: &Settings,
    work: &Work,
    caches: &Caches,
    kind: VolumeKind,
    order: &RunnerJob,
) -> Command {
    let mut command = larder("build", settings, work, caches.build_nice);
    let RunnerJob { volume, share, tenant, id, generation, .. } = order;
    command.args([OsStr::new("--volume"), volume.as_os_str(), OsStr::new("--share"), share.as_os_str()]);
    // The data that a signature states: the unique name of the cache, and the generation of the volume.
    command.args(["--sign-name", &format!("{tenant}/{id}"), "--sign-sequence", &generation.to_string()]);
    if kind == VolumeKind::Disk {
        command.args(["--volume-kind", "disk"]);
        command.args(caches.sparse.then_some("--sparse")).args(caches.shrink.then_some("--shrink"));
    }
    command
}

/// Returns the command for `larder plan`, with the job on standard input.
pub(super) fn plan(settings: &Settings, work: &Work, nice: u8) -> Command {
    larder("plan", settings, work, nice)
}

/// Returns the common part of both commands. Both read untrusted data from registries: they are confined, run
/// at a lower priority, and end with the daemon.
fn larder(verb: &str, settings: &Settings, work: &Work, nice: u8) -> Command {
    let format = match settings.log_format {
        Format::Text => "text",
        Format::Json => "json",
    };
    let secrets = work.secrets();
    let config = work.config();
    let mut command = Command::new(&settings.program);
    command
        .arg0("larder")
        .arg(verb)
        .args([OsStr::new("--config"), config.as_os_str(), OsStr::new("--secrets"), secrets.as_os_str()])
        .args(["--job", "-", "--output", "json", "--log-format", format, "--log-level"])
        .arg(&settings.log_level)
        .args(["--nice", &nice.to_string()])
        .arg(format!("--die-with-parent={}", std::process::id()))
        .env_clear()
        .envs(settings.environment.iter().map(|(name, value)| (name, value)))
        // A signal to the daemon's process group must not reach its children, because only the
        // daemon stops them.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_own_variables_are_not_passed() {
        let given = ["PATH", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LARDER_TOKEN", "HOME", "https_proxy"];
        let given = given.map(|name| (OsString::from(name), OsString::from("x")));
        let names: Vec<OsString> = environment(given).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["PATH", "https_proxy"]);
    }
}
