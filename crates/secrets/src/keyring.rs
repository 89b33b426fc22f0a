//! The rules of the kubelet's keyring (kubernetes pkg/credentialprovider/keyring.go) for matching entries
//! with an image.

use larder_model::credential::Credential;
use larder_model::pull_secret::PullSecretName;

/// The host names of Docker Hub.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The entries of several secrets. All entries of one secret are tried before the next secret.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    secrets: Vec<Entries>,
    absent: Vec<PullSecretName>,
}

impl Keyring {
    /// Adds the entries of one more secret.
    pub fn add(&mut self, entries: Entries) {
        self.secrets.push(entries);
    }

    /// Records the name of a secret that gave no credential.
    pub fn add_absent(&mut self, name: PullSecretName) {
        self.absent.push(name);
    }

    /// Returns the secrets that gave no credential: missing, unreadable or malformed ones, which are not
    /// distinguished.
    pub fn absent(&self) -> &[PullSecretName] {
        &self.absent
    }

    /// Returns all credentials for `registry/repository`, in the order in which to try them.
    pub fn lookup(&self, registry: &str, repository: &str) -> Vec<Credential> {
        let secrets = self.secrets.iter();
        secrets.flat_map(|entries| entries.lookup(registry, repository)).collect()
    }
}

/// The entries of one secret or docker config, in reverse lexicographic order of their keys.
#[derive(Clone, Debug, Default)]
pub struct Entries(Vec<(Pattern, Credential)>);

impl Entries {
    /// Sorts `entries`. Entries with equal keys are all kept, in their order.
    pub fn new(entries: impl IntoIterator<Item = (String, Credential)>) -> Self {
        let entries = entries.into_iter();
        let mut entries: Vec<_> = entries.map(|(key, credential)| (Pattern::new(&key), credential)).collect();
        entries.sort_by(|(a, _), (b, _)| b.key.cmp(&a.key));
        Entries(entries)
    }

    /// Returns all credentials whose key matches.
    pub fn lookup(&self, registry: &str, repository: &str) -> Vec<Credential> {
        let entries = self.0.iter().filter(|(pattern, _)| pattern.is_for(registry, repository));
        entries.map(|(_, credential)| credential.clone()).collect()
    }
}

/// Reports whether an entry with this key matches `registry/repository`, by the rules of [`Entries::lookup`].
pub fn is_for(key: &str, registry: &str, repository: &str) -> bool {
    Pattern::new(key).is_for(registry, repository)
}

/// Reports whether `host` is a host name of Docker Hub.
pub fn is_docker_hub(host: &str) -> bool {
    DOCKER_HUB.contains(&host)
}

/// A key of `auths`: `[scheme://]host[:port][/path]`, where each label of the host can be a glob pattern.
#[derive(Clone, Debug)]
struct Pattern {
    key: String,
}

impl Pattern {
    /// Removes the scheme and the API version that `docker login` writes (keyring.go, `Add`).
    fn new(key: &str) -> Self {
        let key = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
        let key = key.split(['?', '#']).next().unwrap_or_default();
        let (host, path) = key.split_at(key.find('/').unwrap_or(key.len()));
        let path = match path.get(..4) {
            Some("/v1/" | "/v2/") => &path[3..],
            _ => path,
        };
        let path = if path == "/" { "" } else { path };
        Pattern { key: format!("{host}{path}") }
    }

    /// Reports whether the pattern matches the registry under one of its names.
    ///
    /// Docker Hub is looked up under each of its names. The kubelet does so for `index.docker.io` only if
    /// nothing else matched, so it ignores a key `registry-1.docker.io`.
    fn is_for(&self, registry: &str, repository: &str) -> bool {
        let own = [registry];
        let names: &[&str] = if is_docker_hub(registry) { &DOCKER_HUB } else { &own };
        names.iter().any(|name| self.matches(name, repository))
    }

