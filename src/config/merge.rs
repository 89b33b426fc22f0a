//! Merging of configuration sources, key by key, so that an error in one key does not hide others.

use serde::Deserialize;
use toml::{Table, Value};

use super::origin::{Origin, Origins};
use super::{Config, Fault, Located};
use larder_model::similar::similar;

/// The merged sources: always a tree that deserializes as a [`Config`].
#[derive(Default)]
pub(super) struct Sources {
    tree: Table,
    origins: Origins,
    faults: Vec<Located>,
}

enum Step<'a> {
    Key(&'a str),
    Element(usize),
}

impl Sources {
    /// Creates the sources with the file, and the lines of its keys.
    pub(super) fn of_file(file: &Table, lines: Origins) -> Self {
        let mut sources = Sources { origins: lines, ..Sources::default() };
        sources.merge_table(&mut Vec::new(), file);
        sources
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
        let path = [Step::Key(&section), Step::Key(&key)];
        let origin = Origin::Variable(name.to_owned());
        match self.set_key(&path, &value) {
            Ok(()) => self.origins.set(&self::name(&path), &value, &origin),
            Err(fault) => self.add_fault(Located { origin, fault }),
        }
    }

    /// Returns the merged configuration, the sources of its keys, and all faults.
    pub(super) fn finish(mut self) -> (Config, Origins, Vec<Located>) {
        let config = Config::deserialize(Value::Table(self.tree)).unwrap_or_else(|e| {
            let fault = Fault { key: "larder.toml".to_owned(), reason: e.to_string() };
            self.faults.push(Located { origin: Origin::Default, fault });
            Config::default()
        });
        (config, self.origins, self.faults)
    }

    fn merge_table<'a>(&mut self, path: &mut Vec<Step<'a>>, table: &'a Table) {
        for (key, value) in table {
            path.push(Step::Key(key));
            self.merge_value(path, value);
            path.pop();
        }
    }

    fn merge_value<'a>(&mut self, path: &mut Vec<Step<'a>>, value: &'a Value) {
        match value {
            // An empty table counts as a leaf; otherwise, an unknown empty section would not be reported.
            Value::Table(table) if !table.is_empty() => self.merge_table(path, table),
            Value::Array(array) if !array.is_empty() && array.iter().all(Value::is_table) => {
                for (i, value) in array.iter().enumerate() {
                    path.push(Step::Element(i));
                    self.merge_value(path, value);
                    path.pop();
                }
            }
            leaf => {
                if let Err(fault) = self.set_key(path, leaf) {
                    self.add_fault(Located { origin: self.origins.nearest(&fault.key), fault });
                }
            }
        }
    }

    /// Adds a fault, once for all keys of an unknown section.
    fn add_fault(&mut self, fault: Located) {
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    fn set_key(&mut self, path: &[Step<'_>], value: &Value) -> Result<(), Fault> {
        let mut root = Value::Table(self.tree.clone());
        let Some(entry) = entry(&mut root, path) else {
            let reason = "want a value instead of a table, or a table instead of a value".to_owned();
            return Err(Fault { key: name(path), reason });
        };
        *entry = value.clone();
        Config::deserialize(root.clone()).map_err(|e| refused(path, e.message()))?;
        if let Value::Table(tree) = root {
            self.tree = tree;
        }
        Ok(())
    }
}

/// Returns the fault for a key that the parser refused with `message`.
fn refused(path: &[Step<'_>], message: &str) -> Fault {
    // serde quotes the given name first, and then the valid ones.
    let mut names = message.split('`').skip(1).step_by(2);
    let given = names.next().unwrap_or_default();
    let did_you_mean = match similar(given, names, 1).first() {
        Some(name) => format!("; did you mean {name}?"),
        None => String::new(),
    };
    if message.starts_with("unknown field ") {
        let is_unknown = |step: &Step<'_>| matches!(step, Step::Key(key) if *key == given);
        let end = path.iter().position(is_unknown).map_or(path.len(), |at| at + 1);
        return Fault { key: name(&path[..end]), reason: format!("unknown key{did_you_mean}") };
    }
    let reason = match message.strip_prefix("unknown variant ") {
        Some(rest) => format!("unknown value {}{did_you_mean}", rest.replace('`', "\"")),
        None => message.to_owned(),
    };
    Fault { key: name(path), reason }
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
