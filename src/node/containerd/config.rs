//! How containerd is told of the snapshotter: the text of one file, which is ours, and whether containerd would read it.
//!
//! containerd reads `config.toml` and what that imports, one file after the other (its package server/config). Nothing is
//! imported unless that file says so, whatever the version; what `containerd config default` of 2.2 and newer writes does, of
//! `/etc/containerd/conf.d/*.toml`. How the files are merged depends on the version:
//!
//! | | 1.6, 1.7 | 2.x |
//! |---|---|---|
//! | section of a plugin | the last file's alone, whole | key by key |
//! | list in it | | the last file's |
//! | relative pattern with `*` | 1.6: from where containerd was started | from where the file is that has it |
//!
//! So the file for 1.x repeats the section of CRI that the node has, with the snapshotter changed; else the sandbox image,
//! registries and runtimes that it configures would be gone. It has to be written anew when that section changes, and what it
//! repeats may hold credentials: its mode is [`MODE`], and what is shown of it is [`DropIn::shown`].
//!
//! Everything here is a function of the files of the node; nothing is written.

mod erofs;
mod imports;
mod version;

pub use erofs::{makes_images_of_tars, settings};
pub use version::{UnknownVersion, Version};

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::node::file::MARK;
use larder_model::class::Class;
use larder_model::platform::Platform;
use larder_model::runtime::Containerd;

/// containerd's own configuration, unless it was started with another.
pub const MAIN: &str = "/etc/containerd/config.toml";
/// Our file: in the directory that files of version 2.2 and newer import, and the last one there.
pub const PATH: &str = "/etc/containerd/conf.d/99-larder.toml";
/// Its mode.
pub const MODE: u32 = 0o600;
/// What imports it.
const PATTERN: &str = "/etc/containerd/conf.d/*.toml";

const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const EROFS: &str = "io.containerd.snapshotter.v1.erofs";
const CACHES: &str = "layer_content_caches";
/// The first version that has optional entries in the list of what unpacks.
const OPTIONAL: Version = Version { major: 2, minor: 3 };

/// The configuration cannot be used, or cannot be written for this version.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file of containerd's cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML. What it holds is not repeated: it may have credentials.
    #[error("{path} is no TOML, line {line}: containerd would not start with it")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
    },
    /// Its version is 1, with which a file of version 2 cannot be merged.
    #[error(
        "{path} has no \"version = 2\": containerd {version} would misread it together with ours: write it anew with `containerd config dump`"
    )]
    Old {
        /// The file.
        path: PathBuf,
        /// The version of containerd.
        version: Version,
    },
    /// containerd is too old.
    #[error("containerd {have} has no {what}: it takes {need} or newer")]
    TooOld {
        /// What it lacks.
        what: &'static str,
        /// Its version.
        have: Version,
        /// The version that has it.
        need: Version,
    },
    /// Too many files, or files that import each other without end.
    #[error("{path} and what it imports are more than {max} files")]
    TooMany {
        /// containerd's own configuration.
        path: PathBuf,
        /// Most that are read.
        max: usize,
    },
}

impl ConfigError {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            ConfigError::Read { source, .. } => larder_layer::error::io_class(source),
            _ => Class::Invalid,
        }
    }
}

/// The snapshotter that containerd is to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    /// Its name.
    pub name: String,
    /// Its socket.
    pub socket: PathBuf,
    /// Its directory, whose file system kubelets look at to see how full the disk of images is.
    pub root: PathBuf,
    /// Whether the kernel can give the files of a container other owners by mounts: overlays on ID-mapped mounts, Linux 5.19.
    pub remaps_ids: bool,
}

/// What our file is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The snapshotters by other names than containerd's own; the first is that of CRI.
    pub snapshotters: Vec<Snapshotter>,
    /// The directory from which containerd's own EROFS snapshotter takes layers, where one is used. [`settings`] says what else
    /// such a node needs.
    pub content_cache: Option<PathBuf>,
}

/// The text of our file.
#[derive(Clone, PartialEq, Eq)]
pub struct DropIn {
    text: String,
    shown: String,
}

impl std::fmt::Debug for DropIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DropIn").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl DropIn {
    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same without what may be credentials.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

/// Whether our file is read, and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loading {
    /// It does.
    Counts,
    /// It is not imported: what the operator has to do.
    NotImported {
        /// In words, with the line.
        remedy: String,
    },
    /// A file that is read later says otherwise.
    Overridden {
        /// That file.
        by: PathBuf,
    },
}

/// The configuration of a node's containerd: the files that it reads, ours among them or not.
#[derive(Debug)]
pub struct Node {
    version: Version,
    main: PathBuf,
    ours: PathBuf,
    /// In the order in which they are read, without ours.
    files: Vec<(PathBuf, Table)>,
    /// How many of them are read before ours; none if ours is not read.
    before: Option<usize>,
}

