//! Parses the templates of the chart: the small part of Go's text/template that the chart uses. Anything else
//! panics.

use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub(crate) enum Node {
    Text(String),
    Print(Call),
    /// `$x := …`; with `false`, `$x = …`.
    Assign(String, bool, Call),
    /// Conditions with their bodies. The last one can lack a condition.
    If(Vec<(Option<Call>, Vec<Node>)>),
    /// Variables, the value to iterate over, and the body.
    Range(Vec<String>, Call, Vec<Node>),
}

/// A function with its arguments, or a single argument.
#[derive(Debug)]
pub(crate) struct Call(pub(crate) Vec<Term>);

#[derive(Debug)]
pub(crate) enum Term {
    Text(String),
    Number(u64),
    /// A function name.
    Name(String),
    /// `.a.b` or `$x.a.b`: the variable (`None` for `.`) and the fields.
    Path(Option<String>, Vec<String>),
    Call(Call),
}

/// Definitions by name. The template itself has no name.
#[derive(Debug, Default)]
pub(crate) struct Templates(pub(crate) BTreeMap<String, Vec<Node>>);

impl Templates {
    /// Parses a file. Returns the nodes outside of definitions.
    pub(crate) fn add(&mut self, source: &str) -> Vec<Node> {
        let mut pieces = split(source);
        let (nodes, end) = self.block(&mut pieces);
        assert_eq!(end, None, "an `end` without a beginning");
        nodes
    }

    /// Parses nodes up to `end` or `else`, and returns that word.
    fn block(&mut self, pieces: &mut VecDeque<Piece>) -> (Vec<Node>, Option<String>) {
        let mut nodes = Vec::new();
        while let Some(piece) = pieces.pop_front() {
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, rest) = action.split_once(' ').unwrap_or((action.as_str(), ""));
            match word {
                "end" | "else" => return (nodes, Some(action)),
                "define" => {
                    let (body, _) = self.block(pieces);
                    let name = rest.trim_matches('"').to_owned();
                    assert!(self.0.insert(name, body).is_none(), "{action} twice");
                }
                "if" => nodes.push(self.branches(rest, pieces)),
                "range" => {
                    let (variables, over) = rest.split_once(":=").unwrap_or_else(|| panic!("{action}"));
                    let variables = variables.split(',').map(|name| name.trim().to_owned()).collect();
                    let (body, end) = self.block(pieces);
                    assert_eq!(end.as_deref(), Some("end"), "{action}");
                    nodes.push(Node::Range(variables, call(over), body));
                }
                variable if variable.starts_with('$') && rest.starts_with([':', '=']) => {
                    let declares = rest.starts_with(":=");
                    let value = rest.trim_start_matches(':').trim_start_matches('=');
                    nodes.push(Node::Assign(variable.to_owned(), declares, call(value)));
                }
                _ => nodes.push(Node::Print(call(&action))),
            }
        }
        (nodes, None)
    }

    fn branches(&mut self, condition: &str, pieces: &mut VecDeque<Piece>) -> Node {
        let mut branches = Vec::new();
        let mut condition = Some(call(condition));
        loop {
            let (body, end) = self.block(pieces);
            branches.push((condition.take(), body));
            let end = end.unwrap_or_else(|| panic!("an `if` without an `end`"));
            match end.strip_prefix("else") {
                None => return Node::If(branches),
                Some("") => {}
                Some(more) => {
                    let more = more.trim().strip_prefix("if ").unwrap_or_else(|| panic!("{end}"));
                    condition = Some(call(more));
                }
            }
        }
    }
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Action(String),
}

/// Splits at actions. Drops comments; `{{-` and `-}}` also remove the adjacent white space.
fn split(source: &str) -> VecDeque<Piece> {
    let mut pieces = VecDeque::new();
    let (mut rest, mut trims) = (source, false);
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let text = if trims { text.trim_start() } else { text };
        let Some(after) = after else {
            pieces.push_back(Piece::Text(text.to_owned()));
            return pieces;
        };
        let text = if after.starts_with('-') { text.trim_end() } else { text };
        pieces.push_back(Piece::Text(text.to_owned()));
        let (action, after) = after.split_once("}}").unwrap_or_else(|| panic!("{after}"));
        trims = action.ends_with('-');
        rest = after;
        let action = action.trim_start_matches('-').trim_end_matches('-').trim();
        if !action.starts_with("/*") {
            pieces.push_back(Piece::Action(action.to_owned()));
        }
    }
}

fn call(source: &str) -> Call {
    let mut words: VecDeque<String> = words(source).into();
    let call = terms(&mut words);
    assert!(words.is_empty(), "{source}: {words:?}");
    call
}

fn terms(words: &mut VecDeque<String>) -> Call {
    let mut found = Vec::new();
    while let Some(word) = words.pop_front() {
        found.push(match word.as_str() {
            ")" => break,
            "(" => Term::Call(terms(words)),
            text if text.starts_with('"') => Term::Text(serde_json::from_str(text).unwrap()),
            number if number.starts_with(|c: char| c.is_ascii_digit()) => {
                Term::Number(number.parse().unwrap())
            }
            "." => Term::Path(None, Vec::new()),
            path if path.starts_with(['.', '$']) => {
                let (variable, fields) = path.split_once('.').unwrap_or((path, ""));
                let fields = fields.split('.').filter(|field| !field.is_empty()).map(str::to_owned);
                Term::Path(Some(variable.to_owned()).filter(|name| !name.is_empty()), fields.collect())
            }
            name => {
                assert!(name.chars().all(char::is_alphanumeric), "the name {name} is not supported");
                Term::Name(name.to_owned())
            }
        });
    }
    assert!(!found.is_empty(), "an empty action");
    Call(found)
}

fn words(source: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' => {}
            '(' | ')' => words.push(c.to_string()),
            '"' => {
                let mut text = String::from(c);
                while let Some(c) = chars.next() {
                    text.push(c);
                    if c == '\\' {
                        text.extend(chars.next());
                    } else if c == '"' {
                        break;
                    }
                }
                words.push(text);
            }
            _ => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !" ()\"".contains(*c)) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    words
}
