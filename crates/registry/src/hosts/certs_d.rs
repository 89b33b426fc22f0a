//! Reads `certs.d/<host>/hosts.toml` (containerd, docs/hosts.md). Ignores keys that Larder does not use, as
//! containerd does.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Host, Mirror, Server, Tls};
use crate::error::Error;

/// Maximum size of hosts.toml, in bytes. No real file is larger.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Table,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Table>,
}

#[derive(Default, Deserialize)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    Pairs(Vec<(PathBuf, PathBuf)>),
    Files(Vec<PathBuf>),
    File(PathBuf),
}

/// Returns the configuration of `registry` from the first directory that has one, or else that of `_default`.
pub(super) fn load(directories: &[PathBuf], registry: &str) -> Result<Option<Host>, Error> {
    for name in names(registry) {
        for directory in directories {
            let file = directory.join(&name).join("hosts.toml");
            if let Some(text) = read(&file)? {
                return parse(&text, &directory.join(&name)).map(Some);
            }
        }
    }
    Ok(None)
}

fn names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

fn read(file: &Path) -> Result<Option<String>, Error> {
    let failed = |e: std::io::Error| Error::Setup(format!("reading {}: {e}", file.display()));
    let open = match std::fs::File::open(file) {
        Ok(open) => open,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    open.take(MAX_SIZE).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

fn parse(text: &str, directory: &Path) -> Result<Host, Error> {
    let file: File = toml::from_str(text)
        .map_err(|e| Error::Setup(format!("reading {}: {e}", directory.join("hosts.toml").display())))?;
    // A map does not keep the order of the file, in which mirrors must be tried.
    let mut mirrors: Vec<(Spanned<String>, Table)> = file.host.into_iter().collect();
    mirrors.sort_by_key(|(url, _)| url.span().start);
    let mirrors = mirrors.into_iter().filter_map(|(url, table)| {
        let can = |what: &str| table.capabilities.as_ref().is_none_or(|all| all.iter().any(|c| c == what));
        let (pull, resolve) = (can("pull"), can("resolve"));
        let mirror = Mirror { server: server(url.into_inner(), table, directory), prefix: None, resolve };
        pull.then_some(mirror)
    });
    Ok(Host {
        mirrors: mirrors.collect(),
        server: server(file.server.unwrap_or_default(), file.own, directory),
    })
}

fn server(url: String, table: Table, directory: &Path) -> Server {
    let many = |values: OneOrMany| match values {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    };
    let client = table.client.and_then(|client| match client {
        Client::Pairs(pairs) => pairs.into_iter().next(),
        Client::Files(files) => files.into_iter().next().map(|file| (file.clone(), file)),
        Client::File(file) => Some((file.clone(), file)),
    });
    let headers = table.header.into_iter();
    Server {
        url,
        plain_http: None,
        override_path: table.override_path,
        tls: Tls {
            ca: table.ca.map(many).unwrap_or_default().iter().map(|file| directory.join(file)).collect(),
            client: client.map(|(certificate, key)| (directory.join(certificate), directory.join(key))),
            skip_verify: table.skip_verify,
        },
        headers: headers
            .flat_map(|(name, values)| many(values).into_iter().map(move |v| (name.clone(), v)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_as_containerd_documents_it() {
        let text = r#"
            server = "https://registry-1.docker.io"
            ca = "/etc/own.pem"
            [host."https://z.mirror.io"]
              capabilities = ["pull"]
              ca = ["one.pem", "/two.pem"]
              client = [["/c.cert", "/c.key"]]
              [host."https://z.mirror.io".header]
                x-one = ["a", "b"]
            [host."http://a.mirror.io/v2/proxy"]
              capabilities = ["pull", "resolve"]
              override_path = true
              skip_verify = true
              dial_timeout = "1s"
            [host."https://push.only"]
              capabilities = ["push"]
        "#;
        let host = parse(text, Path::new("/d")).unwrap();
        assert_eq!(host.server.tls.ca, [Path::new("/etc/own.pem")]);
        let [first, second] = &host.mirrors[..] else { panic!("{:?}", host.mirrors) };
        assert_eq!(first.server.url, "https://z.mirror.io");
        assert!(!first.resolve && second.resolve);
        assert_eq!(first.server.tls.ca, [Path::new("/d/one.pem"), Path::new("/two.pem")]);
        assert_eq!(first.server.tls.client, Some(("/c.cert".into(), "/c.key".into())));
        assert_eq!(first.server.headers.len(), 2);
        assert!(second.server.override_path && second.server.tls.skip_verify);
    }

    #[test]
    fn a_registry_is_found_by_each_of_its_names() {
        let root = std::env::temp_dir().join(format!("larder-certs-d-{}", std::process::id()));
        for (name, server) in [("r.io_5000_", "https://port"), ("_default", "https://default")] {
            std::fs::create_dir_all(root.join(name)).unwrap();
            std::fs::write(root.join(name).join("hosts.toml"), format!("server = {server:?}")).unwrap();
        }
        let url = |registry| load(std::slice::from_ref(&root), registry).unwrap().unwrap().server.url;
        assert_eq!(url("r.io:5000"), "https://port");
        assert_eq!(url("other.io"), "https://default");
        std::fs::remove_dir_all(&root).unwrap();
        assert!(load(&[root], "r.io:5000").unwrap().is_none());
    }
    proptest::proptest! {
        #[test]
        fn any_text_parses_or_errs(text in ".{0,300}", url in ".{0,40}", capability in ".{0,10}") {
            let _ = parse(&text, Path::new("/d"));
            let host = serde_json::json!({ url: { "capabilities": [capability, "pull"], "ca": text } });
            let file = toml::to_string(&serde_json::json!({ "host": host })).unwrap();
            proptest::prop_assert_eq!(parse(&file, Path::new("/d")).unwrap().mirrors.len(), 1);
        }
    }
}
