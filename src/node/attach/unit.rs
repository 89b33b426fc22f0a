//! The systemd unit that attaches a volume again at each boot (systemd.unit(5), systemd.service(5)).

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::error::Error;
use super::{Boot, Host};
use crate::caches::attachments::Attachment;
use crate::node::file::{File, MARK};

const UNITS: &str = "/etc/systemd/system";

/// Returns the unit that attaches `record` again.
pub(super) fn file(host: &Host, record: &Attachment, boot: &Boot) -> Result<File, Error> {
    let text =
        |path: &Path| path.to_str().and_then(quoted).ok_or_else(|| Error::Unit(path.display().to_string()));
    let volume = text(&record.volume)?;
    // Paths of this key expand specifiers, but not variables (systemd.unit(5)).
    let mounts = record.volume.to_str().and_then(escaped);
    let mounts = mounts.ok_or_else(|| Error::Unit(record.volume.display().to_string()))?;
    let mut words = vec![text(&boot.program)?, "attach".to_owned(), volume];
    words.extend(["--at".to_owned(), text(&record.at)?, "--no-unit".to_owned()]);
    for flag in &boot.flags {
        words.push(quoted(flag).ok_or_else(|| Error::Unit(flag.clone()))?);
    }
    let mut environment = String::new();
    for variable in &boot.environment {
        let variable = escaped(variable).ok_or_else(|| Error::Unit(variable.clone()))?;
        environment += &format!("Environment={variable}\n");
    }
    let text = format!(
        "{MARK}[Unit]
Description=Image cache at {at}
RequiresMountsFor={mounts}
After=local-fs.target remote-fs.target
Before=larder-snapshotter.service containerd.service crio.service kubelet.service podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
{environment}ExecStart={command}

[Install]
WantedBy=multi-user.target
",
        at = record.at.display(),
        command = words.join(" "),
    );
    Ok(File { link: Some(link(host, &record.at)), ..File::new(path(host, &record.at), Some(text)) })
}

/// Returns the unit of `at` for removal.
pub(super) fn gone(host: &Host, at: &Path) -> File {
    File { link: Some(link(host, at)), ..File::new(path(host, at), None) }
}

fn path(host: &Host, at: &Path) -> std::path::PathBuf {
    host.path(UNITS).join(name(at))
}

/// Returns the link that `systemctl enable` creates.
fn link(host: &Host, at: &Path) -> std::path::PathBuf {
    host.path(UNITS).join("multi-user.target.wants").join(name(at))
}

/// Returns the name of the unit. `/mnt/a-b` becomes `larder-attach-mnt-a\x2db.service` (systemd-escape(1)).
fn name(at: &Path) -> String {
    let mut name = "larder-attach-".to_owned();
    for (index, byte) in at.as_os_str().as_bytes().iter().enumerate().skip(1) {
        match byte {
            b'/' => name.push('-'),
            b'.' if index > 1 => name.push('.'),
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'_' => name.push(char::from(*byte)),
            other => name.push_str(&format!("\\x{other:02x}")),
        }
    }
    name + ".service"
}

/// Quotes an argument of a command line, where `$` starts a variable. `None` if the argument cannot be
/// quoted.
fn quoted(word: &str) -> Option<String> {
    escaped(word).map(|word| word.replace('$', "$$"))
}

/// Quotes an argument without expanding variables. `None` if it contains control characters.
fn escaped(word: &str) -> Option<String> {
    if word.chars().any(char::is_control) {
        return None;
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.:@=+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Some(word.to_owned());
    }
    Some(format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_systemd() {
        assert_eq!(name(Path::new("/icv")), "larder-attach-icv.service");
        assert_eq!(name(Path::new("/mnt/a-b.c")), "larder-attach-mnt-a\\x2db.c.service");
    }

    #[test]
    fn a_path_is_one_path_in_every_key() {
        let host = Host {
            root: "/".into(),
            records: crate::caches::attachments::Attachments::new("/s".into()),
            proofs: crate::volume::proofs::Proofs::new("/s"),
            socket: "/s".into(),
            snapshots: "/s".into(),
            content_cache: "/s".into(),
        };
        let at = Path::new("/icv");
        let record = Attachment::new(Path::new("/v/a$b %c"), at, chrono::DateTime::UNIX_EPOCH);
        let boot = Boot { program: "/usr/bin/larder".into(), flags: Vec::new(), environment: Vec::new() };
        let text = file(&host, &record, &boot).unwrap().text.unwrap();
        assert!(text.contains("\nRequiresMountsFor=\"/v/a$b %%c\"\n"), "{text}");
        assert!(text.contains(" attach \"/v/a$$b %%c\" --at /icv "), "{text}");
    }

    #[test]
    fn quoting_preserves_words() {
        assert_eq!(quoted("/usr/bin/larder").unwrap(), "/usr/bin/larder");
        assert_eq!(quoted("a b$c%d\"e\\f").unwrap(), r#""a b$$c%%d\"e\\f""#);
        assert_eq!(quoted("").unwrap(), "\"\"");
        assert!(quoted("a\nb").is_none());
    }
}
