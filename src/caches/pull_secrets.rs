//! Pull secrets of a tenant on this host: permissions, lookup, and messages about unusable ones.
//!
//! A tenant must not learn which secrets exist. So a malformed, forbidden, unknown or unreadable secret gives
//! no credential. If an image fails for lack of a credential, its message names all such secrets in the same
//! words.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use crate::config::secrets::Secrets;
use larder_model::class::Class;
use larder_model::escape::escape_to;
use larder_model::event::{Failure, Outcome};
use larder_model::pull_secret::{PullSecretName, no_credential_in};
use larder_secrets::directory::read_limited;
use larder_secrets::pull_secret_data::{parse_dockercfg, parse_dockerconfigjson};

/// Maximum length of a tenant's text in a message, characters.
const MAX_TEXT_CHARS: usize = 300;

/// Splits the pull secrets of a tenant into usable names and unusable texts, both in the order given.
/// `patterns` are `*`, `namespace:*` and `namespace:name` ([`crate::config::tenant::Tenant::pull_secrets`]).
pub fn split(patterns: &[String], named: &[String]) -> (Vec<PullSecretName>, Vec<String>) {
    let mut usable = Vec::new();
    let mut unusable = Vec::new();
    for text in named {
        match text.parse::<PullSecretName>() {
            Ok(name) if patterns.iter().any(|pattern| allows(pattern, &name)) => usable.push(name),
            _ => unusable.push(text.clone()),
        }
    }
    (usable, unusable)
}

fn allows(pattern: &str, name: &PullSecretName) -> bool {
    match pattern.split_once(':') {
        None => pattern == "*",
        Some((namespace, "*")) => namespace == name.namespace(),
        Some((namespace, one)) => namespace == name.namespace() && one == name.name(),
    }
}

/// The format of a secret's bytes, which determines its file name in a directory of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A Docker config with its `{"auths": {…}}` object.
    DockerConfigJson,
    /// The map of registries without the `auths` object.
    DockerCfg,
}

impl Form {
    /// Returns the file name of this format.
    pub fn file_name(self) -> &'static str {
        match self {
            Form::DockerConfigJson => ".dockerconfigjson",
            Form::DockerCfg => ".dockercfg",
        }
    }
}

/// The well-formed bytes of a pull secret, which are never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// Format of the bytes.
    pub form: Form,
    bytes: Vec<u8>,
}

impl Content {
    /// Parses bytes of this format. `None` if they are malformed.
    pub fn parse(form: Form, bytes: Vec<u8>) -> Option<Self> {
        well_formed(form, bytes)
    }

    /// Returns the bytes, for the one place that passes them to a builder.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("form", &self.form).finish_non_exhaustive()
    }
}

/// The locations of a host's secrets.
#[derive(Clone, Debug)]
pub struct HostSecrets {
    credentials: Option<PathBuf>,
    dir: PathBuf,
}

impl HostSecrets {
    /// Creates the lookup: first the directory that systemd names in `$CREDENTIALS_DIRECTORY`
    /// (systemd.exec(5), Credentials), then the directory of the configuration.
    pub fn new(credentials: Option<PathBuf>, section: &Secrets) -> Self {
        HostSecrets { credentials, dir: section.dir.clone() }
    }

    /// Reads a secret from the first location that has it. `None` if there is none or it is malformed.
    pub fn find(&self, name: &PullSecretName) -> Option<Content> {
        if let Some(credentials) = &self.credentials {
            let file = format!("pull-secret.{}.{}", name.namespace(), name.name());
            if let Ok(bytes) = read_limited(&credentials.join(file)) {
                return well_formed(form_of(&bytes), bytes);
            }
        }
        let dir = self.dir.join(name.namespace()).join(name.name());
        let forms = [Form::DockerConfigJson, Form::DockerCfg];
        forms
            .into_iter()
            .find_map(|form| Some((form, read_limited(&dir.join(form.file_name())).ok()?)))
            .and_then(|(form, bytes)| well_formed(form, bytes))
    }
}

/// Detects the format of a credential, whose file name does not show it. A `.dockercfg` is a map of
/// registries, and no registry is named `auths`.
fn form_of(bytes: &[u8]) -> Form {
    let map: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_slice(bytes);
    if map.is_ok_and(|map| !map.contains_key("auths")) { Form::DockerCfg } else { Form::DockerConfigJson }
}

fn well_formed(form: Form, bytes: Vec<u8>) -> Option<Content> {
    let parsed = match form {
        Form::DockerConfigJson => parse_dockerconfigjson(&bytes),
        Form::DockerCfg => parse_dockercfg(&bytes),
    };
    parsed.is_ok().then_some(Content { form, bytes })
}

/// The secrets of an order that gave no credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unusable(BTreeSet<String>);

impl Unusable {
    /// Adds a secret as it was given. The texts are sorted, because their order would reveal why each one
    /// failed.
    pub fn add(&mut self, given: &str) {
        self.0.insert(escape_to(given, MAX_TEXT_CHARS));
    }

