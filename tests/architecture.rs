//! Checks the import rule of docs/ARCHITECTURE.md: modules of the root package and crates of the workspace
//! import only what its tables allow, and siblings have no import cycles.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// A module, as the path of names from its crate's root.
type Module = Vec<String>;

#[test]
fn modules_import_what_the_table_allows() {
    let sources = Sources::read(&root().join("src"));
    let mut edges = Edges::new();
    for (from, to) in sources.imports() {
        if let (Some(from), Some(to)) = (from.first(), to.first())
            && from != to
        {
            edges.entry(from.clone()).or_default().insert(to.clone());
        }
    }
    edges.retain(|module, _| !["lib", "main"].contains(&module.as_str()));
    compare(&table("| module | may import |"), &edges);
}

#[test]
fn crates_depend_on_what_the_table_allows() {
    let mut edges = Edges::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let manifest: toml::Table = fs::read_to_string(path.join("Cargo.toml")).unwrap().parse().unwrap();
        let own = manifest
            .get("dependencies")
            .and_then(toml::Value::as_table)
            .into_iter()
            .flat_map(toml::Table::keys);
        let own = own.filter_map(|name| name.strip_prefix("larder-")).map(str::to_owned);
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        edges.insert(name, own.collect());
    }
    edges.retain(|_, to| !to.is_empty());
    compare(&table("| crate | may depend on |"), &edges);
}

#[test]
fn no_siblings_import_each_other_in_a_circle() {
    let crates = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path().join("src"));
    let mut found = BTreeMap::new();
    for sources in crates.chain([root().join("src")]) {
        let name = sources.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        for (parent, edges) in Sources::read(&sources).between_siblings() {
            if let Some(circle) = circle(&edges) {
                found.insert((name.clone(), parent.join("::")), circle);
            }
        }
    }
    assert!(found.is_empty(), "import cycles: {found:?}");
}

/// A dependency on the root package would make the build of a fuzz target several times as long.
#[test]
fn fuzz_targets_depend_on_small_crates() {
    let manifest: toml::Table = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap().parse().unwrap();
    let names: Vec<_> = manifest["dependencies"].as_table().unwrap().keys().collect();
    for name in ["larder", "larder-testing", "larder-registry", "larder-containerd-api"] {
        assert!(!names.iter().any(|found| *found == name), "{name}");
    }
    assert!(names.iter().any(|name| *name == "larder-layer"), "{names:?}");
}

#[test]
fn only_three_crates_have_unsafe_code() {
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let forbids =
            fs::read_to_string(path.join("src/lib.rs")).unwrap().contains("#![forbid(unsafe_code)]");
        let may_have = ["sys", "isal", "sha256"].iter().any(|name| path.ends_with(name));
        assert_eq!(forbids, !may_have, "{}", path.display());
    }
    for file in ["src/lib.rs", "src/main.rs"] {
        assert!(fs::read_to_string(root().join(file)).unwrap().contains("#![forbid(unsafe_code)]"), "{file}");
    }
}

#[test]
fn no_error_exposes_the_cause_that_it_prints() {
    let files = rust_files(&root().join("src")).into_iter().chain(rust_files(&root().join("crates")));
    let found: Vec<String> = files
        .flat_map(|path| {
            let exposed = exposed_causes(&fs::read_to_string(&path).unwrap());
            exposed.into_iter().map(move |what| format!("{}: {what}", path.display()))
        })
        .collect();
    assert!(found.is_empty(), "name the field r#source, or use #[error(transparent)]: {found:#?}");
}

#[test]
fn exposed_causes_are_found() {
    let derive = "#[derive(Debug, thiserror::Error)]\n";
    let item = |lines: &str| format!("{derive}pub enum Error {{\n{lines}\n}}\n");
    for exposed in [
        "    #[error(\"a: {source}\")]\n    A {\n        /// Cause.\n        source: io::Error,\n    },",
        "    #[error(\"a: {0}\")]\n    A(#[from] io::Error),",
        "    #[error(\"a: {0}\")]\n    A(#[source] io::Error),",
    ] {
        assert_eq!(exposed_causes(&item(exposed)).len(), 1, "{exposed}");
    }
    for hidden in [
        "    #[error(\"a: {source}\")]\n    A {\n        r#source: io::Error,\n    },",
        "    #[error(transparent)]\n    A(#[from] io::Error),",
        "    #[error(\"a: {0}\")]\n    A(io::Error),",
    ] {
        assert!(exposed_causes(&item(hidden)).is_empty(), "{hidden}");
    }
}

/// Returns the lines of error types by which `source()` returns an error whose text the message contains.
fn exposed_causes(code: &str) -> Vec<String> {
    let item = Regex::new(r"(?s)#\[derive\([^)]*thiserror::Error[^)]*\)\].*?\n\}\n").unwrap();
    let field = Regex::new(r"^\s+(?:pub(?:\([^)]*\))? )?source:").unwrap();
    let mut found = Vec::new();
    for item in item.find_iter(code) {
        let mut transparent = false;
        for line in item.as_str().lines() {
            if line.trim_start().starts_with("#[error(") {
                transparent = line.contains("#[error(transparent)]");
            }
            let exposes = line.contains("#[source]") || (line.contains("#[from]") && !transparent);
            if exposes || field.is_match(line) {
                found.push(line.trim().to_owned());
            }
        }
    }
    found
}

