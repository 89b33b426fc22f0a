//! The container image of a program: an OCI image layout with one layer, which contains the program and the
//! few files that it needs. No container engine is involved, and the same input gives the same bytes.
//!
//! ```text
//! etc/passwd, group     root, and the user of the image
//! etc/nsswitch.conf     host names come from /etc/hosts and DNS, as in the statically linked C library
//! etc/ssl/certs/ca-certificates.crt      CA certificates; others are mounted there, or set by SSL_CERT_FILE
//! etc/larder, run/larder, tmp, var/lib/larder      empty: mount points and writable directories
//! usr/bin/larder        the program
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::compress::{self, Written};
use super::output::Directory;
use super::tar::{BLOCK, END, Kind, Member, padding};
use super::target::{Layout, Target};
use super::{Error, oci};
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_model::io_error::Context as _;
use larder_model::platform::Platform;
use larder_model::seal::Compression;
use larder_prefetch::elf;

/// User and group of the image. They are numeric because a kubelet with `runAsNonRoot` does not accept names.
pub const USER: u32 = 65532;

/// Path of the program in the image, as on a host.
const PROGRAM: &str = "usr/bin/larder";

/// Path of the CA certificates in the image, as on Debian.
const CA_CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// A member of the layer and its content.
type Entry = (Member<'static>, Bytes);

/// Inputs of a container image.
#[derive(Clone, Debug)]
pub struct Program {
    /// Path of the program, which must be statically linked.
    pub path: PathBuf,
    /// Path of the CA certificates, PEM.
    pub authorities: PathBuf,
    /// Tag of the image in the layout.
    pub tag: String,
    /// The commit that the program was built from.
    pub revision: Option<String>,
    /// Time of that commit.
    pub created: DateTime<Utc>,
}

impl Program {
    /// Writes the layout to `out` and returns the digest of the manifest.
    ///
    /// # Errors
    /// Any [`Error`]. On failure nothing is created at `out`, and an existing output is unchanged.
    pub fn package(&self, out: &Path, force: bool) -> Result<Digest, Error> {
        let shown = self.path.display();
        let program = File::open(&self.path).context("opening", &shown)?;
        if !elf::read(program).is_some_and(|object| object.is_static()) {
            return Err(Error::Dynamic { path: shown.to_string() });
        }
        let files = self.files()?;
        let directory = Directory::begin(out, force)?;
        let digest = self.write(&files, &mut Layout::new(directory.dir()?))?;
        directory.finish()?;
        Ok(digest)
    }

    /// Returns the members in the order of their paths, with directories before their contents.
    fn files(&self) -> Result<Vec<Entry>, Error> {
        let read = |path: &Path| fs::read(path).map(Bytes::from).context("reading", path.display());
        let passwd = format!(
            "root:x:0:0:root:/:/sbin/nologin\nlarder:x:{USER}:{USER}:larder:/var/lib/larder:/sbin/nologin\n"
        );
        let group = format!("root:x:0:\nlarder:x:{USER}:\n");
        Ok(vec![
            directory("etc/", 0o755, 0),
            file("etc/group", 0o644, group),
            directory("etc/larder/", 0o755, 0),
            file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
            file("etc/passwd", 0o644, passwd),
            directory("etc/ssl/", 0o755, 0),
            directory("etc/ssl/certs/", 0o755, 0),
            file(CA_CERTIFICATES, 0o644, read(&self.authorities)?),
            directory("run/", 0o755, 0),
            directory("run/larder/", 0o755, USER),
            directory("tmp/", 0o1777, 0),
            directory("usr/", 0o755, 0),
            directory("usr/bin/", 0o755, 0),
            file(PROGRAM, 0o755, read(&self.path)?),
            directory("var/", 0o755, 0),
            directory("var/lib/", 0o755, 0),
            directory("var/lib/larder/", 0o700, USER),
        ])
    }

    fn write(&self, files: &[Entry], target: &mut dyn Target) -> Result<Digest, Error> {
        oci::begin(target)?;
        let mut layer = None;
        target.stream(None, &mut |out| {
            let written = compress::encode(Compression::Gzip, out, |take| pack(files, take))?;
            let info = oci::info(&written);
            layer = Some(written);
            Ok(info)
        })?;
        let layers: Vec<_> = layer.iter().map(|layer| oci::layer(layer, Compression::Gzip)).collect();
        let config = document(target, "the config", &self.config(&diff_id(files)?))?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": oci::MANIFEST,
            "config": oci::descriptor(oci::CONFIG, &config),
            "layers": layers,
        });
        let manifest = document(target, "the manifest", &manifest)?;
        let mut entry = oci::descriptor(oci::MANIFEST, &manifest);
        entry["platform"] = platform();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": self.tag});
        oci::end(target, &[entry])?;
        target.finish()?;
        Ok(manifest.digest)
    }

    fn config(&self, diff_id: &Digest) -> Value {
        let created = self.created.to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut labels = json!({
            "org.opencontainers.image.title": "larder",
            "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.created": created,
        });
        if let Some(revision) = &self.revision {
            labels["org.opencontainers.image.revision"] = json!(revision);
        }
        let mut config = platform();
        config["created"] = json!(created);
        config["config"] = json!({
            "User": format!("{USER}:{USER}"),
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": ["--help"],
            "WorkingDir": "/",
            "Labels": labels,
        });
        config["rootfs"] = json!({"type": "layers", "diff_ids": [diff_id]});
        config["history"] = json!([{"created": created, "created_by": "larder image"}]);
        config
    }
}

