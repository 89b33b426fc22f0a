//! containerd's filters: `name==a,labels."b.c"~=d` (package filters). All parts of a filter must match.

use regex::Regex;

use super::{Error, Info, Kind};

/// Maximum size of all filters of a request, bytes.
const MAX: usize = 64 << 10;
/// Maximum memory of a compiled expression, bytes.
const MAX_COMPILED: usize = 1 << 20;

/// The filters of a request. A snapshot must match one of them.
#[derive(Debug)]
pub(super) struct Filters(Vec<Vec<Part>>);

#[derive(Debug)]
struct Part {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
    Matches(Regex),
}

impl Filters {
    /// Parses the filters of a request. An empty list matches everything.
    pub(super) fn parse(filters: &[String]) -> Result<Self, Error> {
        if filters.iter().map(String::len).sum::<usize>() > MAX {
            return Err(Error::Invalid(format!("the filters have more than {MAX} bytes")));
        }
        let parse = |text: &String| {
            Reader { rest: text }.filter().map_err(|why| Error::Invalid(format!("filter {text:?}: {why}")))
        };
        Ok(Filters(filters.iter().map(parse).collect::<Result<_, _>>()?))
    }

    /// Reports whether the snapshot matches one of the filters.
    pub(super) fn pass(&self, info: &Info) -> bool {
        self.0.is_empty() || self.0.iter().any(|parts| parts.iter().all(|part| part.is_met(info)))
    }
}

impl Part {
    fn is_met(&self, info: &Info) -> bool {
        let value = self.value(info);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value == Some(want),
            // A missing value counts as empty here.
            Test::Unequal(want) => value.unwrap_or_default() != want,
            Test::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
        }
    }

    fn value<'a>(&self, info: &'a Info) -> Option<&'a str> {
        match self.field.as_slice() {
            [field] if field == "name" => Some(&info.name),
            [field] if field == "parent" => Some(&info.parent),
            [field] if field == "kind" => Some(match info.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            [field, key @ ..] if field == "labels" => info.labels.get(&key.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn filter(mut self) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        while !self.rest.is_empty() {
            parts.push(self.part()?);
            if !self.rest.is_empty() && !self.take(",") {
                return Err(format!("expected a comma before {:?}", self.rest));
            }
        }
        Ok(parts)
    }

    fn part(&mut self) -> Result<Part, String> {
        let mut field = vec![self.word(is_field)?];
        while self.take(".") {
            field.push(self.word(is_field)?);
        }
        let test = if self.take("==") {
            Test::Equal(self.word(is_value)?)
        } else if self.take("!=") {
            Test::Unequal(self.word(is_value)?)
        } else if self.take("~=") {
            let word = self.word(is_value)?;
            let compiled = regex::RegexBuilder::new(&word).size_limit(MAX_COMPILED).build();
            Test::Matches(compiled.map_err(|e| e.to_string())?)
        } else {
            Test::Present
        };
        Ok(Part { field, test })
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Parses a quoted string, or the longest prefix that is a word.
    fn word(&mut self, is_in: fn(char) -> bool) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end = self.rest.find(|c| !is_in(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(format!("expected a name or a value before {:?}", self.rest));
        }
        self.rest = rest;
        Ok(word.to_owned())
    }

    /// Parses a string as Go quotes it (strconv.Quote).
    fn quoted(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            let plain = match c {
                '"' => {
                    self.rest = &self.rest[at + 2..];
                    return String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned());
                }
                '\\' => {
                    let (_, escape) = chars.next().ok_or("a lone backslash")?;
                    let mut number = |digits: usize, radix| {
                        let text: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                        let whole = text.chars().count() == digits && !text.starts_with('+');
                        let number = u32::from_str_radix(&text, radix).ok().filter(|_| whole);
                        number.ok_or_else(|| format!("\\{escape}{text} is not an escape sequence"))
                    };
                    match escape {
                        'a' => '\x07',
                        'b' => '\x08',
                        'f' => '\x0c',
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        'v' => '\x0b',
                        '\\' | '"' => escape,
                        'x' => {
                            bytes.push(u8::try_from(number(2, 16)?).unwrap_or_default());
                            continue;
                        }
                        'u' => char::from_u32(number(4, 16)?).ok_or("not a valid character")?,
                        'U' => char::from_u32(number(8, 16)?).ok_or("not a valid character")?,
                        other => return Err(format!("\\{other} is not an escape sequence")),
                    }
                }
                c => c,
            };
            bytes.extend(plain.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Err("a quote is not closed".to_owned())
    }
}

fn is_field(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reports whether the character can be in a value without quotes.
fn is_value(c: char) -> bool {
    !matches!(c, ',' | '"') && !c.is_whitespace() && !c.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Info {
        let now = chrono::DateTime::UNIX_EPOCH;
        let labels = [("containerd.io/snapshot.ref", "sha256:aa"), ("color", "blue")];
        Info {
            name: "k8s.io/3/sha256:bb".into(),
            parent: "sha256:aa#2".into(),
            kind: Kind::Committed,
            created: now,
            updated: now,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Filters::parse(&filters).unwrap().pass(&info())
    }

    #[test]
    fn filters_that_match() {
        for filter in [
            "",
            "name==k8s.io/3/sha256:bb",
            r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="sha256:aa#2""#,
            "kind==committed",
            "kind!=active,labels.color",
            "labels.color~=^bl.e$",
            "name~=sha256",
            "labels.none!=x",
            r#"parent=="sha256:\x61a\u0023\U00000032""#,
        ] {
            assert!(passes(&[filter]), "{filter}");
        }
        assert!(passes(&[]));
        assert!(passes(&["kind==view", "labels.color==blue"]), "one of several is enough");
    }

    #[test]
    fn filters_that_do_not_match() {
        for filter in [
            "name==other",
            "kind==active",
            "labels.none",
            "labels",
            "size==1",
            r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent==other"#,
            "labels.color~=^red$",
            "name.more==k8s.io/3/sha256:bb",
        ] {
            assert!(!passes(&[filter]), "{filter}");
        }
    }

    #[test]
    fn malformed_filters_are_rejected() {
        let huge = format!("name==\"{}\"", "a".repeat(MAX));
        for filter in [
            "==",
            ".",
            "name=",
            "name==",
            "name==a b",
            "name==\"a",
            "name==\"\\",
            "name==\"\\q\"",
            "name==\"\\xg0\"",
            "name==\"\\x+1\"",
            "name==\"\\uD800\"",
            "name==\"\\xff\"",
            "labels.",
            "labels.==a",
            "name~=(",
            "name~=(a{1000}){1000}",
            "name,,kind",
            &huge,
        ] {
            let parsed = Filters::parse(&[filter.to_owned()]);
            assert!(matches!(parsed, Err(Error::Invalid(_))), "{filter}: {parsed:?}");
        }
    }
}
