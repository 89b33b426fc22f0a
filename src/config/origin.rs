//! The sources of configuration keys, for messages and `larder config show`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use toml::Value;
use toml::de::{DeArray, DeTable, DeValue};

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The program.
    Default,
    /// A line of the configuration file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Variable(String),
    /// The flag of this name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// The sources of all keys that are set, by path: `registry.host[0].ca`.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Records the lines of all keys, tables and elements of a file.
    pub(super) fn of_file(text: &str, path: &std::path::Path) -> Self {
        let mut lines = Lines { text, found: BTreeMap::new() };
        // The caller reports syntax errors.
        if let Ok(table) = DeTable::parse(text) {
            lines.table("", table.get_ref());
        }
        let at = |(key, line)| (key, Origin::File { path: path.to_owned(), line });
        Origins(lines.found.into_iter().map(at).collect())
    }

    /// Returns the source of a key.
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Returns the source of a key, or of the innermost table around it that has one.
    pub(super) fn nearest(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            match (self.0.get(key), key.rfind(['.', '['])) {
                (Some(origin), _) => return origin.clone(),
                (None, Some(end)) => key = &key[..end],
                (None, None) => return Origin::Default,
            }
        }
    }

    /// Records that `origin` sets a key, and everything in its value.
    pub(super) fn set(&mut self, key: &str, value: &Value, origin: &Origin) {
        let (in_table, in_array) = (format!("{key}."), format!("{key}["));
        self.0.retain(|other, _| !other.starts_with(&in_table) && !other.starts_with(&in_array));
        self.add(key.to_owned(), value, origin);
    }

    /// Records that `origin` sets a key whose value is neither a table nor a list.
    pub(super) fn set_single(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }

    fn add(&mut self, key: String, value: &Value, origin: &Origin) {
        match value {
            Value::Table(table) => {
                table.iter().for_each(|(name, value)| self.add(format!("{key}.{name}"), value, origin));
            }
            Value::Array(array) => {
                let elements = array.iter().enumerate();
                elements.for_each(|(at, value)| self.add(format!("{key}[{at}]"), value, origin));
            }
            _ => {}
        }
        self.0.insert(key, origin.clone());
    }
}

/// The lines of a file by key.
struct Lines<'a> {
    text: &'a str,
    found: BTreeMap<String, usize>,
}

impl Lines<'_> {
    fn table(&mut self, path: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let separator = if path.is_empty() { "" } else { "." };
            let key = format!("{path}{separator}{}", name.get_ref());
            self.value(key, name.span().start, value.get_ref());
        }
    }

    fn array(&mut self, path: &str, array: &DeArray<'_>) {
        for (at, value) in array.iter().enumerate() {
            self.value(format!("{path}[{at}]"), value.span().start, value.get_ref());
        }
    }

    fn value(&mut self, key: String, start: usize, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.table(&key, table),
            DeValue::Array(array) => self.array(&key, array),
            _ => {}
        }
        self.found.insert(key, line(self.text, start));
    }
}

/// Returns the number of the line of a byte, from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn keys_and_elements_have_lines() {
        let text = "[log]\nlevel = 'info'\n\n[api]\nmetrics_token_sha256 = [\n  'a',\n  'b',\n]\n\
                    [[tenant]]\nname = 'a'\n[[tenant]]\naccess_keys = [{ id = 'k' }]\n";
        let origins = Origins::of_file(text, Path::new("f"));
        for (key, line) in [
            ("log.level", 2),
            ("api.metrics_token_sha256", 5),
            ("api.metrics_token_sha256[1]", 7),
            ("tenant[0]", 9),
            ("tenant[0].name", 10),
            ("tenant[1].access_keys[0].id", 12),
        ] {
            assert_eq!(origins.of(key), Origin::File { path: "f".into(), line }, "{key}");
        }
        assert_eq!(origins.nearest("tenant[1].name").to_string(), "f:11");
        assert_eq!(origins.nearest("state.dir"), Origin::Default);
    }

    #[test]
    fn a_variable_replaces_all_of_a_list() {
        let mut origins =
            Origins::of_file("[[tenant]]\nname = 'a'\n[[tenant]]\nname = 'b'\n", Path::new("f"));
        let value = Value::Array(vec![Value::String("x".to_owned())]);
        origins.set("tenant", &value, &Origin::Variable("V".to_owned()));
        assert_eq!(origins.of("tenant[0]").to_string(), "V");
        assert_eq!(origins.of("tenant[1].name"), Origin::Default);
    }
}
