//! Shares the slots of a node between namespaces when more volumes are wanted than it can attach. Pure.

use std::collections::{HashSet, VecDeque};

/// Returns the claims that get one of `max` slots. `wanted` contains the namespace and the claim of each
/// request by priority. The namespace `None` is the node's own configuration.
///
/// The configuration comes first. Then the namespaces take turns, in the order of their first requests, and
/// each takes one claim per turn. So no namespace gets a second slot while another has none, and slots that
/// the others do not want go to the rest. A claim that already has a slot does not cost a second one.
pub(super) fn share<'a>(
    wanted: impl IntoIterator<Item = (Option<&'a str>, &'a str)>,
    max: usize,
) -> HashSet<&'a str> {
    let mut slots = HashSet::new();
    let mut queues: Vec<(&str, VecDeque<&str>)> = Vec::new();
    for (namespace, claim) in wanted {
        let Some(namespace) = namespace else {
            if slots.len() < max {
                slots.insert(claim);
            }
            continue;
        };
        match queues.iter_mut().find(|(known, _)| *known == namespace) {
            Some((_, queue)) => queue.push_back(claim),
            None => queues.push((namespace, VecDeque::from([claim]))),
        }
    }
    while slots.len() < max && !queues.is_empty() {
        for (_, queue) in &mut queues {
            let next = std::iter::from_fn(|| queue.pop_front()).find(|claim| !slots.contains(claim));
            if slots.len() < max {
                slots.extend(next);
            }
        }
        queues.retain(|(_, queue)| !queue.is_empty());
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a1` is a claim that namespace `a` wants, `*1` one of the configuration, and `ab1` one that `a` and
    /// `b` want.
    fn shared(wanted: &str, max: usize) -> String {
        let wanted: Vec<(Option<&str>, &str)> = wanted
            .split(' ')
            .flat_map(|claim| {
                let who = claim.trim_end_matches(|c: char| c.is_ascii_digit());
                who.char_indices().map(move |(at, c)| ((c != '*').then(|| &who[at..=at]), claim))
            })
            .collect();
        let mut slots: Vec<&str> = share(wanted, max).into_iter().collect();
        slots.sort_unstable();
        slots.join(" ")
    }

    #[test]
    fn no_namespace_takes_what_others_want() {
        for (wanted, max, want) in [
            // A single namespace gets all slots.
            ("a1 a2 a3 a4", 3, "a1 a2 a3"),
            // An earlier namespace leaves half to a later one, and gets back the slots that the later one
            // does not want.
            ("a1 a2 a3 a4 b1 b2 b3", 4, "a1 a2 b1 b2"),
            ("a1 a2 a3 a4 b1", 4, "a1 a2 a3 b1"),
            ("a1 a2 a3 b1 c1 d1", 3, "a1 b1 c1"),
            // The configuration comes first.
            ("a1 a2 b1 *1 *2", 3, "*1 *2 a1"),
            ("*1 *2 *3 a1", 2, "*1 *2"),
            // A claim that several namespaces want costs only one of them a slot.
            ("ab1 a2 b2 b3", 3, "a2 ab1 b2"),
            ("a1 a1 a1 b1", 2, "a1 b1"),
            ("a1", 0, ""),
        ] {
            assert_eq!(shared(wanted, max), want, "{wanted} in {max}");
        }
    }
}
