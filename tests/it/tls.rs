//! HTTPS with a private certificate authority and a client certificate, configured in `larder.toml` and in
//! containerd's `certs.d`.

use std::fs;

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
        assert!(registry.spoke_http2());

        let hosts = format!("ca = \"{ca}\"\nclient = [[\"{certificate}\", \"{key}\"]]\n");
        succeed(&mut build("certs-d", &of_certs_d("certs.d", &hosts)));
    });
}
