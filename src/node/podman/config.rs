//! Selects and writes the configuration file for image stores.
//!
//! | file | readers | known from |
//! |---|---|---|
//! | `/etc/containers/storage.conf.d/*.conf` | new programs (containers/storage after 1.62) | source 1 |
//! | `/etc/crio/crio.conf.d/*` | CRI-O 1.23 and newer, whatever `storage.conf` contains | source 2 |
//! | `/etc/containers/storage.conf` | all versions of podman, buildah and CRI-O | tests |
//!
//! podman 6 is a new program. Source 1 is `storage/pkg/configfile`. Source 2 is `pkg/config/config.go`, which
//! adds up the options of all files. The tests were made with podman 4.3.1 and buildah 1.28.
//!
//! These files are written and removed as a whole. `storage.conf` is written only on a node where no program
//! is new. New programs also use its `graphroot` and `runroot` for users other than root, who cannot use
//! root's directories. An operator's `storage.conf` is never changed. If no file of Larder's reaches a
//! program, the advice has instructions for the operator.
//!
//! Alternatives that do not work, with podman 4.3.1: `storage.conf.d` (not read); `env = ["STORAGE_OPTS=…"]`
//! in `containers.conf.d` (read too late); a `storage.conf` without `runroot` and `graphroot` (`runroot must
//! be set`), or without `driver` (an error before every answer). `env = ["CONTAINERS_STORAGE_CONF=…"]` works,
//! but needs a second file that replaces the operator's.

use std::path::PathBuf;

use toml::{Table, Value};

use super::node::{File, Node, Program, STORAGE_CONF, VENDOR_CONF};
use crate::node::file::MARK;

/// Path of the drop-in file for containers/storage.
pub const STORAGE_DROP_IN: &str = "etc/containers/storage.conf.d/90-larder.conf";
/// Path of the drop-in file for CRI-O.
pub const CRIO_DROP_IN: &str = "etc/crio/crio.conf.d/90-larder.conf";

/// The programs that must use the stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumers {
    /// `true` for podman and buildah.
    pub podman: bool,
    /// `true` if CRI-O uses the stores.
    pub crio: bool,
}

/// A file of Larder's: its path from the root of the node, and its text; `None` to remove it.
pub type Written = (PathBuf, Option<String>);

/// The files to write and remove, and advice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Files of Larder's. A program reads at most one that has a text.
    pub files: Vec<Written>,
    /// Instructions for the operator, one sentence each.
    pub advice: Vec<String>,
}

/// Computes the configuration of `stores`, in this order, for the programs of `node`. Without stores, the
/// files are removed. The paths must have passed [`limits::check`](crate::node::limits::check).
pub fn change(node: &Node, consumers: Consumers, stores: &[PathBuf]) -> Change {
    let mut change = Change::default();
    let stores: Vec<&str> = stores.iter().filter_map(|store| store.to_str()).collect();
    let (mut storage_conf, mut drop_in, mut crio) = (None, None, None);
    if !stores.is_empty() {
        let podman = Age::of(node, consumers.podman, |program| !program.is_crio());
        let crio_age = Age::of(node, consumers.crio, Program::is_crio);
        drop_in = (podman.new || crio_age.new).then(|| drop_in_text(&stores));
        let is_mixed = node.programs.iter().any(|program| program.is_new);
        match whole(node, &stores) {
            Ok(text) if is_free(&node.storage) && !is_mixed && (podman.old || crio_age.old) => {
                storage_conf = Some(text);
            }
            _ if is_free(&node.storage) && is_mixed && podman.old => {
                change.advice.push(mixed_advice(node, &stores));
                crio = crio_age.old.then(|| crio_text(&stores));
            }
            whole => {
                if podman.old {
                    change.advice.extend(advice(node, whole.err(), &stores));
                }
                crio = crio_age.old.then(|| crio_text(&stores));
            }
        }
    }
    if consumers.crio {
        change.advice.push("CRI-O reads its list of stores at startup: systemctl restart crio".to_owned());
    }
    if storage_conf.is_some() || is_ours(&node.storage) {
        change.files.push((STORAGE_CONF.into(), storage_conf));
    }
    change.files.push((STORAGE_DROP_IN.into(), drop_in));
    change.files.push((CRIO_DROP_IN.into(), crio));
    change
}

/// Describes whether old or new programs of one kind must use the stores.
#[derive(Clone, Copy, Debug)]
struct Age {
    old: bool,
    new: bool,
}

impl Age {
    /// A requested program that was not found counts as old, because new programs also read the files of old
    /// ones.
    fn of(node: &Node, wanted: bool, is_it: impl Fn(&Program) -> bool) -> Age {
        let found: Vec<&Program> = node.programs.iter().filter(|program| is_it(program)).collect();
        let any = |is_new| found.iter().any(|program| program.is_new == is_new);
        Age { old: wanted && (found.is_empty() || any(false)), new: wanted && any(true) }
    }
}

fn is_ours(file: &File) -> bool {
    matches!(file, File::Text(text) if text.starts_with(MARK))
}

fn is_free(file: &File) -> bool {
    *file == File::Absent || is_ours(file)
}

/// The reason why Larder cannot write a `storage.conf`.
#[derive(Debug)]
enum ConfigObstacle {
    /// The node's images use this driver, which does not support additional stores of directories.
    Driver(String),
    /// The vendor's file cannot be parsed.
    Vendor,
}

