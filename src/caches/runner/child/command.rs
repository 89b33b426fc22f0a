//! How `larder` is called: arguments and environment of a child.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;

use tokio::process::Command;

use super::super::BuildOrder;
use super::Settings;
use super::work::Work;
use crate::config::caches::Caches;
use crate::config::environment::{GENERAL, NETWORK};
use crate::config::log::Format;
use larder_model::job::VolumeKind;

/// The variables of `all` that a child gets: `PATH` and those of [`config::environment`](crate::config::environment). Larder's
/// own configuration is in the file that the child gets. Others stay with the daemon, above all `$CREDENTIALS_DIRECTORY`,
/// `$NOTIFY_SOCKET`, `$LARDER_TOKEN`, and what leads to docker configs (`$HOME`, `$DOCKER_CONFIG`, `$REGISTRY_AUTH_FILE`,
/// `$XDG_RUNTIME_DIR`): those of the daemon's user are no tenant's.
pub(super) fn environment(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let passed =
        |name: &OsString| name == "PATH" || GENERAL.iter().chain(&NETWORK).any(|passed| name == passed);
    all.into_iter().filter(|(name, _)| passed(name)).collect()
}

/// `larder build`, with the job on standard input, sharing layers with the tenant's other volumes.
pub(super) fn build(
    settings: &Settings,
    work: &Work,
    caches: &Caches,
    kind: VolumeKind,
    order: &BuildOrder,
) -> Command {
    let mut command = larder("build", settings, work, caches.build_nice);
    let BuildOrder { volume, share, tenant, id, generation, .. } = order;
    command.args([OsStr::new("--volume"), volume.as_os_str(), OsStr::new("--share"), share.as_os_str()]);
    // What a signature states: the cache by the name that no other has, and which of its volumes this is.
    command.args(["--sign-name", &format!("{tenant}/{id}"), "--sign-sequence", &generation.to_string()]);
    if kind == VolumeKind::Disk {
        command.args(["--volume-kind", "disk"]);
        command.args(caches.sparse.then_some("--sparse")).args(caches.shrink.then_some("--shrink"));
    }
    command
}

/// `larder plan`, with the job on standard input.
pub(super) fn plan(settings: &Settings, work: &Work, nice: u8) -> Command {
    larder("plan", settings, work, nice)
}

/// Both read what registries send: confined, standing back for others, and not left behind by a daemon that dies.
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
        // A signal to the daemon's group is not one to its children: they are asked to stop by the daemon alone.
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
    fn nothing_of_the_daemons_own_is_passed() {
        let given = ["PATH", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LARDER_TOKEN", "HOME", "https_proxy"];
        let given = given.map(|name| (OsString::from(name), OsString::from("x")));
        let names: Vec<OsString> = environment(given).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["PATH", "https_proxy"]);
    }
}
