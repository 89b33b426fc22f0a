//! Generates images: stacks of layers whose members hide, replace and link each other, with few names.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::reference::Reference;
use crate::harness::layers::{Member, Node};
use crate::harness::tree::Kind;

/// One intended change. Changes that the tree does not allow are left out when a layer is written.
#[derive(Clone, Debug)]
enum Change {
    File(String, u8),
    Directory(String, u32),
    Symlink(String),
    Device(String),
    HardLink(String, usize),
    Whiteout(String),
    Opaque(String),
}

/// Generates one to four layers, the first with an entry for the root.
pub(crate) fn layers() -> impl Strategy<Value = Vec<Vec<Member>>> {
    vec(vec(change(), 1..14), 1..5).prop_map(|stack| write(&stack))
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    let mode = prop_oneof![Just(0o755), Just(0o700), Just(0o1777), Just(0o2750)];
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, n)| Change::File(path, n)),
        3 => (path(), mode).prop_map(|(path, mode)| Change::Directory(path, mode)),
        1 => path().prop_map(Change::Symlink),
        1 => path().prop_map(Change::Device),
        2 => (path(), any::<usize>()).prop_map(|(path, n)| Change::HardLink(path, n)),
        2 => path().prop_map(Change::Whiteout),
        1 => path().prop_map(Change::Opaque),
    ]
}

fn write(stack: &[Vec<Change>]) -> Vec<Vec<Member>> {
    let mut lower = Reference::default();
    let mut layers = Vec::new();
    for (level, changes) in stack.iter().enumerate() {
        let mut members = Vec::new();
        if level == 0 {
            members.push(Member::directory("./").mode(0o711).mtime(1_500_000_000, 7));
        }
        members.extend(hide(&lower, changes));
        lower.apply(&members);
        let additions = add(&lower, &members, changes);
        lower.apply(&additions);
        // Whiteouts are applied first wherever they are, so they can also be last.
        let at = if level % 2 == 1 { 0 } else { members.len() };
        members.splice(at..at, additions);
        layers.push(members);
    }
    layers
}

/// Returns whiteouts and opaque directories for names in the lower layers.
fn hide(lower: &Reference, changes: &[Change]) -> Vec<Member> {
    let mut members = Vec::new();
    let mut seen = BTreeSet::new();
    for change in changes {
        let (path, whiteout) = match change {
            Change::Whiteout(path) if lower.kind(path).is_some() => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                (path, format!("{parent}/.wh.{name}"))
            }
            Change::Opaque(path) if lower.kind(path) == Some(&Kind::Directory) => {
                (path, format!("{path}/.wh..wh..opq"))
            }
            _ => continue,
        };
        // A name below a hidden one is hidden already, and a whiteout for it would create its parent again.
        let below = |other: &String| related(path, other);
        if !seen.iter().any(below) {
            seen.insert(path.clone());
            members.push(Member::whiteout(whiteout.trim_start_matches('/')));
        }
    }
    members
}

/// Reports whether one of two paths equals the other or is below it.
fn related(a: &str, b: &str) -> bool {
    let inside =
        |a: &str, b: &str| b.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    inside(a, b) || inside(b, a)
}

/// Returns members that add entries, each name at most once and none below a non-directory of the same layer.
/// `hidden` are the layer's whiteouts, whose parents stay directories.
fn add(lower: &Reference, hidden: &[Member], changes: &[Change]) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    let mut leaves: BTreeSet<String> = BTreeSet::new();
    let mut directories: BTreeSet<String> = BTreeSet::new();
    let parents = hidden.iter().filter_map(|member| member.path.rsplit_once('/'));
    let entered: BTreeSet<String> = parents.map(|(parent, _)| parent.to_owned()).collect();
    let lower_files = lower.files();
    for change in changes {
        let member = match change {
            Change::File(path, n) => {
                let (id, time) = (u32::from(*n), 1_600_000_000 + i64::from(*n));
                let file = Member::file(path, &"x".repeat(usize::from(*n) * 7));
                file.mode(0o600 | id & 0o77).owner(id, 2 * id).mtime(time, 1 + id)
            }
            Change::Directory(path, mode) => Member::directory(path).mode(*mode).xattr("user.d", b"1"),
            Change::Symlink(path) => Member::symlink(path, "../a/b"),
            Change::Device(path) => Member::new(path, Node::Character(1, 3)),
            Change::HardLink(path, n) if !lower_files.is_empty() => {
                Member::hard_link(path, &lower_files[n % lower_files.len()])
            }
            _ => continue,
        };
        let path = &member.path;
        let free = |path: &str| {
            let occupied = |other: &String| related(path, other) && other.len() >= path.len();
            !leaves.iter().any(|leaf| related(leaf, path))
                && !directories.iter().any(occupied)
                && !entered.iter().any(occupied)
        };
        if member.node == Node::Directory {
            if leaves.iter().any(|leaf| related(leaf, path)) || !directories.insert(path.clone()) {
                continue;
            }
        } else if let Node::HardLink(target) = &member.node {
            // The target must still exist as in the lower layers, and the link must not replace it.
            if !free(path) || !free(target) || related(target, path) {
                continue;
            }
            leaves.extend([path.clone(), target.clone()]);
        } else if free(path) {
            leaves.insert(path.clone());
        } else {
            continue;
        }
        members.push(member);
    }
    members
}
