//! Tests with configuration files below a temporary root.

use std::fs;

use super::*;

const OLD: Version = Version { major: 1, minor: 6 };
const NEW: Version = Version { major: 2, minor: 1 };

fn node(files: &[(&str, &str)], version: Version) -> Result<Node, ConfigError> {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Node::read(root.path(), Path::new(MAIN), Path::new(PATH), version)
}

fn snapshotter() -> Snapshotter {
    Snapshotter {
        name: "larder".into(),
        socket: "/run/larder-snapshotter/snapshotter.sock".into(),
        root: "/var/lib/larder/snapshotter".into(),
        remaps_ids: true,
    }
}

fn wanted() -> Wanted {
    Wanted { snapshotters: vec![snapshotter()], content_cache: None }
}

fn parsed(drop_in: &DropIn) -> Table {
    drop_in.text().parse().unwrap()
}

#[test]
fn versions() {
    for (text, major, minor) in [
        ("1.6.20~ds1", 1, 6),
        ("v2.1.3", 2, 1),
        ("v2.4.0-beta.0", 2, 4),
        ("2.0", 2, 0),
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", 1, 6),
        ("containerd github.com/containerd/containerd/v2 v2.1.3 abcdef0", 2, 1),
    ] {
        assert_eq!(text.parse(), Ok(Version { major, minor }), "{text}");
    }
    for text in ["", "containerd", "1", "v.2", "1.x"] {
        assert!(text.parse::<Version>().is_err(), "{text}");
    }
}

#[test]
fn without_a_configuration() {
    let old = node(&[], OLD).unwrap();
    assert_eq!(
        old.drop_in(&wanted()).unwrap().text().strip_prefix(MARK).unwrap(),
        "version = 2\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"larder\"\n\n\
         [proxy_plugins.larder]\naddress = \"/run/larder-snapshotter/snapshotter.sock\"\ntype = \"snapshot\"\n"
    );
    let Loading::NotImported { remedy } = old.loading() else { panic!() };
    assert!(remedy.ends_with("version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]"), "{remedy}");
    let new = parsed(&node(&[], NEW).unwrap().drop_in(&wanted()).unwrap());
    assert_eq!(new["version"].as_integer(), Some(3));
    assert_eq!(new["plugins"][CRI_IMAGES]["snapshotter"].as_str(), Some("larder"));
    let unpack = new["plugins"][TRANSFER]["unpack_config"].as_array().unwrap();
    let names: Vec<_> = unpack.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
    assert_eq!(names, ["overlayfs", "larder"]);
    assert!(unpack.iter().all(|entry| entry.get("optional").is_none()), "{unpack:?}");
    assert_eq!(unpack[1]["platform"].as_str(), Some(Platform::host().to_string().as_str()));
    assert_eq!(
        new["proxy_plugins"]["larder"]["exports"]["root"].as_str(),
        Some("/var/lib/larder/snapshotter")
    );
    assert_eq!(new["proxy_plugins"]["larder"]["capabilities"][0].as_str(), Some("remap-ids"));
}

