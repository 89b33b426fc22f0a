//! Signatures of sealed volumes, and trusted keys. Checked with OpenSSL, which reads and writes the same
//! keys.

mod interrupted;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::CacheManifest;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, ROOMY, Tenant, configure, serve};
use crate::harness::served::{Served, cache, change_times, random};
use crate::harness::{Need, exits, isolated, larder, run_within, succeed};

const SIZE: u64 = 64 << 20;
const OPENSSL: Need = Need::Program("openssl");

fn image() -> Image {
    let layer =
        |seed: u64| LayerBuilder::new().dir("d").file(format!("d/{seed}"), random(seed, 20_000)).gzip();
    Image::builder(Format::Oci).layers([layer(1).into(), layer(2).into()]).build()
}

/// A key in a file.
struct Key {
    file: PathBuf,
    line: String,
}

impl Key {
    fn new(served: &Served, name: &str) -> Self {
        let file = served.beside(name);
        let line = succeed(larder().args(["key", "generate"]).arg(&file)).trim().to_owned();
        Key { file, line }
    }

    fn id(&self) -> String {
        Digest::sha256(&STANDARD.decode(&self.line).unwrap()).to_string()
    }

    /// Returns the line of base64 in its file, which no output can contain.
    fn secret(&self) -> String {
        fs::read_to_string(&self.file).unwrap().lines().nth(1).unwrap().to_owned()
    }
}

fn signed(served: &Served, volume: &Path, key: &Key) -> Command {
    let mut build = served.build(volume, SIZE);
    build.arg("--sign-key").arg(&key.file);
    build
}

fn verify(volume: &Path, trusted: &[&str]) -> Command {
    let mut verify = larder();
    verify.arg("verify").arg(volume);
    for key in trusted {
        verify.args(["--trust", key]);
    }
    verify
}

fn signature(volume: &Path) -> PathBuf {
    volume.join("cache.json.sig")
}

fn read_signature(volume: &Path) -> Value {
    serde_json::from_slice(&fs::read(signature(volume)).unwrap()).unwrap()
}

/// Returns the signed statement, as the documentation specifies it.
fn statement(volume: &Path) -> String {
    let stated = read_signature(volume);
    format!(
        "larder cache.json 2\n{}\nname {}\ncreated {}\nsequence {}\n",
        Digest::sha256(&fs::read(volume.join("cache.json")).unwrap()),
        stated["name"].as_str().unwrap_or_default(),
        stated["created"].as_str().unwrap(),
        stated["sequence"]
    )
}

/// Returns the statement in the format of version 1.
fn bare_statement(volume: &Path) -> String {
    format!("larder cache.json 1\n{}\n", Digest::sha256(&fs::read(volume.join("cache.json")).unwrap()))
}

