//! Requirements of containerd for every snapshotter, rewritten from its own suite (core/snapshots/testsuite).
//! scripts/containerd-suite.sh runs the suite itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use larder_containerd_api::services::snapshots::v1::{Kind, UpdateSnapshotRequest};
use tonic::Code;

use crate::harness::isolated;
use crate::harness::snapshots::{Client, Mounted, Snapshotter};

/// Prepares on `parent`, changes the tree, commits.
fn layer(client: &Client, name: &str, parent: &str, change: impl FnOnce(&Path)) {
    let key = format!("{name}-active");
    let mounted = Mounted::new(&client.prepare(&key, parent, &[]).unwrap());
    change(mounted.path());
    drop(mounted);
    client.commit(name, &key, &[]).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[case]
fn snapshots_have_parents() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        let first = Mounted::new(&client.prepare("first", "", &[("color", "blue")]).unwrap());
        assert_eq!(fs::metadata(first.path()).unwrap().mode() & 0o7777, 0o755);
        fs::write(first.at("file"), "one").unwrap();
        fs::create_dir_all(first.at("a/b/c")).unwrap();
        let active = client.stat("first").unwrap();
        assert_eq!(
            (active.kind(), active.parent.as_str(), &active.labels["color"]),
            (Kind::Active, "", &"blue".to_owned())
        );
        // The content is kept, and a second request for the mounts returns the same.
        assert_eq!(read(&Mounted::new(&client.mounts("first").unwrap()).at("file")), "one");
        drop(first);
        client.commit("base", "first", &[("size", "small")]).unwrap();
        assert_eq!(client.stat("first").unwrap_err().code(), Code::NotFound);
        let base = client.stat("base").unwrap();
        assert_eq!((base.kind(), base.parent.as_str(), base.labels.len()), (Kind::Committed, "", 1));
        assert_eq!(base.labels["size"], "small", "the labels must be those of the commit");

        let next = Mounted::new(&client.prepare("next", "base", &[]).unwrap());
        assert_eq!(read(&next.at("file")), "one");
        fs::write(next.at("file"), "two").unwrap();
        fs::remove_dir_all(next.at("a/b")).unwrap();
        drop(next);
        client.commit("child", "next", &[]).unwrap();
        assert_eq!(client.stat("child").unwrap().parent, "base");

        let view = Mounted::new(&client.view("view", "child").unwrap());
        assert_eq!(read(&view.at("file")), "two");
        assert!(view.at("a").is_dir() && !view.at("a/b").exists());
        fs::write(view.at("new"), "").unwrap_err();
        let below = Mounted::new(&client.view("view of base", "base").unwrap());
        assert_eq!(read(&below.at("file")), "one");
        assert!(below.at("a/b/c").is_dir());
        fs::write(below.at("new"), "").unwrap_err();
        assert_eq!(client.stat("view").unwrap().kind(), Kind::View);
        let nothing = Mounted::new(&client.view("view of nothing", "").unwrap());
        assert_eq!(fs::read_dir(nothing.path()).unwrap().count(), 0);
        fs::write(nothing.at("new"), "").unwrap_err();
    });
}

