use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use larder_sys::Dir;

/// Layers on disk, base first.
struct Image {
    dir: TempDir,
    layers: usize,
}

impl Image {
    fn new() -> Self {
        let image = Image { dir: tempfile::tempdir().unwrap(), layers: 1 };
        fs::create_dir(image.dir.path().join("0")).unwrap();
        image
    }

    /// Starts the next layer.
    fn layer(mut self) -> Self {
        fs::create_dir(self.dir.path().join(self.layers.to_string())).unwrap();
        self.layers += 1;
        self
    }

    fn at(&self, path: &str) -> PathBuf {
        let at = self.dir.path().join((self.layers - 1).to_string()).join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        at
    }

    fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.at(path), content).unwrap();
        self
    }

    fn program(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let at = self.at(path);
        fs::write(&at, content).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.at(path)).unwrap();
        self
    }

    /// Returns the list as `<layer>:<path>`, with layers counted from the base.
    fn starts(&self, args: &[&str], env: &[&str], working_dir: &str) -> Vec<String> {
        let process = Process {
            args: args.iter().map(ToString::to_string).collect(),
            env: env.iter().map(ToString::to_string).collect(),
            working_dir: working_dir.to_owned(),
        };
        let names: Vec<String> = (0..self.layers).rev().map(|n| n.to_string()).collect();
        let open = |name: &String| StoredDir::Directory(Dir::open(&self.dir.path().join(name)).unwrap());
        let layers = names.iter().map(|name| (name.clone(), open(name))).collect();
        let listed = files(layers, &process).unwrap().into_iter();
        listed.map(|entry| format!("{}:{}", entry.tree, String::from_utf8(entry.path).unwrap())).collect()
    }
}

/// A 64-bit little-endian ELF file for x86-64 with these properties.
#[derive(Default)]
struct Elf<'a> {
    interpreter: Option<&'a str>,
    needed: &'a [&'a str],
    rpath: Option<&'a str>,
    runpath: Option<&'a str>,
    machine: Option<u16>,
}

impl Elf<'_> {
    fn bytes(&self) -> Vec<u8> {
        const STRINGS: u64 = 0x4000;
        let mut strings = vec![0];
        let mut string = |text: &str| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let interpreter = self.interpreter.map(|text| (string(text), text.len() as u64 + 1));
        let mut dynamic: Vec<u64> = Vec::new();
        for name in self.needed {
            dynamic.extend([1, string(name)]);
        }
        for (tag, text) in [(15, self.rpath), (29, self.runpath)] {
            dynamic.extend(text.map(|text| [tag, string(text)]).into_iter().flatten());
        }
        dynamic.extend([5, 0x40_0000 + STRINGS, 10, strings.len() as u64, 0, 0]);
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        out.extend([3u16.to_le_bytes(), self.machine.unwrap_or(62).to_le_bytes()].concat());
        out.extend(1u32.to_le_bytes());
        for number in [0u64, 64, 0] {
            out.extend(number.to_le_bytes());
        }
        out.extend(0u32.to_le_bytes());
        for number in [64u16, 56, 3, 64, 0, 0] {
            out.extend(number.to_le_bytes());
        }
        let mut segment = |kind: u32, offset: u64, length: u64| {
            out.extend(kind.to_le_bytes());
            out.extend(4u32.to_le_bytes());
            for number in [offset, 0x40_0000 + offset, 0, length, length, 1] {
                out.extend(number.to_le_bytes());
            }
        };
        segment(1, 0, STRINGS + strings.len() as u64);
        segment(2, 0x800, dynamic.len() as u64 * 8);
        match interpreter {
            Some((at, length)) => segment(3, STRINGS + at, length),
            None => segment(0, 0, 0),
        }
        out.resize(0x800, 0);
        out.extend(dynamic.iter().flat_map(|number| number.to_le_bytes()));
        out.resize(usize::try_from(STRINGS).unwrap(), 0);
        out.extend(strings);
        out
    }
}