fn directory(name: &'static str, mode: u32, owner: u32) -> Entry {
    (Member { name, kind: Kind::Directory, mode, owner, size: 0 }, Bytes::new())
}

fn file(name: &'static str, mode: u32, content: impl Into<Bytes>) -> Entry {
    let content = content.into();
    (Member { name, kind: Kind::File, mode, owner: 0, size: content.len() as u64 }, content)
}

/// Passes the tar of the layer to `take` in chunks.
fn pack(files: &[Entry], take: &mut compress::ChunkSink<'_>) -> Result<(), Error> {
    for (member, content) in files {
        take(Bytes::copy_from_slice(&member.header()))?;
        take(content.clone())?;
        take(Bytes::from_static(&[0; BLOCK][..padding(member.size)]))?;
    }
    take(Bytes::from_static(&END))
}

fn diff_id(files: &[Entry]) -> Result<Digest, Error> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    pack(files, &mut |piece| {
        hasher.update(&piece);
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// Returns the platform of this host, for which the program was built.
fn platform() -> Value {
    let Platform { os, architecture, variant } = Platform::host();
    let mut platform = json!({"os": os, "architecture": architecture});
    if !variant.is_empty() {
        platform["variant"] = json!(variant);
    }
    platform
}

fn document(target: &mut dyn Target, what: &'static str, value: &Value) -> Result<Written, Error> {
    let bytes = oci::to_json(what, value)?;
    let written = Written { digest: Digest::sha256(&bytes), size: bytes.len() as u64 };
    target.file(&oci::info(&written).path, &bytes)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    /// Returns the smallest program without libraries: an ELF header and no segment.
    fn program(dir: &Path) -> Program {
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[20] = 1;
        elf[52] = 64;
        elf[54] = 56;
        elf[58] = 64;
        let path = dir.join("program");
        fs::write(&path, &elf).unwrap();
        fs::write(dir.join("ca.pem"), "authorities").unwrap();
        Program {
            path,
            authorities: dir.join("ca.pem"),
            tag: "1".into(),
            revision: Some("abc".into()),
            created: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn output_is_readable_and_reproducible() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path());
        let at = |name: &str| dir.path().join(name);
        let digest = program.package(&at("one"), false).unwrap();
        assert_eq!(program.package(&at("two"), false).unwrap(), digest);
        assert!(matches!(program.package(&at("one"), false), Err(Error::Exists { .. })));
        program.package(&at("one"), true).unwrap();

        let read = |path: &str| fs::read(at("one").join(path)).unwrap();
        let blob = |descriptor: &Value| {
            let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
            let bytes = read(&format!("blobs/sha256/{}", digest.hex()));
            assert_eq!(
                (Digest::sha256(&bytes), bytes.len() as u64),
                (digest, descriptor["size"].as_u64().unwrap())
            );
            bytes
        };
        let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["digest"], digest.to_string());
        let manifest: Value = serde_json::from_slice(&blob(entry)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "abc");

        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob(&manifest["layers"][0])[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], Digest::sha256(&tar).to_string());
        let mut found = BTreeMap::new();
        for entry in ::tar::Archive::new(&tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, header.gid().unwrap()));
            let about = (header.mode().unwrap(), header.uid().unwrap(), content);
            found.insert(entry.path().unwrap().to_str().unwrap().to_owned(), about);
        }
        assert_eq!(found["usr/bin/larder"], (0o755, 0, fs::read(&program.path).unwrap()));
        assert_eq!(found["etc/ssl/certs/ca-certificates.crt"], (0o644, 0, b"authorities".to_vec()));
        assert_eq!(found["tmp/"], (0o1777, 0, Vec::new()));
        assert_eq!(found["var/lib/larder/"], (0o700, 65532, Vec::new()));
        assert!(String::from_utf8(found["etc/passwd"].2.clone()).unwrap().contains("larder:x:65532:65532:"));
        for name in found.keys() {
            let parent = name.trim_end_matches('/').rsplit_once('/').map(|(parent, _)| format!("{parent}/"));
            assert!(parent.is_none_or(|parent| found.contains_key(&parent)), "{name}");
        }
    }

    #[test]
    fn dynamic_programs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = program(dir.path());
        for other in ["/proc/self/exe", "/etc/passwd"] {
            program.path = other.into();
            let refused = program.package(&dir.path().join("out"), false).unwrap_err();
            assert!(matches!(refused, Error::Dynamic { .. }), "{other}: {refused}");
            assert!(!dir.path().join("out").exists());
        }
    }
}
