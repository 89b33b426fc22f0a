//! The configuration in effect, key by key, with comments and sources: `larder config show`.

use std::fmt::Write as _;

use serde::Serialize;
use toml::{Table, Value};

use super::Config;
use super::origin::{Origin, Origins};
use super::reference::{Key, Section, sections};
use larder_model::escape::escape;
use larder_model::size::ByteSize;

/// A configuration, and the sources of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The merged configuration itself.
    pub config: Config,
    /// The sources of its keys.
    pub origins: Origins,
}

/// One table: a section, or an element of a table that can be repeated.
#[derive(Debug)]
struct Effective {
    section: &'static Section,
    /// `true` for the first table of its section.
    is_first: bool,
    /// Empty for a table that can be repeated and that is absent.
    entries: Vec<Entry>,
}

/// A key in effect.
#[derive(Debug)]
struct Entry {
    key: &'static Key,
    /// Path: `registry.host[0].ca`.
    path: String,
    /// Text of the value as in a configuration file; `None` if the key is absent.
    text: Option<String>,
    origin: Origin,
}

/// An entry of the JSON output.
#[derive(Serialize)]
struct JsonEntry<'a> {
    key: &'a str,
    value: Option<serde_json::Value>,
    origin: JsonOrigin<'a>,
    comment: String,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum JsonOrigin<'a> {
    Default,
    File { file: String, line: usize },
    Variable { variable: &'a str },
    Flag { flag: &'a str },
}

impl<'a> From<&'a Origin> for JsonOrigin<'a> {
    fn from(origin: &'a Origin) -> Self {
        match origin {
            Origin::Default => JsonOrigin::Default,
            Origin::File { path, line } => JsonOrigin::File { file: path.display().to_string(), line: *line },
            Origin::Variable(variable) => JsonOrigin::Variable { variable },
            Origin::Flag(flag) => JsonOrigin::Flag { flag },
        }
    }
}

impl Loaded {
    /// Changes the value of a key to that of a flag or a variable.
    pub fn override_key(&mut self, key: &str, origin: Origin, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.origins.set_single(key, origin);
    }

    /// Returns the configuration as a file with the same meaning, in which each key has its comment and its
    /// source.
    ///
    /// # Errors
    /// A value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut out = String::new();
        for table in self.effective()? {
            let section = table.section;
            if table.is_first {
                for line in &section.comment {
                    // Writing to a string cannot fail.
                    let _ = writeln!(out, "# {line}");
                }
            }
            if table.entries.is_empty() {
                section.example.iter().for_each(|line| out.extend([*line, "\n"]));
            } else if section.is_list {
                let _ = writeln!(out, "[[{}]]", section.name);
            } else {
                let _ = writeln!(out, "[{}]", section.name);
            }
            table.entries.iter().for_each(|entry| entry.write_to(&mut out));
            out.push('\n');
        }
        out.truncate(out.trim_end().len());
        Ok(out + "\n")
    }

    /// Returns the configuration as JSON: a list of keys with values, sources and comments.
    ///
    /// # Errors
    /// A value cannot be written.
    pub fn to_json(&self) -> Result<String, toml::ser::Error> {
        use serde::ser::Error as _;
        let tables = self.effective()?;
        let entries: Vec<JsonEntry<'_>> =
            tables.iter().flat_map(|table| &table.entries).map(Entry::to_json).collect();
        let json = serde_json::to_string_pretty(&entries).map_err(toml::ser::Error::custom)?;
        Ok(json + "\n")
    }

    fn effective(&self) -> Result<Vec<Effective>, toml::ser::Error> {
        let all = Table::try_from(&self.config)?;
        let mut tables = Vec::new();
        for section in sections() {
            let of = |(at, (path, table)): (usize, (String, &Table))| {
                let entries = section.keys.iter().map(|key| self.entry(section, key, &path, table)).collect();
                Effective { section, is_first: at == 0, entries }
            };
            let found = section_tables(&all, section);
            if found.is_empty() {
                tables.push(Effective { section, is_first: true, entries: Vec::new() });
            }
            tables.extend(found.into_iter().enumerate().map(of));
        }
        Ok(tables)
    }

    fn entry(&self, section: &Section, key: &'static Key, table_path: &str, table: &Table) -> Entry {
        let path = format!("{table_path}.{}", key.name);
        let origin = self.origins.of(&path);
        let text = match table.get(key.name) {
            None => None,
            Some(_) if origin == Origin::Default && !section.is_list => Some(key.value.to_owned()),
            Some(value) => Some(text(value, key)),
        };
        Entry { key, path, text, origin }
    }
}

/// Returns the tables of a section, with their paths.
fn section_tables<'a>(all: &'a Table, section: &Section) -> Vec<(String, &'a Table)> {
    let (outer, name) = match section.name.split_once('.') {
        Some((outer, name)) => (all.get(outer).and_then(Value::as_table), name),
        None => (Some(all), section.name),
    };
    match outer.and_then(|outer| outer.get(name)) {
        Some(Value::Table(table)) => vec![(section.name.to_owned(), table)],
        Some(Value::Array(array)) => {
            let tables = array.iter().filter_map(Value::as_table).enumerate();
            tables.map(|(at, table)| (format!("{}[{at}]", section.name), table)).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns the text of a value. A size has a unit: its default is written as text, its value is a number.
fn text(value: &Value, key: &Key) -> String {
    match value {
        // Zero means no limit or the default limit. It needs no unit.
        Value::Integer(0) if key.value.starts_with('"') => "\"0\"".to_owned(),
        Value::Integer(bytes) if key.value.starts_with('"') => {
            format!("\"{}\"", ByteSize(u64::try_from(*bytes).unwrap_or_default()).exact())
        }
        value => value.to_string(),
    }
}

impl Entry {
    fn write_to(&self, out: &mut String) {
        for line in &self.key.comment {
            let _ = writeln!(out, "# {line}");
        }
        let name = self.key.name;
        let _ = match &self.text {
            Some(text) => writeln!(out, "{name} = {text}  # {}", escape(&self.origin.to_string())),
            None => writeln!(out, "# {name} = {}  # not set", self.key.value),
        };
    }

    fn to_json(&self) -> JsonEntry<'_> {
        let parsed = self.text.as_ref().and_then(|text| format!("v = {text}").parse::<Table>().ok());
        let value = parsed.and_then(|mut table| serde_json::to_value(table.remove("v")?).ok());
        let comment = self.key.comment.join(" ");
        JsonEntry { key: &self.path, value, origin: JsonOrigin::from(&self.origin), comment }
    }
}

#[cfg(test)]
mod tests;