/// Returns the paths of all Rust files below `directory`.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads the table of docs/ARCHITECTURE.md that begins with `head`.
fn table(head: &str) -> Edges {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let rows = text.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    let names = Regex::new("`([a-z0-9-]+)`").unwrap();
    let edges: Edges = rows
        .map(|row| {
            let mut names = names.captures_iter(row).map(|found| found[1].to_owned());
            (names.next().unwrap(), names.collect())
        })
        .collect();
    assert!(!edges.is_empty(), "no table {head}");
    edges
}

fn compare(allowed: &Edges, actual: &Edges) {
    let all = |edges: &Edges| -> BTreeSet<String> {
        edges.iter().flat_map(|(from, to)| to.iter().map(move |to| format!("{from} -> {to}"))).collect()
    };
    let (allowed, actual) = (all(allowed), all(actual));
    let more: Vec<_> = actual.difference(&allowed).collect();
    let less: Vec<_> = allowed.difference(&actual).collect();
    assert!(more.is_empty(), "imports that docs/ARCHITECTURE.md does not allow: {more:?}");
    assert!(less.is_empty(), "docs/ARCHITECTURE.md allows imports that do not exist: {less:?}");
}

/// The code of a crate by module, without comments and tests.
struct Sources(BTreeMap<Module, String>);

impl Sources {
    fn read(sources: &Path) -> Self {
        let mut modules = BTreeMap::new();
        let mut directories: Vec<PathBuf> = vec![sources.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let relative = path.strip_prefix(sources).unwrap().with_extension("");
                let module: Module = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if path.extension().is_some_and(|extension| extension == "rs")
                    && !module.iter().any(|part| part == "tests")
                {
                    let module = if module == ["lib"] { Module::new() } else { module };
                    modules.insert(module, code(&fs::read_to_string(&path).unwrap()));
                }
            }
        }
        Sources(modules)
    }

    /// Returns every import of one module by another.
    fn imports(&self) -> Vec<(Module, Module)> {
        let path =
            Regex::new(r"\b((?:crate|super(?:::super)*)(?:::\w+)*)(?:::\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\})?")
                .unwrap();
        let mut found = Vec::new();
        for (module, code) in &self.0 {
            for reference in path.captures_iter(code) {
                let mut parts: Module = reference[1].split("::").map(str::to_owned).collect();
                let supers = parts.iter().take_while(|part| *part == "super").count();
                let base = if supers > 0 { &module[..module.len().saturating_sub(supers)] } else { &[] };
                parts.drain(..supers.max(1));
                let start: Module = base.iter().cloned().chain(parts).collect();
                let group = reference.get(2).map_or(String::new(), |group| group.as_str().to_owned());
                for item in split(&group) {
                    let first = item.split("::").next().unwrap_or_default().trim().to_owned();
                    let target: Module = start
                        .iter()
                        .cloned()
                        .chain(Some(first).filter(|first| !first.is_empty() && first != "self"))
                        .collect();
                    let target = (0..=target.len()).rev().map(|len| target[..len].to_vec());
                    let target =
                        target.into_iter().find(|target| self.0.contains_key(target)).unwrap_or_default();
                    if target != *module {
                        found.push((module.clone(), target));
                    }
                }
            }
        }
        found
    }

    /// Returns the imports between the children of each module, by that module.
    fn between_siblings(&self) -> BTreeMap<Module, Edges> {
        let mut siblings: BTreeMap<Module, Edges> = BTreeMap::new();
        for (from, to) in self.imports() {
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                let edges = siblings.entry(from[..common].to_vec()).or_default();
                edges.entry(a.clone()).or_default().insert(b.clone());
            }
        }
        siblings
    }
}

/// Removes comments, and the unit tests at the end of a file.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Splits the group of a `use` at its top level.
fn split(group: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0;
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(item) = items.last_mut() {
            item.push(letter);
        }
    }
    items
}

/// Removes modules without imports, and modules that only such modules import. Whatever remains is a cycle.
fn circle(edges: &Edges) -> Option<String> {
    let mut edges = edges.clone();
    loop {
        let before = edges.len();
        let left: BTreeSet<String> = edges.keys().cloned().collect();
        for to in edges.values_mut() {
            to.retain(|to| left.contains(to));
        }
        edges.retain(|_, to| !to.is_empty());
        if edges.len() == before {
            break;
        }
    }
    // Remove modules that import from the cycle and that nothing in it imports.
    loop {
        let imported: BTreeSet<String> = edges.values().flatten().cloned().collect();
        let before = edges.len();
        edges.retain(|from, _| imported.contains(from));
        if edges.len() == before {
            break;
        }
    }
    (!edges.is_empty()).then(|| format!("{edges:?}"))
}

/// `src/blocking.rs` caps the threads of every runtime.
#[test]
fn one_module_creates_runtimes() {
    let builders = Regex::new(r"Runtime::new\(|Builder::new_(multi|current)_thread").unwrap();
    let mut found = Vec::new();
    let mut directories = vec![root().join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            // Tests are at the end of a file or in files of their own.
            let code = text.split("#[cfg(test)]").next().unwrap();
            if builders.is_match(code) && !path.components().any(|part| part.as_os_str() == "tests") {
                found.push(path.strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
    found.retain(|path| !path.ends_with("tests.rs"));
    assert_eq!(found, ["src/blocking.rs"]);
}