    /// Adds the secrets to the failures that a credential might have prevented, as a builder does for missing
    /// secrets. These are the classes denied and not found, because registries hide private repositories.
    pub fn name_in(&self, failures: &mut [Failure]) {
        for failure in failures {
            self.name_in_message(failure.class, &mut failure.message);
        }
    }

    /// Adds the secrets to the failures of an outcome, like [`name_in`](Unusable::name_in).
    pub fn name_in_outcome(&self, outcome: &mut Outcome) {
        if let Some(class) = outcome.class {
            self.name_in_message(class, &mut outcome.message);
        }
        self.name_in(&mut outcome.failures);
    }

    fn name_in_message(&self, class: Class, message: &mut String) {
        if !self.0.is_empty() && matches!(class, Class::Denied | Class::NotFound) {
            let names: Vec<&String> = self.0.iter().collect();
            message.push_str(&no_credential_in(&names));
        }
    }
}

impl<T: AsRef<str>> FromIterator<T> for Unusable {
    fn from_iter<I: IntoIterator<Item = T>>(given: I) -> Self {
        let mut unusable = Unusable::default();
        given.into_iter().for_each(|given| unusable.add(given.as_ref()));
        unusable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn only_allowed_secrets_are_usable() {
        let named = texts(&["b:two", "a:one", "a:two", "nonsense", "a:one.more", "*", "a:*", ""]);
        for (patterns, usable) in [
            (&[][..], &[][..]),
            (&["*"], &["b:two", "a:one", "a:two", "a:one.more"]),
            (&["a:*"], &["a:one", "a:two", "a:one.more"]),
            (&["a:one", "b:two"], &["b:two", "a:one"]),
            (&["a", "*:two", "a:", ":*"], &[]),
        ] {
            let (good, bad) = split(&texts(patterns), &named);
            let good: Vec<String> = good.iter().map(ToString::to_string).collect();
            assert_eq!(good, usable, "{patterns:?}");
            let rest: Vec<&String> = named.iter().filter(|text| !good.contains(text)).collect();
            assert_eq!(bad.iter().collect::<Vec<_>>(), rest, "{patterns:?}");
        }
    }

    #[test]
    fn all_unusable_secrets_get_the_same_message() {
        let failure = |class, message: &str| Failure {
            class,
            images: Vec::new(),
            layer: None,
            message: message.to_owned(),
            explanation: None,
        };
        let unusable: Unusable = ["team:z", "a\x1b[2J", "team:z"].into_iter().collect();
        let mut failures =
            [failure(Class::Denied, "401"), failure(Class::NotFound, "404"), failure(Class::Corrupt, "sum")];
        unusable.name_in(&mut failures);
        let words = " (no credential was found in the pull secret a\\u{1b}[2J, team:z)";
        let messages: Vec<String> = failures.iter().map(|failure| failure.message.clone()).collect();
        assert_eq!(messages, [format!("401{words}"), format!("404{words}"), "sum".to_owned()]);
        Unusable::default().name_in(&mut failures[2..]);
        assert_eq!(failures[2].message, "sum");
        let long: Unusable = ["x".repeat(9000)].into_iter().collect();
        long.name_in(&mut failures[..1]);
        assert!(failures[0].message.len() < 500);
    }

    #[test]
    fn credentials_come_before_the_directory() {
        use std::fs;
        let root = tempfile::tempdir().unwrap();
        let (credentials, dir) = (root.path().join("credentials"), root.path().join("secrets"));
        fs::create_dir(&credentials).unwrap();
        let json = r#"{"auths":{"r.io":{"username":"u","password":"hidden"}}}"#;
        let cfg = r#"{"r.io":{"username":"u","password":"hidden"}}"#;
        let secret = |name: &str, file: &str, content: &str| {
            fs::create_dir_all(dir.join("team").join(name)).unwrap();
            fs::write(dir.join("team").join(name).join(file), content).unwrap();
        };
        secret("both", ".dockerconfigjson", "[");
        fs::write(credentials.join("pull-secret.team.both"), cfg).unwrap();
        secret("broken", ".dockerconfigjson", json);
        fs::write(credentials.join("pull-secret.team.broken"), "[").unwrap();
        secret("json", ".dockerconfigjson", json);
        secret("cfg", ".dockercfg", cfg);
        secret("bad", ".dockerconfigjson", "{\"auths\":1}");
        secret("bad", ".dockercfg", cfg);

        let secrets = HostSecrets::new(Some(credentials), &Secrets { dir });
        let form =
            |name: &str| secrets.find(&format!("team:{name}").parse().unwrap()).map(|found| found.form);
        assert_eq!(form("both"), Some(Form::DockerCfg));
        assert_eq!(form("json"), Some(Form::DockerConfigJson));
        assert_eq!(form("cfg"), Some(Form::DockerCfg));
        for none in ["broken", "bad", "missing"] {
            assert_eq!(form(none), None, "{none}");
        }
        let found = secrets.find(&"team:json".parse().unwrap()).unwrap();
        assert_eq!(found.expose(), json.as_bytes());
        assert!(!format!("{found:?}").contains("hidden"));
    }
}
