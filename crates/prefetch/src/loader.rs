//! The libraries that the dynamic loader reads before a program's first instruction: ld.so(8) of glibc, and
//! the loader of musl.
//!
//! Directories for newer processors (`glibc-hwcaps`) are found only through `ld.so.cache`.

use std::collections::HashSet;
use std::io;

use super::elf::{self, Machine, Object};
use super::ld_cache::{self, Cache};
use super::listing::Listing;
use super::view::Found;
use larder_layer::path;

/// Maximum number of library names that one program can lead to.
const MAX_NAMES: usize = 4096;

/// Maximum number of bytes of `ld.so.cache` that are read; the largest distributions have 300 KiB.
const MAX_CACHE: u64 = 4 << 20;

/// Maximum size of a list of libraries or directories, bytes.
const MAX_TEXT: u64 = 64 << 10;

/// A loaded object that names libraries.
struct Loaded {
    object: Object,
    /// `$ORIGIN`: the directory in which the loader found it.
    origin: Vec<u8>,
    /// Index of the object that named it, in the order of loading.
    by: Option<usize>,
}

/// The search paths of a program's loader.
struct Loader {
    machine: Machine,
    musl: bool,
    /// `LD_LIBRARY_PATH` from the image's environment.
    library_path: Vec<u8>,
    cache: Cache,
    defaults: Vec<Vec<u8>>,
}

/// Lists the files that a program with an interpreter loads, in the order of loading.
pub(super) fn load(listing: &mut Listing<'_>, program: &Found, object: Object) -> io::Result<()> {
    let Some(interpreter) = object.interpreter.clone() else { return Ok(()) };
    let found = listing.find(&interpreter)?;
    if let Some(found) = &found {
        listing.add(found);
    }
    let musl = path::split(&interpreter).1.starts_with(b"ld-musl-");
    let mut preloaded = words(variable(listing, "LD_PRELOAD"));
    if !musl {
        preloaded.extend(text(listing, b"/etc/ld.so.preload")?.map(|text| words(&text)).unwrap_or_default());
    }
    let loader = Loader::of(listing, object.machine, musl, &interpreter)?;
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let mut loaded = vec![Loaded { object, origin: path::split(&program.path).0.to_vec(), by: None }];
    loaded[0].object.needed.splice(0..0, preloaded);
    let mut at = 0;
    while at < loaded.len() {
        for name in std::mem::take(&mut loaded[at].object.needed) {
            if seen.len() >= MAX_NAMES || listing.is_full() {
                return Ok(());
            }
            if !seen.insert(name.clone()) {
                continue;
            }
            for (path, found, object) in loader.find(listing, &loaded, at, &name)? {
                listing.add(&found);
                loaded.push(Loaded { object, origin: path::split(&path).0.to_vec(), by: Some(at) });
            }
        }
        at += 1;
    }
    Ok(())
}

type Library = (Vec<u8>, Found, Object);

impl Loader {
    fn of(listing: &mut Listing<'_>, machine: Machine, musl: bool, interpreter: &[u8]) -> io::Result<Self> {
        let library_path = variable(listing, "LD_LIBRARY_PATH").to_vec();
        let mut loader = Loader { machine, musl, library_path, cache: Cache::new(), defaults: Vec::new() };
        if musl {
            // ld-musl-x86_64.so.1 reads /etc/ld-musl-x86_64.path.
            let name = path::split(interpreter).1;
            let name = &name[..name.iter().position(|b| *b == b'.').unwrap_or(name.len())];
            let text = text(listing, &[b"/etc/", name, b".path"].concat())?;
            let dirs = text.unwrap_or_else(|| b"/lib:/usr/local/lib:/usr/lib".to_vec());
            loader.defaults = dirs.split(|b| matches!(b, b':' | b'\n')).map(<[u8]>::to_vec).collect();
        } else {
            if let Some(found) = listing.find(b"/etc/ld.so.cache")? {
                listing.add(&found);
                loader.cache = ld_cache::parse(&found.head(MAX_CACHE)?, machine.little);
            }
            let triplet = triplet(machine).into_iter();
            loader.defaults = triplet
                .flat_map(|name| [format!("/lib/{name}"), format!("/usr/lib/{name}")])
                .map(String::into_bytes)
                .collect();
            let shared: [&[u8]; 4] = [b"/lib64", b"/usr/lib64", b"/lib", b"/usr/lib"];
            loader.defaults.extend(shared.map(<[u8]>::to_vec));
        }
        loader.defaults.retain(|dir| !dir.is_empty());
        Ok(loader)
    }