/// Computes a `storage.conf`. It replaces the vendor's file, so it repeats the settings of that file.
fn whole(node: &Node, stores: &[&str]) -> Result<String, ConfigObstacle> {
    if let Some(driver) = &node.driver {
        return Err(ConfigObstacle::Driver(driver.clone()));
    }
    let (mut table, said) = match &node.vendor {
        File::Absent => (Table::new(), String::new()),
        File::Text(text) => {
            let table = text.parse::<Table>().map_err(|_| ConfigObstacle::Vendor)?;
            (
                table,
                format!(
                    "# All settings except `additionalimagestores` are copied from /{VENDOR_CONF}, which this file replaces.\n"
                ),
            )
        }
        File::Other => return Err(ConfigObstacle::Vendor),
    };
    let storage = sub(&mut table, "storage").ok_or(ConfigObstacle::Vendor)?;
    for (key, value) in [
        ("driver", "overlay"),
        ("runroot", "/run/containers/storage"),
        ("graphroot", "/var/lib/containers/storage"),
    ] {
        let said = storage.entry(key).or_insert_with(|| value.into());
        if said.as_str() == Some("") {
            *said = value.into();
        }
    }
    match storage["driver"].as_str() {
        Some("overlay" | "overlay2") => {}
        other => return Err(ConfigObstacle::Driver(other.unwrap_or("of another kind").to_owned())),
    }
    let options = sub(storage, "options").ok_or(ConfigObstacle::Vendor)?;
    let list = merged(options.get("additionalimagestores"), stores).ok_or(ConfigObstacle::Vendor)?;
    options.insert("additionalimagestores".into(), list);
    let text = toml::to_string(&table).map_err(|_| ConfigObstacle::Vendor)?;
    Ok(format!("{MARK}{said}{text}"))
}

fn sub<'a>(table: &'a mut Table, key: &str) -> Option<&'a mut Table> {
    table.entry(key).or_insert_with(|| Table::new().into()).as_table_mut()
}

/// Appends `stores` to an existing list.
fn merged(there: Option<&Value>, stores: &[&str]) -> Option<Value> {
    let mut list = match there {
        None => Vec::new(),
        Some(there) => there.as_array()?.clone(),
    };
    for store in stores {
        if !list.iter().any(|known| known.as_str() == Some(store)) {
            list.push((*store).into());
        }
    }
    Some(list.into())
}

fn drop_in_text(stores: &[&str]) -> String {
    let quoted: Vec<String> = stores.iter().map(|store| Value::from(*store).to_string()).collect();
    format!("{MARK}[storage.options]\nadditionalimagestores = [{}, {{append = true}}]\n", quoted.join(", "))
}

fn crio_text(stores: &[&str]) -> String {
    let options: Vec<String> =
        stores.iter().map(|store| Value::from(format!("overlay.imagestore={store}")).to_string()).collect();
    format!("{MARK}[crio]\nstorage_option = [{}]\n", options.join(", "))
}

/// Returns the advice for an old podman or buildah next to a new program.
fn mixed_advice(node: &Node, stores: &[&str]) -> String {
    let names = |is_new: bool| {
        let found = node.programs.iter().filter(|program| program.is_new == is_new);
        let mut names: Vec<&str> = found.map(|program| program.name).collect();
        names.dedup();
        names.join(" and ")
    };
    let options: Vec<String> =
        stores.iter().map(|store| format!("--storage-opt overlay.imagestore={store}")).collect();
    format!(
        "{old} of this node reads stores only from /{STORAGE_CONF}, but that file would break {new} for users other than root, so it is not \
         written; update {old}, or run it with {}",
        options.join(" "),
        old = if names(false).is_empty() { "podman".to_owned() } else { names(false) },
        new = names(true),
    )
}

/// Returns the instructions for podman and buildah; `None` if nothing must be done.
fn advice(node: &Node, obstacle: Option<ConfigObstacle>, stores: &[&str]) -> Option<String> {
    let by_driver = |driver: &str| {
        format!(
            "podman and buildah use the storage driver {driver}, which does not support image stores of directories: they cannot use this \
             store until /{STORAGE_CONF} sets driver = \"overlay\", which hides their existing images"
        )
    };
    let list = |there: Option<&Value>| merged(there, stores).map(|list| list.to_string());
    let line = match (&node.storage, obstacle) {
        (storage, Some(ConfigObstacle::Driver(driver))) if is_free(storage) => {
            return Some(by_driver(&driver));
        }
        (storage, _) if is_free(storage) => {
            return Some(format!(
                "/{VENDOR_CONF} cannot be parsed, and /{STORAGE_CONF} would replace it: create that file with \
                 additionalimagestores = {} under [storage.options]",
                list(None).unwrap_or_default()
            ));
        }
        (File::Text(text), _) => {
            let table = text.parse::<Table>().ok();
            let storage = table.as_ref().and_then(|table| table.get("storage"));
            match storage.and_then(|storage| storage.get("driver")?.as_str()) {
                None | Some("" | "overlay" | "overlay2") => {}
                Some(driver) => return Some(by_driver(driver)),
            }
            let there = storage.and_then(|storage| storage.get("options")?.get("additionalimagestores"));
            let there_is = |store: &&str| {
                let list = there.and_then(Value::as_array);
                list.is_some_and(|list| list.iter().any(|known| known.as_str() == Some(store)))
            };
            if stores.iter().all(there_is) {
                return None;
            }
            list(there)
        }
        _ => list(None),
    };
    let line = line.or_else(|| list(None)).unwrap_or_default();
    Some(format!(
        "/{STORAGE_CONF} was not written by larder, and podman and buildah of this node read no other file: add to it, under \
         [storage.options], the line additionalimagestores = {line}"
    ))
}

#[cfg(test)]
mod tests;