const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";

fn program(needed: &[&str]) -> Vec<u8> {
    Elf { interpreter: Some(GLIBC), needed, ..Elf::default() }.bytes()
}

fn library(needed: &[&str]) -> Vec<u8> {
    Elf { needed, ..Elf::default() }.bytes()
}

/// Returns an image with a merged-usr base, a loader and libc.
fn glibc() -> Image {
    Image::new()
        .link("lib", "usr/lib")
        .link("lib64", "usr/lib64")
        .link("bin", "usr/bin")
        .file("usr/lib/x86_64-linux-gnu/ld-2.36.so", library(&[]))
        .link("usr/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-2.36.so")
        .file("usr/lib/x86_64-linux-gnu/libc.so.6", library(&["ld-linux-x86-64.so.2"]))
}

const LOADER: &str = "0:usr/lib/x86_64-linux-gnu/ld-2.36.so";
const LIBC: &str = "0:usr/lib/x86_64-linux-gnu/libc.so.6";

#[test]
fn a_script_its_shell_and_the_program_after_it() {
    let image = glibc()
        .file("etc/passwd", "")
        .file("etc/nsswitch.conf", "")
        .program("usr/bin/dash", program(&["libc.so.6"]))
        .link("usr/bin/sh", "dash")
        .layer()
        .file("etc/passwd", "new")
        .program("usr/local/bin/entrypoint.sh", "#! /bin/sh -e\nexec \"$@\"\n")
        .program("opt/app", program(&["libapp.so", "libc.so.6"]))
        .file("usr/lib/libapp.so", library(&["libc.so.6"]))
        .file("srv/app.conf", "");
    let listed = image.starts(&["entrypoint.sh", "/opt/app", "-v", "app.conf", "none"], &[], "/srv");
    let dash = "0:usr/bin/dash";
    let want = [
        "1:etc/passwd",
        "1:usr/local/bin/entrypoint.sh",
        dash,
        LOADER,
        LIBC,
        "1:opt/app",
        "1:usr/lib/libapp.so",
        "1:srv/app.conf",
        "0:etc/nsswitch.conf",
    ];
    assert_eq!(listed, want);
}

#[test]
fn what_an_upper_layer_hides_is_not_listed() {
    let image = glibc()
        .program("usr/bin/app", program(&["liba.so", "libc.so.6"]))
        .file("usr/lib/liba.so", library(&[]));
    assert_eq!(image.starts(&["app"], &[], "/").len(), 4);
    let image = image.layer();
    let node = Dir::open(image.at("usr/lib/x").parent().unwrap()).unwrap();
    if node.make_whiteout(b"liba.so").is_err() {
        eprintln!("skipped: this user cannot create whiteouts");
        return;
    }
    assert_eq!(image.starts(&["app"], &[], "/"), ["0:usr/bin/app", LOADER, LIBC]);
}