#[case]
fn what_is_refused_and_how() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        client.prepare("active", "", &[]).unwrap();
        client.prepare("to be committed", "", &[]).unwrap();
        client.commit("base", "to be committed", &[]).unwrap();
        client.view("view", "base").unwrap();
        client.prepare("child", "base", &[]).unwrap();
        let long = "x".repeat(4097);
        let huge: Vec<(String, String)> = (0..300).map(|n| (n.to_string(), "x".repeat(4000))).collect();
        let huge: Vec<(&str, &str)> =
            huge.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let no_info = client.call(async |mut client| client.update(UpdateSnapshotRequest::default()).await);
        for (code, answer) in [
            (Code::AlreadyExists, client.prepare("active", "", &[]).map(drop)),
            (Code::AlreadyExists, client.prepare("base", "", &[]).map(drop)),
            (Code::AlreadyExists, client.view("active", "base").map(drop)),
            (Code::NotFound, client.prepare("new", "none", &[]).map(drop)),
            (Code::NotFound, client.view("new", "none").map(drop)),
            (Code::InvalidArgument, client.prepare("new", "active", &[]).map(drop)),
            (Code::InvalidArgument, client.view("new", "view").map(drop)),
            (Code::InvalidArgument, client.prepare("", "", &[]).map(drop)),
            (Code::InvalidArgument, client.prepare(&long, "", &[]).map(drop)),
            (Code::InvalidArgument, client.prepare("new", "", &[("label", &long)]).map(drop)),
            (Code::OutOfRange, client.prepare("new", "", &huge).map(drop)),
            (Code::NotFound, client.mounts("none").map(drop)),
            (Code::FailedPrecondition, client.mounts("base").map(drop)),
            (Code::NotFound, client.commit("new", "none", &[])),
            (Code::FailedPrecondition, client.commit("new", "view", &[])),
            (Code::FailedPrecondition, client.commit("new", "base", &[])),
            (Code::AlreadyExists, client.commit("base", "active", &[])),
            (Code::AlreadyExists, client.commit("active", "active", &[])),
            (Code::InvalidArgument, client.commit("", "active", &[])),
            (Code::NotFound, client.remove("none")),
            (Code::FailedPrecondition, client.remove("base")),
            (Code::NotFound, client.stat("none").map(drop)),
            (Code::NotFound, client.usage("none").map(drop)),
            (Code::NotFound, client.update("none", &[], &[]).map(drop)),
            (Code::InvalidArgument, client.update("base", &[], &["parent"]).map(drop)),
            (Code::InvalidArgument, client.update("base", &[], &["labels.a", "name"]).map(drop)),
            (Code::InvalidArgument, client.update("base", &[], &["labels."]).map(drop)),
            (Code::InvalidArgument, no_info.map(drop)),
            (Code::InvalidArgument, client.list(&["name=="]).map(drop)),
        ] {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
        }
        assert!(client.remove("base").unwrap_err().message().contains("remove"));
        // The failed calls changed nothing, and all snapshots can be removed.
        assert_eq!(client.names(&[]), ["active", "base", "child", "view"]);
        for name in ["child", "view", "base", "active"] {
            client.remove(name).unwrap();
        }
        assert_eq!(client.names(&[]), Vec::<String>::new());
        assert_eq!(fs::read_dir(snapshotter.root().join("snapshots")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(snapshotter.root().join("l")).unwrap().count(), 0);
        let mode = fs::metadata(snapshotter.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    });
}

#[case]
fn labels_change_as_asked() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        client.prepare("a", "", &[("one", "1"), ("two", "2"), ("empty", "")]).unwrap();
        let before = client.stat("a").unwrap();
        assert_eq!(before.labels.len(), 2, "an empty value must remove the label");
        let sorted = |info: larder_containerd_api::services::snapshots::v1::Info| {
            let mut labels: Vec<_> = info.labels.into_iter().collect();
            labels.sort();
            labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        let one = client.update(
            "a",
            &[("one", "1.1"), ("two", "not this"), ("three.x", "3")],
            &["labels.one", "labels.three.x"],
        );
        assert_eq!(sorted(one.unwrap()), ["one=1.1", "three.x=3", "two=2"]);
        let gone = client.update("a", &[], &["labels.one"]).unwrap();
        assert_eq!(sorted(gone), ["three.x=3", "two=2"]);
        assert_eq!(sorted(client.update("a", &[("four", "4")], &["labels"]).unwrap()), ["four=4"]);
        assert_eq!(sorted(client.update("a", &[("five", "5")], &[]).unwrap()), ["five=5"]);
        let after = client.stat("a").unwrap();
        assert_eq!(after.created_at, before.created_at);
        let time = |info: &larder_containerd_api::services::snapshots::v1::Info| {
            info.updated_at.map(|time| (time.seconds, time.nanos))
        };
        assert!(time(&after) > time(&before), "{before:?} {after:?}");
        assert_eq!(sorted(after), ["five=5"]);
    });
}

#[case]
fn lists_are_filtered_and_come_in_parts() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        assert_eq!(client.list_messages(&[]).unwrap().concat(), []);
        for number in 0..230 {
            let large = if number % 4 == 0 { "x".repeat(4000) } else { "x".to_owned() };
            let parity = if number % 2 == 0 { "even" } else { "odd" };
            let given = [
                ("par.ity", parity),
                ("a", &large),
                ("b", &large),
                ("c", &large),
                ("d", &large),
                ("e", &large),
            ];
            client.prepare(&format!("s{number}"), "", &given).unwrap();
        }
        client.commit("base", "s229", &[]).unwrap();
        client.view("view", "base").unwrap();
        assert_eq!(client.names(&["labels.\"par.ity\"==odd"]).len(), 114);
        assert_eq!(client.names(&["labels.par.ity==odd,name~=^s1"]).len(), 56);
        assert_eq!(client.names(&["kind==view", "kind==committed"]), ["base", "view"]);
        assert_eq!(client.names(&["parent==base"]), ["view"]);
        assert_eq!(client.names(&[r#"parent!="""#]), ["view"]);
        let messages = client.list_messages(&[]).unwrap();
        assert_eq!(messages.iter().map(Vec::len).sum::<usize>(), 231);
        assert!(messages.len() >= 3 && messages.iter().all(|message| message.len() <= 100));
    });
}

