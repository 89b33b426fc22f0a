//! The Debian package and the archive of a release, built from the program under test. The package is checked
//! by lintian, and installed, used and removed in a new Debian system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Need, isolated, succeed};

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("dh"),
    Need::Program("lintian"),
    Need::Program("debootstrap"),
    Need::Program("apt-cache"),
];

/// Returns the address of the mirror from which this machine installs Debian's main packages.
fn mirror(suite: &str) -> String {
    let policy = succeed(Command::new("apt-cache").arg("policy"));
    let main = format!(" {suite}/main ");
    let line = policy.lines().find(|line| line.contains(&main)).unwrap_or_else(|| panic!("{policy}"));
    line.split_whitespace().find(|word| word.starts_with("http")).unwrap().to_owned()
}

/// Returns the code name of this Debian release.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap().trim_matches('"').to_owned()
}

/// Builds the package and returns its path.
fn package() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deb.sh");
    // The program of the tests is large, and its compression takes longer than the rest of the test.
    let mut command = Command::new(script);
    command.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip").env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
    let printed = succeed(command.arg(env!("CARGO_BIN_EXE_larder")));
    let name = printed.lines().last().unwrap();
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[case]
fn the_debian_package_is_installed_and_removed() {
    isolated(NEEDS, || {
        let package = package();
        succeed(Command::new("lintian").args(["--fail-on", "error", "--allow-root"]).arg(&package));
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("debian");
        let suite = suite();
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=systemd-standalone-sysusers", &suite]);
        succeed(debootstrap.arg(&root).arg(mirror(&suite)));
        fs::copy(&package, root.join("tmp/larder.deb")).unwrap();
        let inside = |command: &str| succeed(Command::new("chroot").arg(&root).args(["sh", "-ec", command]));

        inside("dpkg --install /tmp/larder.deb");
        assert!(inside("larder version").contains(&format!("larder {}\n", env!("CARGO_PKG_VERSION"))));
        inside("larder config check");
        assert!(inside("larder config show").contains("socket_group = \"larder\""));
        inside("getent group larder");
        inside("test -s /usr/share/man/man1/larder-cache-ls.1.gz");
        inside("bash -n /usr/share/bash-completion/completions/larder");
        let enabled = root.join("etc/systemd/system/multi-user.target.wants");
        assert!(fs::symlink_metadata(enabled.join("larder.service")).is_ok());
        assert!(fs::symlink_metadata(enabled.join("larder-snapshotter.service")).is_err(), "it is opt-in");

        // A changed configuration outlives the program, until it is purged.
        inside("echo '# changed' >> /etc/larder/larder.toml && dpkg --remove larder");
        assert!(!root.join("usr/bin/larder").exists() && root.join("etc/larder/larder.toml").exists());
        inside("dpkg --purge larder");
        assert!(!root.join("etc/larder").exists());
        assert!(fs::symlink_metadata(enabled.join("larder.service")).is_err());
    });
}

/// Packs the program under test into `out`, and returns the name of the archive.
fn tarball(out: &Path, umask: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tarball.sh");
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask $0; exec \"$@\"", umask])
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_larder"))
        .arg(out);
    let printed = succeed(command.env("SOURCE_DATE_EPOCH", "1700000000"));
    Path::new(printed.trim_end()).file_name().unwrap().to_str().unwrap().to_owned()
}

#[case]
fn the_archive_of_a_release_is_checked_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let name = tarball(&first, "022");
    assert_eq!(name, format!("larder-{}-{}-linux.tar.gz", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH));
    let inside = |command: &str| succeed(Command::new("sh").args(["-ec", command]).current_dir(&first));
    assert_eq!(inside("sha256sum --check SHA256SUMS"), format!("{name}: OK\n"));

    // The bytes do not depend on the umask, the time or the directory.
    assert_eq!(tarball(&second, "077"), name);
    assert!(fs::read(first.join(&name)).unwrap() == fs::read(second.join(&name)).unwrap());

    inside(&format!(
        "TZ=UTC tar --list --verbose --numeric-owner --file={name} >list; tar --extract --file={name}"
    ));
    let top = first.join(name.strip_suffix(".tar.gz").unwrap());
    for line in fs::read_to_string(first.join("list")).unwrap().lines() {
        assert!(line.contains(" 0/0 ") && line.contains(" 2023-11-14 22:13 "), "{line}");
    }
    let larder = |arguments: &[&str]| succeed(Command::new(top.join("bin/larder")).args(arguments));
    assert!(larder(&["version"]).starts_with(&format!("larder {}\n", env!("CARGO_PKG_VERSION"))));
    larder(&["config", "check", "--config", top.join("etc/larder/larder.toml").to_str().unwrap()]);
    for path in [
        "LICENSE",
        "README.md",
        "lib/systemd/system/larder.service",
        "lib/systemd/system/larder-snapshotter.socket",
        "monitoring/alerts.yaml",
        "share/man/man1/larder-cache-ls.1",
        "share/bash-completion/completions/larder",
        "share/fish/vendor_completions.d/larder.fish",
        "share/zsh/site-functions/_larder",
    ] {
        assert!(fs::metadata(top.join(path)).unwrap().len() > 0, "{path}");
    }
}
