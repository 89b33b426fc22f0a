//! `larder attach --list`: the volumes that are attached on this host.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::output::stdout;
use super::{exit, table};
use crate::caches::attachments::{Attachment, Attachments};
use crate::caches::layout::Layout;
use crate::config::Config;
use crate::telemetry::Console;
use larder_model::age::age;
use larder_model::escape::escape;

/// Prints the attached volumes and returns the exit code.
pub(super) fn run(as_json: bool, config: &Config, console: &Console) -> u8 {
    let found = match Attachments::new(Layout::new(&config.state.dir).attached()).list() {
        Ok(found) => found,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let text = match as_json {
        true => format!("{:#}\n", json!({"attached": found})),
        false => table(&found, Utc::now(), table::terminal_width()),
    };
    stdout::print(console, &text)
}

/// Formats attached volumes, in the order of their mount points.
pub(super) fn table(attached: &[Attachment], now: DateTime<Utc>, width: Option<usize>) -> String {
    let mut attached: Vec<&Attachment> = attached.iter().collect();
    attached.sort_by_key(|attachment| &attachment.at);
    let rows: Vec<Vec<String>> = attached.into_iter().map(|attachment| row(attachment, now)).collect();
    table::rows(&["ATTACHED AT", "AGE", "RUNTIMES", "VOLUME"], &rows, width)
}

fn row(attachment: &Attachment, now: DateTime<Utc>) -> Vec<String> {
    let runtimes: Vec<&str> = attachment.runtimes.iter().map(|runtime| runtime.name()).collect();
    let runtimes = if runtimes.is_empty() { "-".to_owned() } else { runtimes.join(",") };
    vec![
        escape(&attachment.at.display().to_string()),
        age(attachment.since, now),
        match attachment.leaving {
            true => format!("{runtimes} (being detached)"),
            false => runtimes,
        },
        escape(&attachment.volume.display().to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use larder_model::runtime::Runtime;

    #[test]
    fn attached_volumes_in_order() {
        let since = DateTime::UNIX_EPOCH;
        let one = Attachment::new(Path::new("/v/1"), Path::new("/icv2"), since);
        let mut two = Attachment::new(Path::new("/v/2"), Path::new("/icv"), since);
        two.runtimes = vec![Runtime::Podman, Runtime::Containerd];
        two.leaving = true;
        let text = table(&[one, two], since + chrono::TimeDelta::days(3), None);
        assert_eq!(
            text,
            "ATTACHED AT  AGE  RUNTIMES                            VOLUME\n\
             /icv         3d   podman,containerd (being detached)  /v/2\n\
             /icv2        3d   -                                   /v/1\n"
        );
    }
}
