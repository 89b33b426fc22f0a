//! Finds the directories in which the programs of a node store images, below its root directory.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::node::{STORAGE_CONF, VENDOR_CONF};
use larder_sys::Dir;

/// The default directory of podman, buildah and CRI-O for root.
const DEFAULT: &str = "/var/lib/containers/storage";

/// Files that can contain one of the keys below, and directories of such files.
const FILES: [&str; 3] = [STORAGE_CONF, VENDOR_CONF, "etc/crio/crio.conf"];
const DIRECTORIES: [&str; 3] =
    ["etc/containers/storage.conf.d", "usr/share/containers/storage.conf.d", "etc/crio/crio.conf.d"];

/// Tables and keys with the directory.
const KEYS: [(&str, &str); 2] = [("storage", "graphroot"), ("crio", "root")];

/// Maximum size of a file, bytes.
const MAX: u64 = 1 << 20;

/// Returns the absolute paths of the directories in which programs of root store images: the default, and
/// every configured one. A directory that is not in use does no harm.
///
/// # Errors
///
/// The root directory cannot be opened.
pub fn graph_roots(root: &Path) -> io::Result<BTreeSet<String>> {
    let root = Dir::open(root)?;
    let mut roots = BTreeSet::from([DEFAULT.to_owned()]);
    let files = FILES.iter().filter_map(|path| {
        let (directory, name) = path.rsplit_once('/')?;
        Some((root.open_beneath(directory.as_bytes()).ok()?, name.as_bytes().to_vec()))
    });
    let drop_ins = DIRECTORIES.iter().filter_map(|path| root.open_beneath(path.as_bytes()).ok());
    let drop_ins = drop_ins.flat_map(|dir| {
        let names = dir.names().unwrap_or_default();
        names.into_iter().filter_map(move |name| Some((dir.try_clone().ok()?, name)))
    });
    for (dir, name) in files.chain(drop_ins) {
        roots.extend(dir.read_file(&name, MAX).ok().iter().flat_map(|text| named(text)));
    }
    Ok(roots)
}

fn named(text: &[u8]) -> Vec<String> {
    let table = std::str::from_utf8(text).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let table = table.unwrap_or_default();
    let value = |(section, key): &(&str, &str)| Some(table.get(*section)?.get(*key)?.as_str()?.to_owned());
    KEYS.iter().filter_map(value).filter(|root| root.starts_with('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_default_and_all_configured_directories() {
        let dir = tempfile::tempdir().unwrap();
        let roots = || graph_roots(dir.path()).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(roots(), [DEFAULT]);
        for (path, text) in [
            (STORAGE_CONF, "[storage]\ngraphroot = \"/srv/a\"\n"),
            (VENDOR_CONF, "[storage]\ngraphroot = \"\"\n"),
            ("etc/containers/storage.conf.d/1.conf", "[storage]\ngraphroot = \"/srv/b\"\n"),
            ("etc/crio/crio.conf", "[crio]\nroot = \"/srv/c\"\n"),
            ("etc/crio/crio.conf.d/1.conf", "[crio]\nroot = \"/srv/d\"\n"),
            ("etc/crio/crio.conf.d/2.conf", "[crio"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(roots(), ["/srv/a", "/srv/b", "/srv/c", "/srv/d", DEFAULT]);
    }
}