impl Node {
    /// Reads the configuration at `main` ([`MAIN`]) and what it imports, for a file of ours at `ours` ([`PATH`]), which need not
    /// be there. Paths are as containerd has them; all lie below `root` (`/`).
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(root: &Path, main: &Path, ours: &Path, version: Version) -> Result<Self, ConfigError> {
        let (files, before) = imports::read(root, main, ours, version)?;
        if version.major < 2
            && let Some((path, _)) = files.iter().find(|(_, table)| is_of_version_1(table))
        {
            return Err(ConfigError::Old { path: path.clone(), version });
        }
        Ok(Node { version, main: main.to_owned(), ours: ours.to_owned(), files, before })
    }

    /// The text of our file that makes `wanted` so.
    ///
    /// # Errors
    /// [`ConfigError::TooOld`] before 1.6, and before 2.4 with a layer content cache.
    pub fn drop_in(&self, wanted: &Wanted) -> Result<DropIn, ConfigError> {
        let mut plugins = Table::new();
        let mut all = Table::new();
        all.insert("version".into(), Value::Integer(if self.version.major < 2 { 2 } else { 3 }));
        let note = match wanted.snapshotters.first() {
            Some(default) => {
                self.newer_than(Version { major: 1, minor: 6 }, "proxy snapshotters that name layers")?;
                self.use_by_default(&mut plugins, default, &wanted.snapshotters)
            }
            None => String::new(),
        };
        if let Some(cache) = &wanted.content_cache {
            self.newer_than(Version { major: 2, minor: 4 }, "caches of EROFS layers")?;
            let mut erofs = Table::new();
            erofs.insert(CACHES.into(), Value::Array(self.content_caches(cache)));
            plugins.insert(EROFS.into(), erofs.into());
        }
        all.insert("plugins".into(), plugins.into());
        let proxies: Table =
            wanted.snapshotters.iter().map(|each| (each.name.clone(), self.proxy(each))).collect();
        if !proxies.is_empty() {
            all.insert("proxy_plugins".into(), proxies.into());
        }
        Ok(write(&note, all))
    }

    fn newer_than(&self, need: Version, what: &'static str) -> Result<(), ConfigError> {
        let have = self.version;
        if have < need { Err(ConfigError::TooOld { what, have, need }) } else { Ok(()) }
    }

    /// How containerd reaches a snapshotter.
    fn proxy(&self, snapshotter: &Snapshotter) -> Value {
        let mut proxy = Table::new();
        proxy.insert("type".into(), "snapshot".into());
        proxy.insert("address".into(), text(&snapshotter.socket));
        if self.version.major >= 2 {
            let mut exports = Table::new();
            exports.insert("root".into(), text(&snapshotter.root));
            proxy.insert("exports".into(), exports.into());
            if snapshotter.remaps_ids {
                // Without it containerd copies a whole image for each container in a user namespace.
                proxy.insert("capabilities".into(), Value::Array(vec!["remap-ids".into()]));
            }
        }
        proxy.into()
    }

    /// Makes `default` the snapshotter of CRI, and all of them ones of `ctr images pull` on 2.x. Returns what the file should say
    /// about it.
    fn use_by_default(&self, plugins: &mut Table, default: &Snapshotter, all: &[Snapshotter]) -> String {
        if self.version.major >= 2 {
            let mut cri = Table::new();
            cri.insert("snapshotter".into(), default.name.clone().into());
            plugins.insert(CRI_IMAGES.into(), cri.into());
            let mut transfer = Table::new();
            transfer.insert("unpack_config".into(), Value::Array(self.unpack_config(all)));
            plugins.insert(TRANSFER.into(), transfer.into());
            return String::new();
        }
        let (mut cri, from) = match self.last(&["plugins", CRI]) {
            Some((path, Value::Table(table))) => (table.clone(), Some(path)),
            _ => (Table::new(), None),
        };
        table(&mut cri, "containerd").insert("snapshotter".into(), default.name.clone().into());
        plugins.insert(CRI.into(), cri.into());
        let Some(path) = from else { return String::new() };
        format!(
            "#\n# containerd {} takes the section of a plugin from one file alone, the last that has it. That of CRI is\n\
             # repeated here from {}: change it there, and attach again.\n",
            self.version,
            path.display()
        )
    }

    /// Lists are not merged: those of the operator are repeated.
    fn content_caches(&self, ours: &Path) -> Vec<Value> {
        let mut caches = match self.last(&["plugins", EROFS, CACHES]) {
            Some((_, Value::Array(theirs))) => theirs.clone(),
            _ => Vec::new(),
        };
        if !caches.contains(&text(ours)) {
            caches.push(text(ours));
        }
        caches
    }