#[case]
fn openssl_and_larder_take_each_others_keys_and_signatures() {
    isolated(&[OPENSSL], || {
        let served = Served::new([image()]);
        let openssl = |args: &[&str]| {
            let mut openssl = Command::new("openssl");
            openssl.args(args).current_dir(served.beside("."));
            openssl
        };
        // OpenSSL reads a key of Larder.
        let ours = Key::new(&served, "ours.pem");
        assert_eq!(fs::metadata(&ours.file).unwrap().permissions().mode() & 0o7777, 0o600);
        let said = exits(73, larder().args(["key", "generate"]).arg(&ours.file));
        assert!(said.contains("exists"), "{said}");
        let pem = succeed(larder().args(["key", "public", "--pem"]).arg(&ours.file));
        assert_eq!(succeed(&mut openssl(&["pkey", "-in", "ours.pem", "-pubout"])), pem);
        assert_eq!(pem.lines().nth(1).unwrap(), ours.line);
        fs::write(served.beside("ours.pub"), &pem).unwrap();
        let der = openssl(&["pkey", "-pubin", "-in", "ours.pub", "-outform", "DER"]).output().unwrap().stdout;
        assert_eq!(Digest::sha256(&der).to_string(), ours.id());
        // Larder reads a key of OpenSSL.
        succeed(&mut openssl(&["genpkey", "-algorithm", "ed25519", "-out", "theirs.pem"]));
        let theirs = served.beside("theirs.pem");
        fs::set_permissions(&theirs, Permissions::from_mode(0o640)).unwrap();
        let said = exits(77, larder().args(["key", "public"]).arg(&theirs));
        assert!(said.contains("0640") && said.contains("chmod 600"), "{said}");
        fs::set_permissions(&theirs, Permissions::from_mode(0o600)).unwrap();
        let line = succeed(larder().args(["key", "public"]).arg(&theirs)).trim().to_owned();
        let theirs = Key { file: theirs, line };
        succeed(&mut openssl(&["pkey", "-in", "theirs.pem", "-pubout", "-out", "theirs.pub"]));
        assert_eq!(
            fs::read_to_string(served.beside("theirs.pub")).unwrap().lines().nth(1),
            Some(&theirs.line[..])
        );
        for (algorithm, option) in [("rsa", "rsa_keygen_bits:2048"), ("ec", "ec_paramgen_curve:P-256")] {
            let other = served.beside("other.pem");
            succeed(&mut openssl(&[
                "genpkey",
                "-algorithm",
                algorithm,
                "-pkeyopt",
                option,
                "-out",
                "other.pem",
            ]));
            fs::set_permissions(&other, Permissions::from_mode(0o600)).unwrap();
            let said = exits(64, larder().args(["key", "public"]).arg(&other));
            assert!(said.contains("Ed25519"), "{said}");
            succeed(&mut openssl(&["pkey", "-in", "other.pem", "-pubout", "-out", "other.pub"]));
            exits(64, &mut verify(&served.volume(), &[served.beside("other.pub").to_str().unwrap()]));
        }

        // OpenSSL verifies signatures of Larder with both keys.
        for (key, public) in [(&ours, "ours.pub"), (&theirs, "theirs.pub")] {
            let volume = served.volume();
            let _ = fs::remove_dir_all(&volume);
            succeed(&mut signed(&served, &volume, key));
            succeed(&mut verify(&volume, &[served.beside(public).to_str().unwrap()]));
            let bytes = STANDARD.decode(read_signature(&volume)["signature"].as_str().unwrap()).unwrap();
            fs::write(served.beside("sig"), &bytes).unwrap();
            fs::write(served.beside("statement"), statement(&volume)).unwrap();
            let check = ["pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"];
            let proves = || openssl(&[&check[..], &["-in", "statement", "-sigfile", "sig"]].concat());
            succeed(&mut proves());
            fs::write(served.beside("statement"), format!("{} ", statement(&volume))).unwrap();
            assert!(!proves().output().unwrap().status.success(), "openssl accepted a wrong signature");
        }

        // Larder verifies signatures of OpenSSL.
        let volume = served.volume();
        let old = json!({"version": 1, "key": ours.line});
        let new = json!({"version": 2, "key": ours.line, "name": "web",
            "created": "2026-11-29T20:00:00Z", "sequence": 17});
        for mut file in [old, new] {
            fs::write(signature(&volume), file.to_string()).unwrap();
            let text = if file["version"] == 1 { bare_statement(&volume) } else { statement(&volume) };
            fs::write(served.beside("statement"), text).unwrap();
            let sign =
                ["pkeyutl", "-sign", "-inkey", "ours.pem", "-rawin", "-in", "statement", "-out", "sig"];
            succeed(&mut openssl(&sign));
            file["signature"] = STANDARD.encode(fs::read(served.beside("sig")).unwrap()).into();
            fs::write(signature(&volume), file.to_string()).unwrap();
            let said = succeed(&mut verify(&volume, &[&ours.line]));
            assert!(said.contains(&format!("signed by {} (trusted)", ours.id())), "{said}");
        }
        let said = succeed(larder().arg("inspect").arg(&volume));
        assert!(said.contains("signed for the name web at 2026-11-29T20:00:00Z, number 17\n"), "{said}");
    });
}