    /// Returns the library that `name` refers to in `loaded[at]`. The result has several libraries if the
    /// choice depends on the node's processor.
    fn find(
        &self,
        listing: &mut Listing<'_>,
        loaded: &[Loaded],
        at: usize,
        name: &[u8],
    ) -> io::Result<Vec<Library>> {
        let origin = &loaded[at].origin;
        if name.contains(&b'/') {
            for path in expand(name, origin, self.machine) {
                if let Some(library) = self.open(listing, path)? {
                    return Ok(vec![library]);
                }
            }
            return Ok(Vec::new());
        }
        let mut above = Vec::new();
        let mut next = Some(at);
        while let Some(index) = next {
            above.push(&loaded[index]);
            next = loaded[index].by;
        }
        let runpath = |loaded: &Loaded| loaded.object.runpath.clone().unwrap_or_default();
        let rpath = |loaded: &Loaded| loaded.object.rpath.clone().unwrap_or_default();
        let environment = [(self.library_path.clone(), origin)];
        let groups: Vec<(Vec<u8>, &Vec<u8>)> = if self.musl {
            let own = above.iter().map(|l| ([runpath(l), rpath(l)].join(&b':'), &l.origin));
            environment.into_iter().chain(own).collect()
        } else {
            // An object with DT_RUNPATH ignores its own DT_RPATH and those of its ancestors.
            let inherits = loaded[at].object.runpath.is_none();
            let inherited = above.iter().filter(|l| inherits && l.object.runpath.is_none());
            let inherited = inherited.map(|l| (rpath(l), &l.origin));
            inherited.chain(environment).chain([(runpath(&loaded[at]), origin)]).collect()
        };
        for (dirs, origin) in groups {
            for dir in dirs.split(|b| matches!(b, b':' | b';')).filter(|dir| !dir.is_empty()) {
                for dir in expand(dir, origin, self.machine) {
                    if let Some(library) = self.open(listing, path::join(&dir, name))? {
                        return Ok(vec![library]);
                    }
                    if listing.is_full() {
                        return Ok(Vec::new());
                    }
                }
            }
        }
        let mut cached = Vec::new();
        for path in self.cache.get(name).into_iter().flatten() {
            cached.extend(self.open(listing, path.clone())?);
        }
        if !cached.is_empty() {
            return Ok(cached);
        }
        for dir in &self.defaults {
            if let Some(library) = self.open(listing, path::join(dir, name))? {
                return Ok(vec![library]);
            }
        }
        Ok(Vec::new())
    }

    /// Opens the library at `path`; `None` if it is missing or for another machine.
    fn open(&self, listing: &mut Listing<'_>, path: Vec<u8>) -> io::Result<Option<Library>> {
        let Some(found) = listing.find(&path)? else { return Ok(None) };
        let object = found.open()?.and_then(elf::read).filter(|object| object.machine == self.machine);
        Ok(object.map(|object| (path, found, object)))
    }
}

/// Returns an environment variable of the image, or an empty string.
fn variable<'a>(listing: &Listing<'a>, name: &str) -> &'a [u8] {
    listing.process().variable(name).unwrap_or_default().as_bytes()
}

