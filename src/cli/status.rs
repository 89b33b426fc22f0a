//! `larder ls`: the image caches of this host, the attached volumes and the space.

use chrono::Utc;
use serde_json::json;

use super::args::{ListFormat, StatusArgs};
use super::cache::list::{self, Scope};
use super::cache::{self, Error};
use super::output::stdout;
use super::{attached, exit, table};
use crate::api::wire::beyond::{Host, Overviews};
use crate::blocking;
use crate::caches::attachments::{Attachment, Attachments};
use crate::caches::layout::Layout;
use crate::caches::service::HostOverview;
use crate::config::Config;
use crate::telemetry::Console;
use larder_model::class::Class;

/// The content of the output.
#[derive(Default)]
struct Status {
    host: Option<Host>,
    caches: Option<Overviews>,
    attached: Vec<Attachment>,
}

/// Runs the command and returns its exit code.
pub(super) fn run(args: &StatusArgs, config: &Config, console: &Console) -> u8 {
    let runtime = match blocking::current_thread() {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let mut status = Status::default();
    match runtime.block_on(Box::pin(ask(args))) {
        Ok((host, caches)) => (status.host, status.caches) = (host, Some(caches)),
        // Without a daemon, the attached volumes are all there is.
        Err(Error::Client(error)) if error.is_absent() && !args.daemon.is_named() => {
            console.print("note: no daemon is running on this host\n");
        }
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    }
    match Attachments::new(Layout::new(&config.state.dir).attached()).list() {
        Ok(found) => status.attached = found,
        Err(error) if error.class() == Class::Denied => {
            console.print("note: only root can list the attached volumes\n");
        }
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    }
    stdout::print(console, &format(&status, args.output.format()))
}

/// Requests the host and the caches: those of all tenants if the daemon allows it.
async fn ask(args: &StatusArgs) -> Result<(Option<Host>, Overviews), Error> {
    let client = cache::connect(args.daemon.host.as_ref(), args.daemon.ca.as_deref())?;
    let host = list::host(&client).await?;
    let scope = if host.is_some() { Scope::AllTenants } else { Scope::Own };
    let caches = list::request(&client, scope, None).await?.read()?;
    Ok((host, caches))
}

fn format(status: &Status, format: ListFormat) -> String {
    let now = Utc::now();
    let scope = if status.host.is_some() { Scope::AllTenants } else { Scope::Own };
    let empty = Overviews { image_caches: Vec::new() };
    let caches = status.caches.as_ref().unwrap_or(&empty);
    match format {
        ListFormat::Json => {
            let document = json!({
                "host": status.host,
                "image_caches": caches.image_caches,
                "attached": status.attached,
            });
            format!("{document:#}\n")
        }
        ListFormat::Name => list::names(caches),
        ListFormat::Text | ListFormat::Wide => {
            let mut out = String::new();
            if let Some(host) = &status.host {
                out.push_str(&space(&host.host));
            }
            if status.caches.is_some() {
                out.push_str(&list::table(caches, format, scope, now, table::terminal_width()));
            }
            if !status.attached.is_empty() {
                if status.caches.is_some() {
                    out.push('\n');
                }
                out.push_str(&attached::table(&status.attached, now, table::terminal_width()));
            }
            out
        }
    }
}

/// Formats the space of a host and its builds.
fn space(host: &HostOverview) -> String {
    let of = host.capacity_bytes.map(|capacity| format!(" of {}", table::bytes(capacity)));
    let free = host.free_bytes.map(|free| format!(", {} free on the disk", table::bytes(free)));
    format!(
        "Space: {} reserved{}{}.\nBuilds: {} running, {} queued.\n\n",
        table::bytes(host.reserved_bytes),
        of.unwrap_or_default(),
        free.unwrap_or_default(),
        host.building,
        host.queued,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_of_a_host() {
        let host = HostOverview {
            capacity_bytes: Some(200 << 30),
            reserved_bytes: 60 << 30,
            free_bytes: Some(141 << 30),
            queued: 2,
            building: 1,
        };
        let text =
            "Space: 60 GiB reserved of 200 GiB, 141 GiB free on the disk.\nBuilds: 1 running, 2 queued.\n\n";
        assert_eq!(space(&host), text);
        let cluster = HostOverview { capacity_bytes: None, free_bytes: None, ..host };
        assert_eq!(space(&cluster), "Space: 60 GiB reserved.\nBuilds: 1 running, 2 queued.\n\n");
    }
}