/// Checks that a changed volume, and a signature by another key, are rejected.
fn check_tampering(form: LayerFormat) {
    isolated(&[], move || {
        let served = Served::new([image()]).with(form);
        let volume = served.volume();
        let (ours, other) = (Key::new(&served, "ours.pem"), Key::new(&served, "other.pem"));
        let said = succeed(signed(&served, &volume, &ours).args(["--verify-after"]));
        assert!(said.contains("sealed"), "{said}");
        let both = served.beside("trusted");
        fs::write(&both, format!("# of our builders\n{}\n{}\n", other.line, ours.line)).unwrap();
        let both = both.to_str().unwrap();
        for trusted in [&[&*ours.line][..], &[&other.line, &ours.line], &[both]] {
            let said = succeed(&mut verify(&volume, trusted));
            assert!(said.contains(&format!("signed by {} (trusted)", ours.id())), "{said}");
        }
        let said = succeed(&mut verify(&volume, &[]));
        assert!(said.contains(&format!("signed by {} (not checked", ours.id())), "{said}");
        let said = exits(77, &mut verify(&volume, &[&other.line]));
        assert!(said.contains(&ours.id()) && said.contains(&other.id()), "{said}");
        let said = succeed(larder().arg("inspect").arg(&volume));
        assert!(said.contains(&format!("signed by {}\n", ours.id())), "{said}");
        let shown: Value =
            serde_json::from_str(&succeed(larder().args(["inspect", "--json"]).arg(&volume))).unwrap();
        let stated = read_signature(&volume);
        let want = json!({"key": ours.line, "key_id": ours.id(), "holds": true, "name": null,
            "created": stated["created"], "sequence": stated["sequence"]});
        assert_eq!(shown["signature"], want);

        // Flip a bit of either file.
        let files = [volume.join("cache.json"), signature(&volume)];
        for file in &files {
            let whole = fs::read(file).unwrap();
            for at in (0..whole.len() - 1).step_by(whole.len() / 12) {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                fs::write(file, &changed).unwrap();
                let output = verify(&volume, &[&ours.line]).output().unwrap();
                let code = output.status.code();
                assert!(matches!(code, Some(65 | 77)), "{}: {at}: {code:?}", file.display());
            }
            fs::write(file, &whole).unwrap();
        }
        // A consistent seal with other content.
        let whole = fs::read(&files[0]).unwrap();
        let mut content = cache(&volume).content;
        content.larder.push('x');
        fs::write(&files[0], serde_json::to_vec_pretty(&CacheManifest::new(content).unwrap()).unwrap())
            .unwrap();
        for trusted in [&[][..], &[&*ours.line]] {
            let said = exits(65, &mut verify(&volume, trusted));
            assert!(said.contains("is invalid"), "{said}");
        }
        let said = succeed(larder().arg("inspect").arg(&volume));
        assert!(said.contains("THE SIGNATURE IS INVALID"), "{said}");
        fs::write(&files[0], &whole).unwrap();
        // No signature, a symbolic link to one, one that is too long, and another key in the signature.
        let sound = fs::read(&files[1]).unwrap();
        fs::remove_file(&files[1]).unwrap();
        let said = exits(77, &mut verify(&volume, &[&ours.line]));
        assert!(said.contains("it is not signed") && said.contains(&ours.id()), "{said}");
        succeed(&mut verify(&volume, &[]));
        fs::write(served.beside("sound"), &sound).unwrap();
        std::os::unix::fs::symlink(served.beside("sound"), &files[1]).unwrap();
        assert!(exits(65, &mut verify(&volume, &[&ours.line])).contains("not a regular file"));
        fs::remove_file(&files[1]).unwrap();
        fs::write(&files[1], vec![b' '; 5000]).unwrap();
        assert!(exits(65, &mut verify(&volume, &[])).contains("more than 4096 bytes"));
        let stolen = String::from_utf8(sound.clone()).unwrap().replace(&ours.line, &other.line);
        fs::write(&files[1], stolen).unwrap();
        exits(65, &mut verify(&volume, &[&other.line]));
        exits(65, &mut verify(&volume, &[]));
        fs::write(&files[1], &sound).unwrap();
        succeed(&mut verify(&volume, &[&ours.line]));
        // Invalid keys.
        for (bad, words) in [("nowhere", "No such file"), (ours.file.to_str().unwrap(), "private key")] {
            let said = exits(64, &mut verify(&volume, &[bad]));
            assert!(said.contains(words) && !said.contains(&ours.secret()), "{said}");
        }
    });
}

