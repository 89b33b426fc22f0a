//! Renders the chart as `helm template` does, with the functions that the chart uses. Anything else panics.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::parse::{Call, Node, Templates, Term};
use super::value::Value;

/// Returns the objects of the chart, or the message of `fail`.
pub(crate) fn render(chart: &Path, namespace: &str, values: &Json) -> Result<Vec<Json>, String> {
    let read = |path: &str| fs::read_to_string(chart.join(path)).unwrap();
    let about: Json = serde_saphyr::from_str(&read("Chart.yaml")).unwrap();
    let mut all: Json = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    merge(&mut all, values);
    let root = Value::from(&json!({
        "Values": all,
        "Chart": {"AppVersion": about["appVersion"]},
        "Release": {"Namespace": namespace},
        "Files": {},
    }));
    let mut files: Vec<_> =
        fs::read_dir(chart.join("templates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut templates = Templates::default();
    let parsed: Vec<_> =
        files.iter().map(|file| (file, templates.add(&fs::read_to_string(file).unwrap()))).collect();
    let engine = Engine { chart, templates: &templates };
    let mut objects = Vec::new();
    for (file, nodes) in parsed {
        let text = engine.run(&nodes, &root)?;
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in text.split("\n---\n").filter(|document| !document.trim().is_empty()) {
            let document = document.trim().trim_start_matches("---\n");
            let object = serde_saphyr::from_str(document);
            objects.push(object.unwrap_or_else(|error| panic!("{}: {error}\n{document}", file.display())));
        }
    }
    Ok(objects)
}

/// Merges the given values over those of the chart.
fn merge(all: &mut Json, given: &Json) {
    match (all, given) {
        (Json::Object(all), Json::Object(given)) => {
            for (key, value) in given {
                merge(all.entry(key.clone()).or_insert(Json::Null), value);
            }
        }
        (all, given) => *all = given.clone(),
    }
}

struct Engine<'a> {
    chart: &'a Path,
    templates: &'a Templates,
}

type Scopes = Vec<BTreeMap<String, Value>>;

impl Engine<'_> {
    fn run(&self, nodes: &[Node], dot: &Value) -> Result<String, String> {
        let mut scopes = vec![BTreeMap::from([("$".to_owned(), dot.clone())])];
        let mut out = String::new();
        self.nodes(nodes, dot, &mut scopes, &mut out)?;
        Ok(out)
    }

    fn nodes(
        &self,
        nodes: &[Node],
        dot: &Value,
        scopes: &mut Scopes,
        out: &mut String,
    ) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(call) => out.push_str(&self.call(call, dot, scopes)?.print()),
                Node::Assign(name, declares, call) => {
                    let value = self.call(call, dot, scopes)?;
                    let scope = if *declares {
                        scopes.last_mut()
                    } else {
                        scopes.iter_mut().rev().find(|scope| scope.contains_key(name))
                    };
                    scope.unwrap_or_else(|| panic!("{name} is not declared")).insert(name.clone(), value);
                }
                Node::If(branches) => {
                    for (condition, body) in branches {
                        let holds = match condition {
                            Some(condition) => self.call(condition, dot, scopes)?.is_true(),
                            None => true,
                        };
                        if holds {
                            scopes.push(BTreeMap::new());
                            self.nodes(body, dot, scopes, out)?;
                            scopes.pop();
                            break;
                        }
                    }
                }
                Node::Range(names, over, body) => {
                    for pair in pairs(&self.call(over, dot, scopes)?) {
                        let pair = [pair.0, pair.1];
                        let values = pair[2 - names.len()..].iter().cloned();
                        let item = pair[1].clone();
                        scopes.push(names.iter().cloned().zip(values).collect());
                        self.nodes(body, &item, scopes, out)?;
                        scopes.pop();
                    }
                }
            }
        }
        Ok(())
    }

    fn call(&self, call: &Call, dot: &Value, scopes: &mut Scopes) -> Result<Value, String> {
        let (first, rest) = call.0.split_first().unwrap();
        let mut arguments = Vec::new();
        for term in rest {
            arguments.push(self.term(term, dot, scopes)?);
        }
        match first {
            Term::Name(name) => self.function(name, &arguments),
            Term::Path(_, fields) if fields.ends_with(&["Files".to_owned(), "Get".to_owned()]) => {
                let path = self.chart.join(arguments[0].as_text());
                Ok(Value::text(
                    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
                ))
            }
            term => {
                assert!(arguments.is_empty(), "{call:?}");
                self.term(term, dot, scopes)
            }
        }
    }

    fn term(&self, term: &Term, dot: &Value, scopes: &mut Scopes) -> Result<Value, String> {
        Ok(match term {
            Term::Text(text) => Value::text(text.clone()),
            Term::Number(number) => Value::Scalar((*number).into()),
            Term::Call(call) => self.call(call, dot, scopes)?,
            Term::Name(name) => self.function(name, &[])?,
            Term::Path(variable, fields) => {
                let start = match variable {
                    None => dot.clone(),
                    Some(name) => {
                        let found = scopes.iter().rev().find_map(|scope| scope.get(name));
                        found.unwrap_or_else(|| panic!("{name} is not declared")).clone()
                    }
                };
                fields.iter().fold(start, |value, field| value.field(field))
            }
        })
    }

    fn function(&self, name: &str, arguments: &[Value]) -> Result<Value, String> {
        let text = |at: usize| arguments[at].as_text();
        Ok(match (name, arguments) {
            ("list", items) => Value::list(items.to_vec()),
            ("dict", pairs) => {
                let pairs = pairs.chunks(2).map(|pair| (pair[0].as_text(), pair[1].json()));
                Value::from(&Json::Object(pairs.collect()))
            }
            ("append", [list, item]) => {
                let mut items = list.items();
                items.push(item.clone());
                Value::list(items)
            }
            ("rest", [list]) => Value::list(list.items()[1..].to_vec()),
            ("index", [Value::List(items), Value::Scalar(at)]) => {
                items.borrow()[usize::try_from(at.as_u64().unwrap()).unwrap()].clone()
            }
            ("index", [map, key]) => map.field(&key.as_text()),
            ("set", [Value::Map(fields), _, value]) => {
                fields.borrow_mut().insert(text(1), value.clone());
                arguments[0].clone()
            }
            ("unset", [Value::Map(fields), _]) => {
                fields.borrow_mut().remove(&text(1));
                arguments[0].clone()
            }
            ("default", [other, value]) => if value.is_true() { value } else { other }.clone(),
            ("eq", [one, other]) => Value::flag(one.json() == other.json()),
            ("not", [value]) => Value::flag(!value.is_true()),
            ("and", [one, other]) => if one.is_true() { other } else { one }.clone(),
            ("printf", [_, value]) => Value::text(text(0).replacen("%s", &value.as_text(), 1)),
            ("replace", [_, _, _]) => Value::text(text(2).replace(&text(0), &text(1))),
            ("splitList", [_, _]) => Value::list(text(1).split(&text(0)).map(Value::text).collect()),
            ("fromYaml", [_]) => Value::from(&serde_saphyr::from_str::<Json>(&text(0)).unwrap()),
            // JSON is valid YAML.
            ("toYaml" | "toJson", [value]) => Value::text(value.json().to_string()),
            ("sha256sum", [_]) => {
                let hash = Sha256::digest(text(0));
                Value::text(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            ("include", [_, dot]) => {
                let name = text(0);
                let body = self.templates.0.get(&name).unwrap_or_else(|| panic!("no template {name}"));
                Value::text(self.run(body, dot)?)
            }
            ("fail", [_]) => return Err(text(0)),
            (name, arguments) => panic!("{name} with {} arguments is not supported", arguments.len()),
        })
    }
}

/// Returns the pairs that `range` iterates over: indexes or keys, with their values.
fn pairs(value: &Value) -> Vec<(Value, Value)> {
    match value {
        Value::Map(fields) => {
            fields.borrow().iter().map(|(key, value)| (Value::text(key.clone()), value.clone())).collect()
        }
        Value::List(items) => items
            .borrow()
            .iter()
            .enumerate()
            .map(|(at, item)| (Value::Scalar(at.into()), item.clone()))
            .collect(),
        Value::Scalar(Json::Null) => Vec::new(),
        other => panic!("cannot range over {other:?}"),
    }
}