    /// Whether containerd reads our file, and no other one takes back what it says.
    pub fn loading(&self) -> Loading {
        let Some(before) = self.before else {
            return Loading::NotImported { remedy: self.remedy() };
        };
        let takes_back = |table: &Table| {
            let has = |path: &[&str]| get(table, path).is_some();
            match self.version.major {
                0 | 1 => has(&["plugins", CRI]),
                // Sections of older versions are understood, too.
                _ => {
                    has(&["plugins", CRI_IMAGES, "snapshotter"])
                        || has(&["plugins", CRI, "containerd", "snapshotter"])
                        || has(&["plugins", TRANSFER, "unpack_config"])
                        || has(&["plugins", EROFS, CACHES])
                }
            }
        };
        match self.files.iter().skip(before).find(|(_, table)| takes_back(table)) {
            Some((path, _)) => Loading::Overridden { by: path.clone() },
            None => Loading::Counts,
        }
    }

    fn remedy(&self) -> String {
        let main = self.main.display();
        let pattern =
            if self.ours == Path::new(PATH) { PATTERN.into() } else { self.ours.display().to_string() };
        match self.files.first() {
            None => {
                let version = if self.version.major < 2 { 2 } else { 3 };
                format!(
                    "{main} does not exist: write it, with the lines\nversion = {version}\nimports = [{pattern:?}]"
                )
            }
            Some((_, table)) if table.get("imports").and_then(Value::as_array).is_none_or(Vec::is_empty) => {
                format!("write this line into {main}, above its first section:\nimports = [{pattern:?}]")
            }
            Some(_) => format!("add {pattern:?} to the list \"imports\" in {main}"),
        }
    }

    /// Lists are not merged: what is there already is repeated, else containerd's default.
    fn unpack_config(&self, snapshotters: &[Snapshotter]) -> Vec<Value> {
        let host = Platform::host().to_string();
        let mut entries = match self.last(&["plugins", TRANSFER, "unpack_config"]) {
            Some((_, Value::Array(theirs))) => theirs.clone(),
            _ => {
                let mut default = vec![self.unpack(&host, "overlayfs")];
                if self.version >= OPTIONAL {
                    // For images whose layers are EROFS.
                    let mut erofs =
                        self.unpack(&host.replacen("linux/", "linux(+erofs)/", 1), Containerd::EROFS);
                    erofs.insert("differ".into(), Containerd::EROFS.into());
                    default.push(erofs);
                }
                default.into_iter().map(Value::Table).collect()
            }
        };
        for Snapshotter { name, .. } in snapshotters {
            let is_it = |entry: &Value| entry.get("snapshotter").and_then(Value::as_str) == Some(name);
            if !entries.iter().any(is_it) {
                entries.push(self.unpack(&host, name).into());
            }
        }
        entries
    }

    /// An entry of that list. One whose snapshotter is missing takes CRI along, unless it is optional.
    fn unpack(&self, platform: &str, snapshotter: &str) -> Table {
        let mut entry = Table::new();
        entry.insert("platform".into(), platform.into());
        entry.insert("snapshotter".into(), snapshotter.into());
        if self.version >= OPTIONAL {
            entry.insert("optional".into(), true.into());
        }
        entry
    }

    /// The last of the files before ours that says something at `path`; all of them where ours is not read yet.
    fn last(&self, path: &[&str]) -> Option<(&Path, &Value)> {
        let before = self.before.unwrap_or(self.files.len());
        let files = self.files.iter().take(before).rev();
        files.filter_map(|(file, table)| Some((file.as_path(), get(table, path)?))).next()
    }
}

fn is_of_version_1(table: &Table) -> bool {
    // A file that names no plugin may be of any version.
    let names = |key: &str| table.get(key).and_then(Value::as_array).is_some_and(|names| !names.is_empty());
    let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
    version < 2 && (table.contains_key("plugins") || names("disabled_plugins") || names("required_plugins"))
}

fn get<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(*first)?;
    if rest.is_empty() { Some(value) } else { get(value.as_table()?, rest) }
}

/// The table `key` in `parent`, made where there is none.
fn table<'a>(parent: &'a mut Table, key: &str) -> &'a mut Table {
    let value = parent.entry(key).or_insert_with(|| Table::new().into());
    if !value.is_table() {
        *value = Table::new().into();
    }
    match value {
        Value::Table(table) => table,
        _ => unreachable!("made a table above"),
    }
}

fn text(path: &Path) -> Value {
    path.display().to_string().into()
}

fn write(note: &str, mut all: Table) -> DropIn {
    let head = format!("{MARK}{note}");
    let text = format!("{head}{all}");
    hide(&mut all);
    DropIn { text, shown: format!("{head}{all}") }
}

/// Takes out what CRI's section may hold of credentials: those of registries, and headers that are sent to them.
fn hide(all: &mut Table) {
    let cri = all.get_mut("plugins").and_then(|plugins| plugins.get_mut(CRI));
    if let Some(registry) = cri.and_then(|cri| cri.get_mut("registry")).and_then(Value::as_table_mut) {
        for key in ["configs", "headers"] {
            registry.get_mut(key).into_iter().for_each(blank);
        }
    }
}

fn blank(value: &mut Value) {
    match value {
        Value::String(text) => "(not shown)".clone_into(text),
        Value::Array(values) => values.iter_mut().for_each(blank),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| blank(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
