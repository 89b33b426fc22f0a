use std::path::Path;

use super::*;

const BOTH: Consumers = Consumers { podman: true, crio: true };
const PODMAN: Consumers = Consumers { podman: true, crio: false };

fn debian() -> Node {
    Node {
        storage: File::Absent,
        vendor: File::Absent,
        driver: None,
        programs: programs(&[("podman", false)]),
    }
}

fn programs(found: &[(&'static str, bool)]) -> Vec<Program> {
    found.iter().map(|(name, is_new)| Program { name, is_new: *is_new }).collect()
}

fn stores(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// Returns the written texts, with their paths.
fn written(change: &Change) -> Vec<(&str, &str)> {
    let texts = change.files.iter().filter_map(|(path, text)| Some((path.to_str()?, text.as_deref()?)));
    texts.collect()
}

fn list(text: &str) -> Vec<String> {
    let table: Table = text.parse().unwrap();
    let list = table["storage"]["options"]["additionalimagestores"].as_array().unwrap().clone();
    list.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_node_without_a_file_gets_a_complete_one() {
    let change = change(&debian(), BOTH, &stores(&["/icv", "/with \"quotes\""]));
    let [(path, text)] = written(&change)[..] else { panic!("{change:?}") };
    assert_eq!(path, STORAGE_CONF);
    assert_eq!(list(text), ["/icv", "/with \"quotes\""]);
    let table: Table = text.parse().unwrap();
    assert_eq!(table["storage"]["driver"].as_str(), Some("overlay"));
    assert_eq!(table["storage"]["graphroot"].as_str(), Some("/var/lib/containers/storage"));
    assert_eq!(change.advice.len(), 1, "{change:?}");
    // With the same stores again, with one store less, and without stores.
    let mut node = debian();
    node.storage = File::Text(text.to_owned());
    assert_eq!(super::change(&node, BOTH, &stores(&["/icv", "/with \"quotes\""])), change);
    assert_eq!(list(written(&super::change(&node, PODMAN, &stores(&["/icv"])))[0].1), ["/icv"]);
    let gone = super::change(&node, PODMAN, &[]);
    assert!(gone.files.contains(&(STORAGE_CONF.into(), None)) && written(&gone).is_empty());
    assert!(gone.advice.is_empty());
}

#[test]
fn vendor_settings_are_kept() {
    let vendor = "[storage]\ndriver = \"overlay\"\ngraphroot = \"/srv/images\"\n[storage.options]\n\
                  additionalimagestores = [\"/usr/lib/containers/storage\"]\n[storage.options.overlay]\nmountopt = \"nodev\"\n";
    let mut node = debian();
    node.vendor = File::Text(vendor.into());
    let change = change(&node, PODMAN, &stores(&["/icv"]));
    let text = written(&change)[0].1;
    assert_eq!(list(text), ["/usr/lib/containers/storage", "/icv"]);
    let table: Table = text.parse().unwrap();
    assert_eq!(table["storage"]["graphroot"].as_str(), Some("/srv/images"));
    assert_eq!(table["storage"]["options"]["overlay"]["mountopt"].as_str(), Some("nodev"));
    for unknown in ["[storage", "storage = 1", "[storage.options]\nadditionalimagestores = \"x\""] {
        node.vendor = File::Text(unknown.into());
        let change = super::change(&node, PODMAN, &stores(&["/icv"]));
        assert!(written(&change).is_empty() && change.advice[0].contains("cannot be parsed"), "{change:?}");
    }
}

#[test]
fn the_operators_file_is_left() {
    let mut node = debian();
    let theirs = "[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionalimagestores = [ \"/nfs\" ]\n";
    node.storage = File::Text(theirs.into());
    let change = change(&node, BOTH, &stores(&["/icv"]));
    let [(path, text)] = written(&change)[..] else { panic!("{change:?}") };
    assert_eq!(path, CRIO_DROP_IN);
    assert!(text.ends_with("[crio]\nstorage_option = [\"overlay.imagestore=/icv\"]\n"), "{text}");
    assert!(change.files.iter().all(|(path, _)| path != Path::new(STORAGE_CONF)));
    assert!(change.advice[0].ends_with("additionalimagestores = [\"/nfs\", \"/icv\"]"), "{change:?}");
    // With the advice applied.
    node.storage = File::Text(theirs.replace("\"/nfs\"", "\"/nfs\", \"/icv\""));
    assert!(super::change(&node, PODMAN, &stores(&["/icv"])).advice.is_empty());
    node.storage = File::Other;
    let change = super::change(&node, PODMAN, &stores(&["/icv"]));
    assert!(written(&change).is_empty() && change.advice[0].ends_with("[\"/icv\"]"), "{change:?}");
}

#[test]
fn new_programs_read_a_drop_in() {
    let mut node = debian();
    node.programs = programs(&[("podman", true), ("buildah", true)]);
    for storage in [File::Absent, File::Text("[storage]\n".into()), File::Other] {
        node.storage = storage;
        let change = change(&node, PODMAN, &stores(&["/icv", "/b"]));
        let [(path, text)] = written(&change)[..] else { panic!("{change:?}") };
        assert_eq!(path, STORAGE_DROP_IN);
        assert!(text.ends_with("additionalimagestores = [\"/icv\", \"/b\", {append = true}]\n"), "{text}");
        assert!(text.parse::<Table>().is_ok() && change.advice.is_empty());
    }
    // The file for an older podman is removed.
    node.storage = File::Text(format!("{MARK}[storage]\n"));
    assert!(change(&node, PODMAN, &stores(&["/icv"])).files.contains(&(STORAGE_CONF.into(), None)));
}

#[test]
fn another_driver_sees_no_store() {
    let mut node = debian();
    node.driver = Some("vfs".into());
    let change = change(&node, PODMAN, &stores(&["/icv"]));
    assert!(written(&change).is_empty() && change.advice[0].contains("storage driver vfs"), "{change:?}");
    // The operator's setting takes precedence over existing images in the default directory.
    node.storage = File::Text("[storage]\ndriver = \"overlay\"\n".into());
    assert!(super::change(&node, PODMAN, &stores(&["/icv"])).advice[0].contains("under [storage.options]"));
    node.storage = File::Text("[storage]\ndriver = \"btrfs\"\n".into());
    assert!(super::change(&node, PODMAN, &stores(&["/icv"])).advice[0].contains("storage driver btrfs"));
}

/// Returns the files written on a node with these programs, and whether there is advice for podman or
/// buildah.
fn files_for(found: &[(&'static str, bool)], consumers: Consumers, storage: &File) -> (Vec<PathBuf>, bool) {
    let node = Node { programs: programs(found), storage: storage.clone(), ..debian() };
    let change = change(&node, consumers, &stores(&["/icv"]));
    let files =
        change.files.iter().filter(|(_, text)| text.is_some()).map(|(path, _)| path.clone()).collect();
    (files, change.advice.iter().any(|line| !line.starts_with("CRI-O")))
}

/// The programs and whether they are new, the users of the stores, and `storage.conf`; then the files, and
/// whether there is advice.
type Case<'a> = (&'a [(&'static str, bool)], Consumers, &'a File, &'a [&'a str], bool);

#[test]
fn a_new_program_prevents_a_storage_conf() {
    let (old, new) = (false, true);
    let theirs = File::Text("[storage]\ndriver = \"overlay\"\n".into());
    let cases: [Case; 12] = [
        (&[("podman", old), ("crio", old)], BOTH, &File::Absent, &[STORAGE_CONF], false),
        (&[("podman", old), ("crio", old)], BOTH, &theirs, &[CRIO_DROP_IN], true),
        (&[("podman", new), ("crio", new)], BOTH, &File::Absent, &[STORAGE_DROP_IN], false),
        (&[("podman", new), ("crio", new)], BOTH, &theirs, &[STORAGE_DROP_IN], false),
        (&[("podman", new), ("crio", old)], BOTH, &File::Absent, &[STORAGE_DROP_IN, CRIO_DROP_IN], false),
        (&[("podman", new), ("crio", old)], BOTH, &theirs, &[STORAGE_DROP_IN, CRIO_DROP_IN], false),
        (
            &[("podman", new), ("crio", old)],
            Consumers { podman: false, crio: true },
            &File::Absent,
            &[CRIO_DROP_IN],
            false,
        ),
        (&[("podman", old), ("crio", new)], BOTH, &File::Absent, &[STORAGE_DROP_IN], true),
        (&[("podman", new), ("buildah", old)], PODMAN, &File::Absent, &[STORAGE_DROP_IN], true),
        (
            &[("podman", new), ("buildah", old), ("crio", old)],
            BOTH,
            &theirs,
            &[STORAGE_DROP_IN, CRIO_DROP_IN],
            true,
        ),
        (&[("podman", new)], BOTH, &File::Absent, &[STORAGE_DROP_IN, CRIO_DROP_IN], false),
        (&[], PODMAN, &File::Absent, &[STORAGE_CONF], false),
    ];
    for (found, consumers, storage, files, is_advised) in cases {
        let files = files.iter().map(PathBuf::from).collect();
        assert_eq!(
            files_for(found, consumers, storage),
            (files, is_advised),
            "{found:?} {consumers:?} {storage:?}"
        );
    }
    // The file of an earlier attach is removed once a new program is installed.
    let node = Node {
        programs: programs(&[("podman", new), ("buildah", old)]),
        storage: File::Text(format!("{MARK}[storage]\n")),
        ..debian()
    };
    let change = change(&node, PODMAN, &stores(&["/icv", "/b"]));
    assert!(change.files.contains(&(STORAGE_CONF.into(), None)), "{change:?}");
    let line = &change.advice[0];
    assert!(
        line.starts_with("buildah of this node") && line.contains("would break podman for users"),
        "{line}"
    );
    assert!(
        line.ends_with("--storage-opt overlay.imagestore=/icv --storage-opt overlay.imagestore=/b"),
        "{line}"
    );
}
