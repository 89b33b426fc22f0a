//! The documented keys: the sections of `config/larder.toml`, with comments and defaults. That file is the
//! only place for them.

use std::sync::LazyLock;

const FILE: &str = include_str!("../../config/larder.toml");

/// A section of the file.
#[derive(Debug, Default)]
pub struct Section {
    /// Name: `registry` or `registry.host`.
    pub name: &'static str,
    /// Lines of its comment.
    pub comment: Vec<&'static str>,
    /// `true` for a table that can be repeated.
    pub is_list: bool,
    /// Keys in their order in the file.
    pub keys: Vec<Key>,
    /// Lines of a table that can be repeated: an example.
    pub example: Vec<&'static str>,
}

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// Name in the section.
    pub name: &'static str,
    /// Lines of its comment.
    pub comment: Vec<&'static str>,
    /// Text of its default value, or of an example if it has no default.
    pub value: &'static str,
    /// `true` if it has a default.
    pub has_default: bool,
}

static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| parse(FILE));

/// Returns all sections in the order of the file.
pub fn sections() -> &'static [Section] {
    &SECTIONS
}

/// Returns the default of the key `section.key` as it is written in a configuration file; `None` if it has
/// none.
pub fn default_of(key: &str) -> Option<&'static str> {
    let (section, name) = key.rsplit_once('.')?;
    let section = sections().iter().find(|other| other.name == section)?;
    section.keys.iter().find(|key| key.name == name && key.has_default).map(|key| key.value)
}

/// Returns the names of the variables that set keys: `LARDER_SECTION__KEY`.
pub fn variables() -> impl Iterator<Item = String> {
    let single = sections().iter().filter(|section| !section.is_list);
    let keys = single.flat_map(|section| section.keys.iter().map(|key| (section.name, key.name)));
    keys.map(|(section, key)| format!("LARDER_{}__{}", section.to_uppercase(), key.to_uppercase()))
}

fn parse(text: &'static str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    // Lines of a comment whose key or section follows.
    let mut pending = Vec::new();
    for line in text.lines() {
        let comment = line.strip_prefix('#').map(|rest| rest.strip_prefix(' ').unwrap_or(rest));
        let content = comment.unwrap_or(line);
        if let Some(name) = header(content) {
            let comment = std::mem::take(&mut pending);
            open(&mut sections, name, content.starts_with("[["), comment);
        } else if let Some((name, value)) = key(content) {
            let comments = std::mem::take(&mut pending);
            if let Some(section) = sections.last_mut() {
                add_key(section, name, value, comments, comment.is_none());
            }
        } else if let Some(text) = comment.filter(|text| !text.is_empty()) {
            pending.push(text);
        } else if let Some(section) = sections.last_mut().filter(|section| section.keys.is_empty()) {
            section.comment.append(&mut pending);
        } else {
            pending.clear();
        }
        let example = sections.last_mut().filter(|section| section.is_list && pending.is_empty());
        if let Some(section) = example.filter(|_| !line.is_empty()) {
            section.example.push(line);
        }
    }
    sections
}

fn header(line: &'static str) -> Option<&'static str> {
    let name = line.strip_prefix('[')?.strip_suffix(']')?;
    Some(name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name))
}

fn key(line: &'static str) -> Option<(&'static str, &'static str)> {
    let (name, value) = line.split_once(" = ")?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'0'..=b'9'));
    (is_name && !name.is_empty()).then_some((name, value))
}

/// Opens a section. A second example of a table that can be repeated continues the first.
fn open(sections: &mut Vec<Section>, name: &'static str, is_list: bool, comment: Vec<&'static str>) {
    if sections.last().is_none_or(|section| section.name != name) {
        sections.push(Section { name, comment, is_list, ..Section::default() });
    }
}

fn add_key(
    section: &mut Section,
    name: &'static str,
    value: &'static str,
    mut comment: Vec<&'static str>,
    has_default: bool,
) {
    // In a table that can be repeated, the comment follows the value.
    let (value, after) = match value.split_once(" # ") {
        Some((value, after)) => (value.trim_end(), Some(after)),
        None => (value, None),
    };
    comment.extend(after);
    match section.keys.iter_mut().find(|key| key.name == name) {
        Some(key) => key.comment.append(&mut comment),
        None => section.keys.push(Key { name, comment, value, has_default }),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use toml::{Table, Value};

    use super::*;
    use crate::config::Config;

    /// Returns the names of the keys that the program reads in a section.
    fn known(section: &Section) -> Vec<String> {
        let header = match section.is_list {
            true => format!("[[{}]]", section.name),
            false => format!("[{}]", section.name),
        };
        expected(&format!("{header}\nzzz = 1\n"))
    }

    /// Returns the names in the error of the parser for an unknown key.
    fn expected(text: &str) -> Vec<String> {
        let table: Table = text.parse().unwrap();
        let error = Config::deserialize(Value::Table(table)).unwrap_err();
        error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn each_key_is_documented() {
        let mut names: Vec<&str> = Vec::new();
        for section in sections() {
            assert!(!names.contains(&section.name), "{}", section.name);
            names.push(section.name);
            let mut known = known(section);
            known.retain(|key| format!("{}.{key}", section.name) != "registry.host");
            let mut documented: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
            known.sort_unstable();
            documented.sort_unstable();
            assert_eq!(documented, known, "{}", section.name);
            for key in &section.keys {
                assert!(!key.comment.is_empty(), "{}.{} has no comment", section.name, key.name);
            }
        }
        for section in expected("zzz = 1") {
            assert!(names.contains(&&*section), "{section}");
        }
    }

    #[test]
    fn lists_have_a_comment_and_an_example() {
        for section in sections().iter().filter(|section| section.is_list) {
            assert!(!section.comment.is_empty(), "{}", section.name);
            let text: Vec<&str> = section.example.iter().filter_map(|line| line.strip_prefix('#')).collect();
            assert_eq!(text.len(), section.example.len(), "{}: an example is a comment", section.name);
            assert!(text[0].trim().starts_with("[["), "{text:?}");
        }
    }

    #[test]
    fn defaults_are_found() {
        assert_eq!(default_of("build.concurrency"), Some("4"));
        assert_eq!(default_of("api.tcp"), None);
        assert_eq!(default_of("registry.host.name"), None);
        assert!(variables().any(|name| name == "LARDER_REGISTRY__RETRIES"));
    }
}