#[test]
fn the_section_of_cri_is_repeated_for_1_and_shown_without_credentials() {
    let main = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n\
                [plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'elsewhere'\n";
    let later = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause:1'\n\
                 [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'overlayfs'\n\
                 default_runtime_name = 'runc'\n\
                 [plugins.'io.containerd.grpc.v1.cri'.registry.configs.'r.io'.auth]\npassword = 'hunter2'\n";
    let node = node(&[(MAIN, main), ("/etc/containerd/conf.d/50.toml", later)], OLD).unwrap();
    assert_eq!(node.loading(), Loading::Counts);
    let drop_in = node.drop_in(&wanted()).unwrap();
    let cri = &parsed(&drop_in)["plugins"][CRI];
    assert_eq!(cri["sandbox_image"].as_str(), Some("pause:1"));
    assert_eq!(cri["containerd"]["snapshotter"].as_str(), Some("larder"));
    assert_eq!(cri["containerd"]["default_runtime_name"].as_str(), Some("runc"));
    assert_eq!(cri["registry"]["configs"]["r.io"]["auth"]["password"].as_str(), Some("hunter2"));
    assert!(drop_in.text().contains("from /etc/containerd/conf.d/50.toml"), "{}", drop_in.text());
    assert!(drop_in.shown().contains("pause:1") && !drop_in.shown().contains("hunter2"));
    assert!(!format!("{drop_in:?}").contains("hunter2"));
}

#[test]
fn lists_are_repeated_for_2() {
    let main = "version = 3\nimports = ['conf.d/*.toml']\n\
                [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/arm64'\nsnapshotter = 'stargz'\n\
                [plugins.'io.containerd.snapshotter.v1.erofs']\nlayer_content_caches = ['/theirs']\n";
    let of = |version| node(&[(MAIN, main)], version).unwrap();
    assert_eq!(of(NEW).loading(), Loading::Counts);
    let text = parsed(&of(NEW).drop_in(&wanted()).unwrap());
    let unpack = text["plugins"][TRANSFER]["unpack_config"].as_array().unwrap();
    assert_eq!(unpack.len(), 2);
    assert_eq!(unpack[0]["snapshotter"].as_str(), Some("stargz"));
    let cache = Wanted { snapshotters: Vec::new(), content_cache: Some("/var/lib/larder/erofs".into()) };
    assert!(matches!(of(NEW).drop_in(&cache), Err(ConfigError::TooOld { .. })));
    let newest = of(Version { major: 2, minor: 4 });
    let text = parsed(&newest.drop_in(&cache).unwrap());
    assert!(text.get("proxy_plugins").is_none() && text["plugins"].get(CRI_IMAGES).is_none());
    let caches = text["plugins"][EROFS]["layer_content_caches"].as_array().unwrap();
    assert_eq!(
        caches.iter().map(|cache| cache.as_str().unwrap()).collect::<Vec<_>>(),
        ["/theirs", "/var/lib/larder/erofs"]
    );
}

#[test]
fn volumes_for_several_snapshotters_are_in_one_file() {
    let other = Snapshotter { name: "other".into(), ..snapshotter() };
    let wanted = Wanted {
        snapshotters: vec![snapshotter(), other],
        content_cache: Some("/var/lib/larder/erofs".into()),
    };
    let text = parsed(&node(&[], Version { major: 2, minor: 4 }).unwrap().drop_in(&wanted).unwrap());
    assert_eq!(text["plugins"][CRI_IMAGES]["snapshotter"].as_str(), Some("larder"));
    let unpack = text["plugins"][TRANSFER]["unpack_config"].as_array().unwrap();
    let names: Vec<_> = unpack.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
    assert_eq!(names, ["overlayfs", "erofs", "larder", "other"]);
    assert!(unpack.iter().all(|entry| entry["optional"].as_bool() == Some(true)), "{unpack:?}");
    assert!(unpack[1]["platform"].as_str().unwrap().starts_with("linux(+erofs)/"), "{unpack:?}");
    assert_eq!(text["plugins"][EROFS][CACHES].as_array().unwrap().len(), 1);
    assert_eq!(text["proxy_plugins"].as_table().unwrap().len(), 2);
}

#[test]
fn imports_that_match() {
    let main = |imports: &str| format!("version = 2\nimports = {imports}\n");
    for (imports, version, counts) in [
        ("[]", OLD, false),
        ("['/etc/containerd/conf.d/*.toml']", OLD, true),
        ("['/etc/containerd/conf.d/99-larder.toml']", OLD, true),
        ("['conf.d/99-larder.toml']", OLD, true),
        // Relative to the working directory of 1.6.
        ("['conf.d/*.toml']", OLD, false),
        ("['etc/containerd/conf.d/*.toml']", OLD, true),
        ("['conf.d/*.toml']", Version { major: 1, minor: 7 }, true),
        ("['/etc/containerd/./x/../conf.d/*.toml']", NEW, true),
        ("['/etc/containerd/*/99-*.toml']", NEW, true),
        ("['/etc/containerd/conf.d/[0-8]*.toml']", NEW, false),
        ("['/etc/containerd/*.toml']", NEW, false),
    ] {
        let node = node(&[(MAIN, &main(imports))], version).unwrap();
        assert_eq!(node.loading() == Loading::Counts, counts, "{imports} {version}: {:?}", node.loading());
    }
    let Loading::NotImported { remedy } = node(&[(MAIN, &main("['/other/*']"))], NEW).unwrap().loading()
    else {
        panic!()
    };
    assert!(remedy.starts_with("add \"/etc/containerd/conf.d/*.toml\""), "{remedy}");
}

#[test]
fn later_files_override() {
    let main = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n";
    let late = "/etc/containerd/conf.d/zz.toml";
    let cri = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/x'\n";
    let of = |text: &str, version| node(&[(MAIN, main), (late, text)], version).unwrap().loading();
    assert_eq!(of(cri, OLD), Loading::Overridden { by: late.into() });
    // In 2.x, sections are merged key by key.
    assert_eq!(of(cri, NEW), Loading::Counts);
    let snapshotter = "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n";
    assert_eq!(of(snapshotter, NEW), Loading::Overridden { by: late.into() });
    assert_eq!(of("version = 2\n", OLD), Loading::Counts);
}

#[test]
fn unsupported_configurations_are_rejected() {
    let old = "imports = ['/etc/containerd/conf.d/*.toml']\n[plugins.cri]\nsandbox_image = 'x'\n";
    assert!(matches!(node(&[(MAIN, old)], OLD), Err(ConfigError::Old { .. })));
    let disabled = "disabled_plugins = ['cri']\nimports = ['/etc/containerd/conf.d/*.toml']\n";
    assert!(matches!(node(&[(MAIN, disabled)], OLD), Err(ConfigError::Old { .. })));
    let secret = "version = 2\npassword = 'hunter2\n";
    let error = node(&[(MAIN, secret)], OLD).unwrap_err();
    assert!(matches!(error, ConfigError::Malformed { line: 2, .. }), "{error:?}");
    assert!(!error.to_string().contains("hunter2"));
    // Files that import each other are read once.
    let circle = "version = 2\nimports = ['/etc/containerd/config.toml', 'config.toml']\n";
    assert_eq!(node(&[(MAIN, circle)], OLD).unwrap().files.len(), 1);
    let ancient = node(&[], Version { major: 1, minor: 5 }).unwrap();
    assert!(matches!(ancient.drop_in(&wanted()), Err(ConfigError::TooOld { .. })));
}
