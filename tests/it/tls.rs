//! HTTPS with a private certificate authority and a client certificate, configured in `larder.toml` and in
//! containerd's `certs.d`.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;

use crate::harness::authority::Authority;
use crate::harness::registry::Registry;
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: &[Need] = &[Need::Program("docker-registry"), Need::Program("openssl")];

#[case]
fn a_private_authority_and_a_client_certificate() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let authority = Authority::new(path);
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        authority.sign("client", "extendedKeyUsage=clientAuth");
        let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
        let image = Image::builder(Format::Oci).layer(layer).build();
        let registry = Registry::with_tls(path, &image, "team/app", "1");
        let reference = registry.reference("team/app:1");
        let host = registry.host();
        let at = |name: &str| path.join(name).display().to_string();
        let (ca, certificate, key) = (at("ca.pem"), at("client.pem"), at("client.key"));
        let build = |volume: &str, config: &str| {
            let file = path.join(format!("{volume}.toml"));
            fs::write(&file, config).unwrap();
            let mut larder = larder();
            larder.env("LARDER_REGISTRY__RETRIES", "0").arg("--config").arg(&file);
            larder.arg("build").arg("--volume").arg(path.join(volume)).args(["--size", "64MiB", &reference]);
            larder
        };
        let of_certs_d = |name: &str, hosts: &str| {
            let certs = path.join(name).join(&host);
            fs::create_dir_all(&certs).unwrap();
            fs::write(certs.join("hosts.toml"), format!("server = \"https://{host}\"\n{hosts}")).unwrap();
            format!("[registry]\ncerts_d = \"{}\"\n", path.join(name).display())
        };

        let said = exits(64, &mut build("untrusted", &of_certs_d("untrusted.d", "")));
        assert!(said.contains("certificate"), "{said}");

        let entry = format!("[[registry.host]]\nname = \"{host}\"\nca = [\"{ca}\"]\n");
        let entry = format!("{entry}client_cert = \"{certificate}\"\nclient_key = \"{key}\"\n");
        succeed(&mut build("trusted", &entry));
        // The registry offers HTTP/2, on which all parts of a blob would share one connection.
        assert!(registry.spoke("HTTP/1.1") && !registry.spoke("HTTP/2.0"));

        let hosts = format!("ca = \"{ca}\"\nclient = [[\"{certificate}\", \"{key}\"]]\n");
        succeed(&mut build("certs-d", &of_certs_d("certs.d", &hosts)));
    });
}

/// A build of one image with the given flags.
fn build(dir: &Path, reference: &str, flags: &[&str]) -> Command {
    let mut larder = larder();
    larder.env("LARDER_REGISTRY__RETRIES", "0").arg("build").arg("--volume").arg(dir);
    larder.args(["--size", "64MiB"]).args(flags).arg(reference);
    larder
}

fn small() -> Image {
    let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

#[case]
fn loopback_is_tried_with_tls_first_and_flags_decide() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let authority = Authority::new(path);
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        let (secure, plain) = (Registry::with_certificate(path, &small(), "team/app", "1"), Registry::open());
        plain.push(&small(), "team/app", "1");
        let ca = path.join("ca.pem").display().to_string();
        let references = [secure.reference("team/app:1"), plain.reference("team/app:1")];

        let said = exits(64, &mut build(&path.join("untrusted"), &references[0], &[]));
        assert!(said.contains("certificate is not trusted") && said.contains("--ca"), "{said}");
        succeed(&mut build(&path.join("trusted"), &references[0], &["--ca", &ca]));
        succeed(&mut build(&path.join("insecure"), &references[0], &["--tls-verify=false"]));

        succeed(&mut build(&path.join("plain"), &references[1], &[]));
        let said = exits(64, &mut build(&path.join("verified"), &references[1], &["--tls-verify"]));
        assert!(said.contains("does not support TLS"), "{said}");
        let config = path.join("larder.toml");
        let text = format!("[[registry.host]]\nname = \"{}\"\nplain_http = false\n", plain.host());
        fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        let said = exits(64, &mut build(&path.join("configured"), &references[1], &["--config", &config]));
        assert!(said.contains("does not support TLS"), "plain_http = false is obeyed: {said}");
    });
}

#[case]
fn a_failed_mirror_is_a_warning_with_its_reason() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let authority = Authority::new(path);
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        let (mirror, registry) =
            (Registry::with_certificate(path, &small(), "team/app", "1"), Registry::open());
        let reference = registry.push(&small(), "team/app", "1");
        let mut build = build(&path.join("volume"), &reference, &["--mirror", &mirror.host()]);
        let output = build.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let warning = format!("warning: mirror {} failed, using the next host", mirror.host());
        assert_eq!(said.matches(&warning).count(), 1, "{said}");
        assert!(said.contains("certificate is not trusted"), "{said}");
    });
}

#[case]
fn an_authfile_has_the_credentials() {
    isolated(&[Need::Program("docker-registry"), Need::Program("htpasswd")], || {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::with_password();
        let reference = registry.push(&small(), "team/app", "1");
        let file = dir.path().join("auth.json");
        fs::copy(registry.docker_config().join("config.json"), &file).unwrap();
        exits(77, &mut build(&dir.path().join("anonymous"), &reference, &[]));
        let file = file.display().to_string();
        succeed(&mut build(&dir.path().join("known"), &reference, &["--authfile", &file]));
    });
}

#[case]
fn the_error_of_a_registry_is_what_why_mirrors_and_hint() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let authority = Authority::new(path);
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        let mirror = Registry::with_certificate(path, &small(), "team/app", "1");
        let registry = Registry::open();
        let reference = registry.reference("team/app:2");
        let flags = ["--mirror", &mirror.host()];
        let said = exits(64, &mut build(&path.join("volume"), &reference, &flags));
        let lines: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("larder: ")).collect();
        let untrusted = format!("  mirror {}: the server's certificate is not trusted", mirror.host());
        assert_eq!(lines[0], format!("larder: {reference}: fetching the manifest failed"), "{said}");
        assert_eq!(lines[1], "  not found (404 Not Found: MANIFEST_UNKNOWN)");
        assert!(lines[2].starts_with(&untrusted), "{said}");
        assert_eq!(lines[3], "  hint: check the name, the tag and whether the image was deleted", "{said}");
        assert!(lines[4].starts_with("exit 64: ") && lines.len() == 5, "{said}");
    });
}