#[case]
fn directories_of_layers_are_signed() {
    check_tampering(LayerFormat::Overlay);
}

#[case]
fn images_of_layers_are_signed() {
    check_tampering(LayerFormat::Erofs);
}

#[case]
fn a_sealed_volume_is_signed_already_or_never() {
    isolated(&[], || {
        let served = Served::new([image()]);
        let (ours, other) = (Key::new(&served, "ours.pem"), Key::new(&served, "other.pem"));
        let (volume, plain) = (served.volume(), served.beside("plain"));
        succeed(&mut signed(&served, &volume, &ours));
        succeed(&mut served.build(&plain, SIZE));
        let before = (change_times(&volume), change_times(&plain));
        succeed(&mut signed(&served, &volume, &ours));
        succeed(&mut served.build(&volume, SIZE));
        for (volume, key) in [(&volume, &other), (&plain, &ours)] {
            let said = exits(73, &mut signed(&served, volume, key));
            assert!(said.contains("sealed already") && said.contains(&key.id()), "{said}");
        }
        assert_eq!((change_times(&volume), change_times(&plain)), before);

        // A key that cannot be read is an error before any file is created.
        let nothing = served.beside("nothing");
        fs::set_permissions(&other.file, Permissions::from_mode(0o644)).unwrap();
        let said = exits(77, &mut signed(&served, &nothing, &other));
        assert!(said.contains("0644") && !nothing.exists(), "{said}");
        let configured = |volume: &Path, key: &Path| {
            let mut build = served.build(volume, SIZE);
            build.env("LARDER_BUILD__SIGN_KEY", key);
            build
        };
        exits(64, &mut configured(&nothing, &served.beside("absent")));
        // A key in the configuration. A plan does not use it.
        succeed(&mut configured(&nothing, &ours.file));
        succeed(&mut verify(&nothing, &[&ours.line]));
        let mut plan = larder();
        plan.env("LARDER_BUILD__SIGN_KEY", served.beside("absent")).arg("plan").args(served.references());
        succeed(&mut plan);
        // An empty variable removes the setting of the file.
        let config = served.beside("larder.toml");
        fs::write(&config, "[build]\nsign_key = '/absent'\n").unwrap();
        let with_file = |volume: &str| {
            let mut build = served.build(&served.beside(volume), SIZE);
            build.arg("--config").arg(&config);
            build
        };
        let said = exits(64, &mut with_file("by-file"));
        assert!(said.contains("/absent"), "{said}");
        succeed(with_file("by-file").env("LARDER_BUILD__SIGN_KEY", ""));
        assert!(!signature(&served.beside("by-file")).exists());
    });
}

#[case]
fn the_private_key_is_never_written() {
    isolated(&[], || {
        let served = Served::new([image()]);
        let key = Key::new(&served, "key.pem");
        let raw = STANDARD.decode(key.secret()).unwrap().split_off(16);
        let volume = served.volume();
        let mut build = signed(&served, &volume, &key);
        build
            .args(["--output", "json", "--log-level", "trace", "--result-file"])
            .arg(served.beside("result"));
        let output = build.output().unwrap();
        assert!(output.status.success());
        let files = walk(&volume).into_iter().chain([served.beside("result")]);
        let texts = files.map(|path| fs::read(path).unwrap()).chain([output.stdout, output.stderr]);
        let debug = format!("{raw:?}");
        let secret = key.secret();
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let forms =
            [&raw[..], &secret.as_bytes()[24..], hex.as_bytes(), &debug.as_bytes()[1..debug.len() - 1]];
        for text in texts {
            for form in forms {
                assert!(!text.windows(form.len()).any(|window| window == form));
            }
        }
    });
}

