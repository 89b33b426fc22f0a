//! Merging of configuration sources, key by key, so that an error in one key does not hide others.

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, Fault};

/// The merged sources: always a tree that deserializes as a [`Config`].
#[derive(Default)]
pub(super) struct Sources {
    tree: Table,
    faults: Vec<Fault>,
}

enum Step<'a> {
    Key(&'a str),
    Element(usize),
}

impl Sources {
    /// Merges every key of `source`, which overrides earlier sources.
    pub(super) fn merge(&mut self, source: &Value) {
        self.descend(&mut Vec::new(), source);
    }

    /// Merges a variable `LARDER_SECTION__KEY`; ignores any other name.
    pub(super) fn merge_variable(&mut self, name: &str, value: &str) {
        let Some((section, key)) = name.strip_prefix("LARDER_").and_then(|n| n.split_once("__")) else {
            return;
        };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let as_toml = format!("v = {value}").parse::<Table>().ok();
        let value = as_toml
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("v"))
            .unwrap_or_else(|| Value::String(value.to_owned()));
        self.set_key(&[Step::Key(&section), Step::Key(&key)], &value);
    }

    /// Returns the merged configuration and all faults.
    pub(super) fn finish(mut self) -> (Config, Vec<Fault>) {
        let config = Config::deserialize(Value::Table(self.tree)).unwrap_or_else(|e| {
            self.faults.push(Fault { key: "larder.toml".to_owned(), reason: e.to_string() });
            Config::default()
        });
        (config, self.faults)
    }

    fn descend<'a>(&mut self, path: &mut Vec<Step<'a>>, value: &'a Value) {
        match value {
            // An empty table counts as a leaf; otherwise, an unknown empty section would not be reported.
            Value::Table(table) if !table.is_empty() => {
                for (key, value) in table {
                    path.push(Step::Key(key));
                    self.descend(path, value);
                    path.pop();
                }
            }
            Value::Array(array) if !array.is_empty() && array.iter().all(Value::is_table) => {
                for (i, value) in array.iter().enumerate() {
                    path.push(Step::Element(i));
                    self.descend(path, value);
                    path.pop();
                }
            }
            leaf => self.set_key(path, leaf),
        }
    }

    fn set_key(&mut self, path: &[Step<'_>], value: &Value) {
        let mut root = Value::Table(self.tree.clone());
        let reason = match entry(&mut root, path) {
            Some(entry) => {
                *entry = value.clone();
                Config::deserialize(root.clone()).err().map(|e| e.message().to_owned())
            }
            None => Some("want a value instead of a table, or a table instead of a value".to_owned()),
        };
        match (reason, root) {
            (None, Value::Table(tree)) => self.tree = tree,
            (reason, _) => self.faults.push(Fault { key: name(path), reason: reason.unwrap_or_default() }),
        }
    }
}

/// Returns the entry of a key. Creates missing tables and array elements on the path.
fn entry<'a>(root: &'a mut Value, path: &[Step<'_>]) -> Option<&'a mut Value> {
    let mut at = root;
    for (i, step) in path.iter().enumerate() {
        let absent = || match path.get(i + 1) {
            Some(Step::Element(_)) => Value::Array(Vec::new()),
            _ => Value::Table(Table::new()),
        };
        at = match step {
            Step::Key(key) => at.as_table_mut()?.entry(*key).or_insert_with(absent),
            Step::Element(element) => {
                let array = at.as_array_mut()?;
                while array.len() <= *element {
                    array.push(absent());
                }
                &mut array[*element]
            }
        };
    }
    Some(at)
}

/// Formats a path as `registry.host[0].ca`.
fn name(path: &[Step<'_>]) -> String {
    let mut name = String::new();
    for step in path {
        match step {
            Step::Key(key) if name.is_empty() => name.push_str(key),
            Step::Key(key) => name.extend([".", *key]),
            Step::Element(i) => name.push_str(&format!("[{i}]")),
        }
    }
    name
}