    /// Reports whether the pattern matches: glob patterns for the same number of host labels, the same port,
    /// and the path as a plain string prefix. So `r.io/foo` also matches `r.io/foobar` (keyring.go,
    /// `URLsMatch`).
    fn matches(&self, registry: &str, repository: &str) -> bool {
        let (host, path) = self.key.split_at(self.key.find('/').unwrap_or(self.key.len()));
        let ((host, port), (other_host, other_port)) = (split_port(host), split_port(registry));
        let labels = || host.split('.').zip(other_host.split('.'));
        port == other_port
            && host.split('.').count() == other_host.split('.').count()
            && labels().all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
            && format!("/{repository}").starts_with(path)
    }
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

/// Reports whether `text` matches a pattern in which `*` stands for any sequence of characters.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p + 1, t));
                p += 1;
            }
            (Some(byte), _) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            (_, Some((after, at))) => {
                star = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::credential::Secret;

    fn basic(username: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: Secret::new("hidden") }
    }

    fn entries(keys: &[&str]) -> Entries {
        Entries::new(keys.iter().map(|key| ((*key).to_owned(), basic(key))))
    }

    fn names(found: Vec<Credential>) -> Vec<String> {
        let name = |credential| match credential {
            Credential::Basic { username, .. } => username,
            Credential::IdentityToken(_) => panic!("no token was added"),
        };
        found.into_iter().map(name).collect()
    }

    #[test]
    fn patterns_match_as_in_the_kubelet() {
        for (key, registry, repository, want) in [
            ("r.io", "r.io", "a/b", true),
            ("https://r.io/v1/", "r.io", "a/b", true),
            ("http://r.io/v2/", "r.io", "a/b", true),
            ("r.io/", "r.io", "a/b", true),
            ("r.io/v2", "r.io", "a/b", false),
            ("r.io/v1/a", "r.io", "a/b", true),
            ("r.io/foo", "r.io", "foobar/x", true),
            ("r.io/foo/", "r.io", "foobar/x", false),
            ("r.io:443", "r.io", "a", false),
            ("r.io", "r.io:443", "a", false),
            ("r.io:5000", "r.io:5000", "a", true),
            ("*.io", "r.io", "a", true),
            ("*.io", "a.r.io", "a", false),
            ("*.*.io", "a.r.io", "a", true),
            ("r*x.io", "reg-x.io", "a", true),
            ("*:5000", "localhost:5000", "a", true),
            ("[::1]:5000", "[::1]:5000", "a", true),
            ("", "r.io", "a", false),
            ("https://index.docker.io/v1/", "docker.io", "library/nginx", true),
            ("docker.io", "docker.io", "library/nginx", true),
            ("registry-1.docker.io", "docker.io", "library/nginx", true),
            ("docker.io/team", "index.docker.io", "library/nginx", false),
            ("docker.io", "quay.io", "library/nginx", false),
        ] {
            let found = entries(&[key]).lookup(registry, repository);
            assert_eq!(found.len() == 1, want, "{key} {registry}/{repository}");
        }
    }

    #[test]
    fn longer_keys_first_and_secrets_in_order() {
        let mut keyring = Keyring::default();
        keyring.add(entries(&["r.io", "r.io/team", "*.io", "other.io"]));
        keyring.add(entries(&["https://r.io", "r.io/team/app"]));
        assert_eq!(
            names(keyring.lookup("r.io", "team/app")),
            ["r.io/team", "r.io", "*.io", "r.io/team/app", "https://r.io"]
        );
    }

    #[test]
    fn equal_keys_are_both_kept() {
        let found = entries(&["r.io", "https://r.io", "http://r.io/v1/"]).lookup("r.io", "a");
        assert_eq!(names(found), ["r.io", "https://r.io", "http://r.io/v1/"]);
    }

    #[test]
    fn debug_shows_no_password() {
        let mut keyring = Keyring::default();
        keyring.add(entries(&["r.io"]));
        assert!(!format!("{keyring:?}").contains("hidden"));
    }
}