/// Returns all regular files below `dir`.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.append(&mut walk(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}

#[case]
fn archives_are_signed_when_they_are_imported() {
    isolated(&[Need::Program("mkfs.ext4")], || {
        let served = Served::new([image()]);
        let key = Key::new(&served, "key.pem");
        let volume = served.volume();
        succeed(&mut signed(&served, &volume, &key));
        let export = |format: &str| {
            let out = served.beside(format);
            succeed(larder().arg("export").arg(&volume).arg(&out).args(["--format", format]));
            out
        };
        let import = |input: &Path, back: &Path| {
            let mut import = larder();
            import.arg("import").arg(input).arg("--volume").arg(back);
            import
        };
        let (archive, plain, back) = (export("oci-archive"), served.beside("plain"), served.beside("back"));
        succeed(&mut import(&archive, &plain));
        exits(77, &mut verify(&plain, &[&key.line]));
        succeed(import(&archive, &back).arg("--sign-key").arg(&key.file));
        succeed(&mut verify(&back, &[&key.line]));

        // The export of the whole volume as one EROFS image contains the seal and its signature.
        let (image, disk) = (export("erofs"), served.beside("disk"));
        succeed(&mut verify(&image, &[&key.line]));
        let said = exits(64, import(&image, &disk).arg("--sign-key").arg(&key.file));
        assert!(said.contains("keeps its signature"), "{said}");
        succeed(&mut import(&image, &disk));
        assert_eq!(fs::read(signature(&disk)).unwrap(), fs::read(signature(&volume)).unwrap());
        succeed(&mut verify(&disk, &[&key.line]));
        let sound = fs::read(signature(&disk)).unwrap();
        fs::remove_file(signature(&disk)).unwrap();
        let said = exits(65, &mut verify(&disk, &[&key.line]));
        assert!(said.contains("cache.json.sig on it differs from the one next to it"), "{said}");
        fs::write(signature(&disk), sound).unwrap();
        succeed(&mut verify(&disk, &[&key.line]));
    });
}

#[case]
fn the_caches_of_a_daemon_are_signed() {
    isolated(&[], || {
        const TEAM: Tenant = Tenant("team");
        let served = Served::new([image()]);
        let key = Key::new(&served, "key.pem");
        let configuration =
            format!("{ROOMY}build.sign_key = '{}'\nlog.level = 'trace'\n", key.file.display());
        let mut daemon = Daemon::start(&[TEAM], &configuration);
        let id = daemon.order(TEAM, "web", &served.references());
        daemon.explain(|| {
            daemon.settle(TEAM, &id, "Available", Duration::from_secs(60));
            let volume = daemon.state().join("tenants/team/volumes").join(format!("{id}.1"));
            let said = succeed(&mut verify(&volume, &[&key.line]));
            assert!(said.contains("(trusted)"), "{said}");
            let stated = read_signature(&volume);
            assert_eq!((&stated["name"], &stated["sequence"]), (&json!(format!("team/{id}")), &json!(1)));
        });
        daemon.stop();
        assert!(!daemon.log().contains(&key.secret()[24..]));
        for path in walk(&daemon.state()) {
            let bytes = fs::read(path).unwrap();
            assert!(!bytes.windows(20).any(|window| window == &key.secret().as_bytes()[24..44]));
        }

        // A bad key is reported at the start, not after a build.
        fs::set_permissions(&key.file, Permissions::from_mode(0o644)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), None, &[TEAM], &configuration);
        let said = exits(77, &mut serve(dir.path()));
        assert!(said.contains("build.sign_key") && said.contains("0644"), "{said}");
    });
}
