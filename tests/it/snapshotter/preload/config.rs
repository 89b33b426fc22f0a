//! How this machine's containerd reads the file that Larder writes, according to `containerd config dump`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::node::containerd::config::{Loading, Node, Snapshotter, Version, Wanted};
use tempfile::TempDir;
use toml::Table;

use crate::harness::{Need, isolated, succeed};

const CRI: &str = "io.containerd.grpc.v1.cri";

/// A directory in place of /etc/containerd.
struct Etc {
    dir: TempDir,
    version: Version,
}

impl Etc {
    fn new(main: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        let version = succeed(Command::new("containerd").arg("--version")).parse().unwrap();
        let etc = Etc { dir, version };
        fs::write(etc.main(), main.replace("ETC", &etc.dir.path().display().to_string())).unwrap();
        etc
    }

    fn main(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn ours(&self) -> PathBuf {
        self.dir.path().join("conf.d/99-larder.toml")
    }

    fn node(&self) -> Node {
        Node::read(Path::new("/"), &self.main(), &self.ours(), self.version).unwrap()
    }

    fn write(&self) {
        let snapshotter = Snapshotter {
            name: "larder".into(),
            socket: "/run/l.sock".into(),
            root: "/var/lib/l".into(),
            remaps_ids: true,
        };
        let wanted = Wanted { snapshotters: vec![snapshotter], content_cache: None };
        fs::write(self.ours(), self.node().drop_in(&wanted).unwrap().text()).unwrap();
    }

    fn dumped(&self) -> Table {
        let mut dump = Command::new("containerd");
        dump.arg("--config").arg(self.main()).args(["config", "dump"]);
        // containerd 1.6 resolves patterns relative to this directory.
        succeed(dump.current_dir("/")).parse().unwrap()
    }
}

#[case]
fn containerd_reads_the_file_as_intended() {
    isolated(&[Need::Program("containerd")], || {
        let main = "version = 2\nimports = ['ETC/conf.d/*.toml']\nroot = '/var/lib/elsewhere'\n\
                    [plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause:mine'\n\
                    [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\n\
                    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
                    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n\
                    [proxy_plugins.other]\ntype = 'snapshot'\naddress = '/run/other.sock'\n";
        let etc = Etc::new(main);
        let before = etc.dumped();
        etc.write();
        assert_eq!(etc.node().loading(), Loading::Counts);
        let after = etc.dumped();
        let cri = &after["plugins"][CRI];
        assert_eq!(cri["containerd"]["snapshotter"].as_str(), Some("larder"));
        assert_eq!(after["proxy_plugins"]["larder"]["address"].as_str(), Some("/run/l.sock"));
        assert_eq!(after["proxy_plugins"]["other"]["address"].as_str(), Some("/run/other.sock"));
        // No other setting differs.
        let (mut want, mut found) = (before, after);
        for dump in [&mut want, &mut found] {
            dump.remove("imports");
            dump["plugins"][CRI]["containerd"].as_table_mut().unwrap().remove("snapshotter");
            dump["proxy_plugins"].as_table_mut().unwrap().remove("larder");
        }
        assert_eq!(found, want);
        // Writing it again changes nothing.
        let once = fs::read_to_string(etc.ours()).unwrap();
        etc.write();
        assert_eq!(fs::read_to_string(etc.ours()).unwrap(), once);
    });
}

#[case]
fn why_the_section_of_cri_is_repeated() {
    isolated(&[Need::Program("containerd")], || {
        let etc = Etc::new(
            "version = 2\nimports = ['ETC/conf.d/*.toml']\n\
             [plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause:mine'\n",
        );
        let of = |dump: &Table| dump["plugins"][CRI]["sandbox_image"].as_str().unwrap().to_owned();
        assert_eq!(of(&etc.dumped()), "pause:mine");
        let little =
            "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'larder'\n";
        fs::write(etc.ours(), little).unwrap();
        let lost = of(&etc.dumped()) != "pause:mine";
        assert_eq!(lost, etc.version < Version { major: 2, minor: 0 }, "{}", etc.version);
        etc.write();
        assert_eq!(of(&etc.dumped()), "pause:mine");
    });
}

#[case]
fn the_detection_of_imports_is_correct() {
    isolated(&[Need::Program("containerd")], || {
        for (imports, may_be_absent) in [
            ("", false),
            ("imports = []\n", false),
            ("imports = ['ETC/conf.d/*.toml']\n", false),
            ("imports = ['ETC/conf.d/99-larder.toml']\n", true),
            ("imports = ['conf.d/99-larder.toml']\n", true),
            ("imports = ['conf.d/*.toml']\n", false),
            ("imports = ['ETC/other.d/*', 'ETC/*/99-lard?r.toml']\n", false),
            ("imports = ['ETC/conf.d/[0-9][0-9]-*.toml']\n", false),
        ] {
            let etc = Etc::new(&format!("version = 2\n{imports}"));
            let said = etc.node().loading();
            if may_be_absent {
                // containerd itself does not start without an imported file.
                assert_eq!(said, Loading::Counts, "{imports}");
            }
            etc.write();
            let is_read =
                etc.dumped()["plugins"][CRI]["containerd"]["snapshotter"].as_str() == Some("larder");
            assert_eq!(said == Loading::Counts, is_read, "{imports}: {said:?}");
        }
        // A later file with its own section.
        let etc = Etc::new("version = 2\nimports = ['ETC/conf.d/*.toml']\n");
        let late = etc.dir.path().join("conf.d/zz.toml");
        fs::write(&late, "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/x'\n").unwrap();
        etc.write();
        let found = etc.dumped()["plugins"][CRI]["containerd"]["snapshotter"].as_str() == Some("larder");
        assert_eq!(etc.node().loading() == Loading::Counts, found);
        if etc.version.major < 2 {
            assert_eq!(etc.node().loading(), Loading::Overridden { by: late });
        }
    });
}
