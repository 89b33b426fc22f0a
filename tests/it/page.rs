//! Runs the commands of README.md and of the pages in docs/, each page on a machine of its own
//! (`page/machine.sh`), and compares the output that the pages show.

pub(crate) mod blocks;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Need, isolated, run_within};
use blocks::parse;

const NEEDS: &[Need] = &[
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("umoci"),
    Need::Program("podman"),
    Need::Program("jq"),
    Need::Program("openssl"),
    Need::Program("curl"),
    Need::Program("ip"),
    Need::Program("mkfs.ext4"),
];

/// Time limit for all commands of a page.
const LIMIT: Duration = Duration::from_secs(300);

/// Number of words of a line of output that are compared.
const WORDS: usize = 3;

macro_rules! pages {
    ($($name:ident: $page:literal,)*) => {
        $(#[case]
        fn $name() {
            isolated(NEEDS, || run($page));
        })*
    };
}

// `tests/docs.rs` reads this list.
pages! {
    readme: "README.md",
    tutorial: "docs/tutorial.md",
    air_gap: "docs/guides/air-gap.md",
    ci: "docs/guides/ci.md",
    host: "docs/guides/host.md",
    nodes: "docs/guides/nodes.md",
    signing: "docs/guides/signing.md",
    upgrade: "docs/guides/upgrade.md",
    volumes: "docs/guides/volumes.md",
    http_api: "docs/reference/http-api.md",
    performance: "docs/explanation/performance.md",
}

fn run(page: &str) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let blocks = parse(&fs::read_to_string(sources.join(page)).unwrap());
    let run: Vec<_> = blocks.iter().filter(|block| block.not_run().is_none()).collect();
    let script: String = run
        .iter()
        .map(|block| {
            format!("{}\necho; echo '@@ {page}:{}'\n{}\n", block.before(), block.line, block.commands)
        })
        .collect();
    // The machine of the test might not have the space.
    let script = script.replace("--size 20GiB", "--size 1GiB");
    fs::write(at("commands"), script).unwrap();

    // The new process namespace ends with the shell, so nothing that the page starts outlives it.
    let mut machine = Command::new("unshare");
    machine.args(["--mount", "--net", "--pid", "--fork", "--kill-child"]);
    machine.arg(sources.join("tests/it/page/machine.sh")).args([dir.path(), sources]);
    machine.arg(env!("CARGO_BIN_EXE_larder"));
    let status = run_within(&mut machine, LIMIT).status;
    let output = fs::read_to_string(at("output")).unwrap_or_default();
    let last = output.rfind("@@ ").map_or(output.as_str(), |at| &output[at..]);
    assert!(status.success(), "{status} at {last}");

    for block in run {
        let (_, printed) = output.split_once(&format!("@@ {page}:{}\n", block.line)).unwrap();
        let mut printed = printed.lines().take_while(|line| !line.starts_with("@@ "));
        for line in block.output.iter().filter(|line| line.trim() != "…") {
            assert!(
                printed.any(|other| is_like(line, other)),
                "{page}:{}: the commands do not print `{line}`, or in another order:\n{output}",
                block.line
            );
        }
    }
}

/// Compares the first words of two lines. Two words with digits are equal, such as digests, sizes and times.
fn is_like(shown: &str, printed: &str) -> bool {
    let words = |line: &str| line.split_whitespace().take(WORDS).map(str::to_owned).collect::<Vec<_>>();
    let has_digit = |word: &str| word.contains(|letter: char| letter.is_ascii_digit());
    let (shown, printed) = (words(shown), words(printed));
    shown.len() == printed.len()
        && shown.iter().zip(&printed).all(|(a, b)| a == b || a == "…" || has_digit(a) && has_digit(b))
}

#[case]
fn lines_are_compared_by_their_first_words() {
    assert!(is_like("sealed ./cache: 2 images", "sealed ./cache: 13 layers"));
    assert!(is_like("cache.json sha256:de69", "cache.json sha256:17aa"));
    assert!(!is_like("cache.json sha256:de69", "cache.json none"));
    assert!(!is_like("./cache: OK", "./cache: not sealed"));
    assert!(!is_like("mounted /icv", "mounted"));
}
