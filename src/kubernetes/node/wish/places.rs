//! Who gets the places of a node when more is wanted than it takes. Pure.

use std::collections::{HashSet, VecDeque};

/// The claims that get one of `most` places. `wanted` has who wants which claim, what counts more first; `None` is the node's
/// own configuration.
///
/// The configuration comes first. Then the namespaces take turns, in the order in which they first want something, and each
/// takes one claim a turn. So no namespace gets a second place while another has none, and places that the others do not want
/// go to who does. A claim that has a place already costs nobody a second one.
pub(super) fn share<'a>(
    wanted: impl IntoIterator<Item = (Option<&'a str>, &'a str)>,
    most: usize,
) -> HashSet<&'a str> {
    let mut places = HashSet::new();
    let mut queues: Vec<(&str, VecDeque<&str>)> = Vec::new();
    for (namespace, claim) in wanted {
        let Some(namespace) = namespace else {
            if places.len() < most {
                places.insert(claim);
            }
            continue;
        };
        match queues.iter_mut().find(|(known, _)| *known == namespace) {
            Some((_, queue)) => queue.push_back(claim),
            None => queues.push((namespace, VecDeque::from([claim]))),
        }
    }
    while places.len() < most && !queues.is_empty() {
        for (_, queue) in &mut queues {
            let next = std::iter::from_fn(|| queue.pop_front()).find(|claim| !places.contains(claim));
            if places.len() < most {
                places.extend(next);
            }
        }
        queues.retain(|(_, queue)| !queue.is_empty());
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a1` is a claim that namespace `a` wants, `*1` one of the configuration, and `ab1` one that `a` and `b` want.
    fn shared(wanted: &str, most: usize) -> String {
        let wanted: Vec<(Option<&str>, &str)> = wanted
            .split(' ')
            .flat_map(|claim| {
                let who = claim.trim_end_matches(|c: char| c.is_ascii_digit());
                who.char_indices().map(move |(at, c)| ((c != '*').then(|| &who[at..=at]), claim))
            })
            .collect();
        let mut places: Vec<&str> = share(wanted, most).into_iter().collect();
        places.sort_unstable();
        places.join(" ")
    }

    #[test]
    fn no_namespace_takes_what_others_want() {
        for (wanted, most, want) in [
            // One namespace that is alone has all.
            ("a1 a2 a3 a4", 3, "a1 a2 a3"),
            // One that came first leaves half to one that came last, and what that does not want is its own again.
            ("a1 a2 a3 a4 b1 b2 b3", 4, "a1 a2 b1 b2"),
            ("a1 a2 a3 a4 b1", 4, "a1 a2 a3 b1"),
            ("a1 a2 a3 b1 c1 d1", 3, "a1 b1 c1"),
            // The configuration comes first.
            ("a1 a2 b1 *1 *2", 3, "*1 *2 a1"),
            ("*1 *2 *3 a1", 2, "*1 *2"),
            // What several want costs one of them one place.
            ("ab1 a2 b2 b3", 3, "a2 ab1 b2"),
            ("a1 a1 a1 b1", 2, "a1 b1"),
            ("a1", 0, ""),
        ] {
            assert_eq!(shared(wanted, most), want, "{wanted} in {most}");
        }
    }
}