#[test]
fn directories_of_libraries_in_the_order_of_the_loader() {
    let with = |rpath: Option<&'static str>, runpath: Option<&'static str>, env: &[&str]| {
        let app =
            Elf { interpreter: Some(GLIBC), needed: &["liba.so"], rpath, runpath, machine: None }.bytes();
        // liba.so names libb.so and has no directories of its own.
        let mut image = glibc().program("app/bin/run", app);
        for dir in ["app/lib", "env", "usr/lib"] {
            image = image
                .file(&format!("{dir}/liba.so"), library(&["libb.so"]))
                .file(&format!("{dir}/libb.so"), library(&[]));
        }
        let foreign = Elf { machine: Some(183), ..Elf::default() }.bytes();
        let image = image.file("foreign/liba.so", foreign).link("usr/bin/run", "/app/bin/run");
        let listed = image.starts(&["run"], env, "/");
        assert_eq!(listed[..2], ["0:app/bin/run", LOADER]);
        listed[2..].to_vec()
    };
    let both = |a: &str, b: &str| vec![format!("0:{a}/liba.so"), format!("0:{b}/libb.so")];
    let env = ["LD_LIBRARY_PATH=/none:/foreign:/env"];
    assert_eq!(with(None, None, &[]), both("usr/lib", "usr/lib"));
    assert_eq!(with(None, None, &env), both("env", "env"));
    assert_eq!(with(Some("$ORIGIN/../lib"), None, &env), both("app/lib", "app/lib"));
    // DT_RUNPATH comes after the environment, and is not inherited.
    assert_eq!(with(None, Some("${ORIGIN}/../lib"), &env), both("env", "env"));
    assert_eq!(with(None, Some("${ORIGIN}/../lib"), &[]), both("app/lib", "usr/lib"));
    assert_eq!(with(Some("/env"), Some("$ORIGIN/../lib"), &[]), both("app/lib", "usr/lib"));
}

#[test]
fn musl_searches_its_own_directories() {
    let app = Elf {
        interpreter: Some("/lib/ld-musl-x86_64.so.1"),
        needed: &["libz.so.1", "libc.musl-x86_64.so.1"],
        ..Elf::default()
    };
    let image = Image::new()
        .file("lib/ld-musl-x86_64.so.1", library(&[]))
        .link("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1")
        .file("usr/local/lib/libz.so.1", library(&[]))
        .program("bin/app", app.bytes());
    let listed = image.starts(&["/bin/app"], &[], "/");
    assert_eq!(listed, ["0:bin/app", "0:lib/ld-musl-x86_64.so.1", "0:usr/local/lib/libz.so.1"]);
    let image = image.file("etc/ld-musl-x86_64.path", "/opt/lib\n").file("opt/lib/libz.so.1", library(&[]));
    let listed = image.starts(&["/bin/app"], &[], "/");
    assert_eq!(listed[2..], ["0:etc/ld-musl-x86_64.path", "0:opt/lib/libz.so.1"]);
}

#[test]
fn commands_of_shells_and_env() {
    let image = Image::new()
        .program("bin/sh", "x")
        .program("usr/bin/env", "x")
        .program("usr/bin/node", "x")
        .program("usr/bin/app.js", "#!/usr/bin/env -S NODE=1 node --flag\n");
    let shell = ["/bin/sh", "-ec", "PORT=1 exec app.js --port $PORT"];
    let want = ["0:bin/sh", "0:usr/bin/app.js", "0:usr/bin/env", "0:usr/bin/node"];
    assert_eq!(image.starts(&shell, &[], "/"), want);
    assert_eq!(image.starts(&["/bin/sh", "-c", "$(evil) x"], &[], "/"), ["0:bin/sh"]);
    assert_eq!(image.starts(&["app.js"], &["PATH=/none"], "/"), Vec::<String>::new());
}

#[test]
fn hostile_images_are_limited() {
    let loops = Image::new().program("a", "#!/b\n").program("b", "#!/a\n");
    assert_eq!(loops.starts(&["/a"], &[], "/"), ["0:a", "0:b"]);
    let names: Vec<String> = (0..400).map(|n| format!("lib{n}.so")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut crowd = Image::new()
        .program("run", Elf { interpreter: Some("/run"), needed: &names, ..Elf::default() }.bytes());
    let dirs = "/x/$LIB:$ORIGIN/y:".repeat(100);
    for (at, name) in names.iter().enumerate() {
        let more: Vec<String> = (0..400).map(|n| format!("lib{at}-{n}.so")).collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let bytes = Elf { needed: &more, rpath: Some(&dirs), ..Elf::default() }.bytes();
        crowd = crowd.file(&format!("lib/{name}"), bytes);
    }
    let began = std::time::Instant::now();
    assert_eq!(crowd.starts(&["/run"], &[], "/").len(), 401);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
