//! The contents of a release, and its independence of the build directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Returns the top directory of the sources.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the standard output of `command`, and panics with its standard error if it fails.
fn run(command: &mut Command) -> Vec<u8> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(&stderr));
    stdout
}

/// Reports whether scripts/install-tools.sh installed `tool`. Panics if not and `LARDER_REQUIRE_ALL` is set.
fn installed(tool: &str) -> bool {
    let found = root().join("target/tools/bin").join(tool).is_file();
    if !found {
        assert!(std::env::var_os("LARDER_REQUIRE_ALL").is_none(), "{tool} is not installed (make tools)");
        eprintln!("skipped: {tool} is not installed (make tools)");
    }
    found
}

/// Returns the bill of materials that the script in `sources` writes.
fn bill(sources: &Path, out: &Path) -> String {
    run(Command::new(sources.join("scripts/sbom.sh")).arg(out).env("SOURCE_DATE_EPOCH", "1700000000"));
    fs::read_to_string(out.join("larder.cdx.json")).unwrap()
}

/// Returns the name and version of each package that is linked into the program of `make dist`, or whose
/// macros generated its code.
fn linked() -> BTreeSet<(String, String)> {
    let tree = run(Command::new("cargo").current_dir(root()).args([
        "tree",
        "--package=larder",
        "--features=isal",
        "--locked",
        "--offline",
        "--edges=normal",
        "--prefix=none",
        "--format={p}",
    ]));
    String::from_utf8(tree)
        .unwrap()
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let (name, version) = (words.next().unwrap(), words.next().unwrap());
            (name.to_owned(), version.trim_start_matches('v').to_owned())
        })
        .filter(|(name, _)| name != "larder")
        .collect()
}

/// Returns the SHA-256 of each package of Cargo.lock, by name and version.
fn checksums() -> BTreeMap<(String, String), String> {
    let lock: toml::Table = toml::from_str(&fs::read_to_string(root().join("Cargo.lock")).unwrap()).unwrap();
    let text = |package: &toml::Value, key| package.get(key).map(|value| value.as_str().unwrap().to_owned());
    lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| {
            let checksum = text(package, "checksum")?;
            Some(((text(package, "name")?, text(package, "version")?), checksum))
        })
        .collect()
}

#[case]
fn bill_of_materials_lists_what_is_linked_and_no_path() {
    if !installed("cargo-cyclonedx") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let text = bill(root(), &dir.path().join("first"));
    let bill_of = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let bom = bill_of(&text);
    assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(bom["metadata"]["component"]["name"], "larder");
    assert_eq!(bom["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));

    let component = |value: &Value| {
        let part = |key: &str| value[key].as_str().unwrap().to_owned();
        (part("name"), part("version"))
    };
    let components = bom["components"].as_array().unwrap();
    let (required, excluded): (Vec<_>, Vec<_>) =
        components.iter().partition(|value| value["scope"] == "required");
    let required: BTreeSet<_> = required.into_iter().map(component).collect();
    let linked = linked();
    assert!(linked.len() > 100, "{linked:?}");
    assert_eq!(linked.difference(&required).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
    assert!(excluded.iter().all(|value| value["scope"] == "excluded"), "{excluded:?}");

    // The checksum of each package matches the lock file.
    let checksums = checksums();
    for value in components {
        let hash = value["hashes"][0]["content"].as_str();
        assert_eq!(hash, checksums.get(&component(value)).map(String::as_str), "{value}");
    }

    // The same sources in another directory, without git.
    let copy = dir.path().join("another/copy");
    run(Command::new(root().join("scripts/copy-sources.sh")).arg(&copy));
    fs::create_dir(copy.join("target")).unwrap();
    std::os::unix::fs::symlink(root().join("target/tools"), copy.join("target/tools")).unwrap();
    assert_eq!(text, bill(&copy, &dir.path().join("second")));
    for path in [root(), dir.path(), &PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo")] {
        assert!(!text.contains(path.to_str().unwrap()), "{} is in the bill of materials", path.display());
    }
}

/// A package whose program and C object contain its path, unless scripts/release-env.sh maps it.
struct Package {
    dir: PathBuf,
    home: PathBuf,
}

impl Package {
    fn new(dir: PathBuf) -> Self {
        for part in ["src", "scripts", "home"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let files = [
            (
                "Cargo.toml",
                "[package]\nname = \"small\"\nedition = \"2024\"\n[profile.release]\ndebug = 1\n[workspace]\n",
            ),
            ("Cargo.lock", "version = 4\n[[package]]\nname = \"small\"\nversion = \"0.0.0\"\n"),
            (
                "src/main.rs",
                "fn main() { println!(\"{} {:?}\", file!(), std::env::args().next().expect(\"a name\")) }\n",
            ),
            ("code.c", "const char *file(void) { return __FILE__; }\n"),
        ];
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        fs::copy(root().join("scripts/release-env.sh"), dir.join("scripts/release-env.sh")).unwrap();
        let home = dir.join("home");
        Self { dir, home }
    }

    /// Compiles Rust and C and returns both results. The C file is given by its full path, as in build
    /// scripts.
    fn build(&self, wrapper: &[PathBuf]) -> [Vec<u8>; 2] {
        let script = format!(
            "cargo build --quiet --release --locked && cc $CFLAGS -g -c {0}/code.c -o {0}/code.o",
            self.dir.display()
        );
        let mut words =
            wrapper.iter().map(|path| path.as_os_str()).chain(["sh", "-c", &script].map(AsRef::as_ref));
        run(Command::new(words.next().unwrap())
            .args(words)
            .current_dir(&self.dir)
            .env("CARGO_HOME", &self.home)
            // Cargo sets them for this test, and users can set others.
            .env_remove("CARGO_TARGET_DIR")
            .env("RUSTFLAGS", "-C target-cpu=native"));
        ["target/release/small", "code.o"].map(|name| fs::read(self.dir.join(name)).unwrap())
    }
}

#[case]
fn release_environment_gives_the_same_program_in_two_directories() {
    let dir = TempDir::new().unwrap();
    let packages = ["one", "two/of/another/length"].map(|name| Package::new(dir.path().join(name)));

    // Without it they differ, so the comparison below can fail.
    let [plain, other] = packages.each_ref().map(|package| package.build(&[]));
    assert!(plain[0] != other[0] && plain[1] != other[1]);

    let wrapped = |package: &Package| package.build(&[package.dir.join("scripts/release-env.sh")]);
    let [first, second] = packages.each_ref().map(wrapped);
    assert!(first[0] == second[0], "the Rust programs differ");
    assert!(first[1] == second[1], "the C objects differ");
    let needle = dir.path().as_os_str().as_encoded_bytes();
    for bytes in first {
        assert!(!bytes.windows(needle.len()).any(|window| window == needle), "a program contains a path");
    }
}

#[case]
fn release_environment_refuses_a_path_that_flags_cannot_hold() {
    let dir = TempDir::new().unwrap();
    let package = Package::new(dir.path().join("with space"));
    let output = Command::new(package.dir.join("scripts/release-env.sh"))
        .arg("true")
        .env("CARGO_HOME", &package.home)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Build in another directory"));
}