/// Lists and reads a file of /etc.
fn text(listing: &mut Listing<'_>, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let Some(found) = listing.find(path)? else { return Ok(None) };
    listing.add(&found);
    Ok(Some(found.head(MAX_TEXT)?))
}

/// Splits `ld.so.preload` or `LD_PRELOAD` into names.
fn words(text: &[u8]) -> Vec<Vec<u8>> {
    let lines = text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b'#').next());
    let words = lines.flat_map(|line| line.split(|b| matches!(b, b' ' | b'\t' | b'\r' | b':')));
    words.filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Expands `$ORIGIN` and `$LIB` (ld.so(8), "Dynamic string tokens"). The result is empty if there is another
/// token, whose value only the node has. `$LIB` has Debian's value and those of other distributions.
fn expand(text: &[u8], origin: &[u8], machine: Machine) -> Vec<Vec<u8>> {
    let origin = [b"/", origin].concat();
    let text = replace(&replace(text, b"${ORIGIN}", &origin), b"$ORIGIN", &origin);
    let libs =
        triplet(machine).map(|name| format!("lib/{name}")).into_iter().chain(["lib64".into(), "lib".into()]);
    let mut expanded: Vec<Vec<u8>> = Vec::new();
    for lib in libs {
        let path = replace(&replace(&text, b"${LIB}", lib.as_bytes()), b"$LIB", lib.as_bytes());
        if !path.contains(&b'$') && !expanded.contains(&path) {
            expanded.push(path);
        }
    }
    expanded
}

/// Replaces `token`. A path that becomes longer than the kernel accepts is truncated, because it names no
/// file.
fn replace(text: &[u8], token: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(token.len()).position(|window| window == token) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value);
        rest = &rest[at + token.len()..];
        if out.len() > 2 * 4096 {
            return out;
        }
    }
    out.extend_from_slice(rest);
    out
}

/// Returns Debian's name of a machine, used in its library directories (wiki.debian.org/Multiarch/Tuples).
fn triplet(machine: Machine) -> Option<&'static str> {
    use object::elf;
    Some(match (elf::Machine(machine.number), machine.wide, machine.little) {
        (elf::EM_X86_64, true, _) => "x86_64-linux-gnu",
        (elf::EM_X86_64, false, _) => "x86_64-linux-gnux32",
        (elf::EM_386, ..) => "i386-linux-gnu",
        (elf::EM_AARCH64, true, true) => "aarch64-linux-gnu",
        (elf::EM_ARM, _, true) => "arm-linux-gnueabihf",
        (elf::EM_RISCV, true, _) => "riscv64-linux-gnu",
        (elf::EM_PPC64, true, true) => "powerpc64le-linux-gnu",
        (elf::EM_S390, true, _) => "s390x-linux-gnu",
        (elf::EM_LOONGARCH, true, _) => "loongarch64-linux-gnu",
        (elf::EM_MIPS, true, true) => "mips64el-linux-gnuabi64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: Machine = Machine { wide: true, little: true, number: 62 };

    #[test]
    fn tokens() {
        let expanded = |text: &str| {
            let all = expand(text.as_bytes(), b"opt/bin", X86).into_iter();
            all.map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(expanded("$ORIGIN/../lib"), ["/opt/bin/../lib"]);
        assert_eq!(expanded("/opt/${LIB}"), ["/opt/lib/x86_64-linux-gnu", "/opt/lib64", "/opt/lib"]);
        assert_eq!(expanded("/opt/$PLATFORM"), Vec::<String>::new());
        assert!(expand("$ORIGIN".repeat(500).as_bytes(), &[b'a'; 4000], X86)[0].len() < 20_000);
    }

    #[test]
    fn preloaded_names() {
        assert_eq!(
            words(b"a.so  b.so:c.so # d.so\n#e\n/f.so\n"),
            [b"a.so".to_vec(), b"b.so".to_vec(), b"c.so".to_vec(), b"/f.so".to_vec()]
        );
    }
}