#[case]
fn usage_is_what_lies_on_disk() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        let mounted = Mounted::new(&client.prepare("a", "", &[]).unwrap());
        let before = client.usage("a").unwrap();
        assert_eq!(before.inodes, 1);
        fs::write(mounted.at("data"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(mounted.at("data"), mounted.at("again")).unwrap();
        fs::create_dir(mounted.at("dir")).unwrap();
        nix::unistd::sync();
        let active = client.usage("a").unwrap();
        let grown = active.size - before.size;
        assert!((1 << 20..2 << 20).contains(&grown), "{active:?}");
        assert_eq!(active.inodes, 3);
        drop(mounted);
        client.commit("base", "a", &[]).unwrap();
        assert_eq!(client.usage("base").unwrap(), active);
        client.view("view", "base").unwrap();
        let view = client.usage("view").unwrap();
        assert_eq!((view.size, view.inodes), (0, 0));
        // A child counts only its own files.
        let child = Mounted::new(&client.prepare("child", "base", &[]).unwrap());
        fs::remove_file(child.at("data")).unwrap();
        assert_eq!(client.usage("child").unwrap().inodes, 2);
    });
}

#[case]
fn what_layers_do_to_those_below() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        layer(client, "1", "", |top| {
            fs::create_dir_all(top.join("dir/sub")).unwrap();
            fs::write(top.join("dir/file"), "1").unwrap();
            fs::write(top.join("replaced"), "1").unwrap();
            fs::write(top.join("owned"), "1").unwrap();
            fs::write(top.join("moved"), "1").unwrap();
            symlink("dir/file", top.join("link")).unwrap();
            fs::set_permissions(top, Permissions::from_mode(0o711)).unwrap();
            chown(top, Some(7), Some(8)).unwrap();
        });
        layer(client, "2", "1", |top| {
            let facts = fs::metadata(top).unwrap();
            assert_eq!(
                (facts.mode() & 0o7777, facts.uid(), facts.gid()),
                (0o711, 7, 8),
                "the metadata of the root directory must be inherited"
            );
            fs::remove_file(top.join("replaced")).unwrap();
            fs::create_dir(top.join("replaced")).unwrap();
            fs::write(top.join("replaced/inside"), "2").unwrap();
            chown(top.join("owned"), Some(1), Some(2)).unwrap();
            fs::set_permissions(top.join("owned"), Permissions::from_mode(0o4750)).unwrap();
            fs::rename(top.join("moved"), top.join("dir/moved")).unwrap();
            fs::remove_file(top.join("link")).unwrap();
        });
        layer(client, "3", "2", |top| {
            fs::remove_dir_all(top.join("dir")).unwrap();
            fs::create_dir(top.join("dir")).unwrap();
            fs::write(top.join("dir/only"), "3").unwrap();
        });
        let view = Mounted::new(&client.view("view", "3").unwrap());
        let mut names: Vec<_> = fs::read_dir(view.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["dir", "owned", "replaced"]);
        assert_eq!(read(&view.at("replaced/inside")), "2");
        let inside: Vec<_> = fs::read_dir(view.at("dir")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(inside, ["only"]);
        let owned = fs::metadata(view.at("owned")).unwrap();
        assert_eq!((owned.mode() & 0o7777, owned.uid(), owned.gid()), (0o4750, 1, 2));
        // The lower layers are unchanged.
        let second = Mounted::new(&client.view("view of 2", "2").unwrap());
        assert_eq!(read(&second.at("dir/moved")), "1");
        // A snapshot with children cannot be removed in any way.
        for name in ["1", "2", "3"] {
            assert_eq!(client.remove(name).unwrap_err().code(), Code::FailedPrecondition);
        }
        drop((view, second));
        for name in ["view", "view of 2", "3", "2", "1"] {
            client.remove(name).unwrap();
        }
    });
}

#[case]
fn many_layers() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        let mut parent = String::new();
        for number in 0..130 {
            let name = format!("layer {number}");
            let key = format!("active {number}");
            client.prepare(&key, &parent, &[]).unwrap();
            let root = snapshotter.root().join("snapshots");
            let newest = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let newest = newest.max_by_key(|name| name.parse::<u64>().unwrap()).unwrap();
            fs::write(root.join(newest).join("fs").join(number.to_string()), name.as_bytes()).unwrap();
            client.commit(&name, &key, &[]).unwrap();
            parent = name;
        }
        let mounts = client.prepare("top", &parent, &[]).unwrap();
        let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
        // The remaining paths after containerd has removed the common prefix.
        let common = snapshotter.root().join("l").canonicalize().unwrap();
        let short: Vec<_> =
            lower.split(':').map(|path| Path::new(path).strip_prefix(&common).unwrap()).collect();
        assert!(short.iter().map(|path| path.as_os_str().len() + 1).sum::<usize>() < 600);
        let mounted = Mounted::new(&mounts);
        for number in 0..130 {
            assert_eq!(read(&mounted.at(&number.to_string())), format!("layer {number}"));
        }
    });
}
