//! Suggestions for misspelt names.

/// Similarity from which a name is suggested, between 0 and 1. The command line uses the same limit.
const MIN_SIMILARITY: f64 = 0.7;

/// Returns up to `max` candidates that are similar to `word`, the most similar first.
pub fn similar<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, max: usize) -> Vec<&'a str> {
    let others = candidates.into_iter().filter(|candidate| *candidate != word);
    let mut rated: Vec<(f64, &str)> = others.map(|other| (strsim::jaro(word, other), other)).collect();
    rated.retain(|(similarity, _)| *similarity > MIN_SIMILARITY);
    rated.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.cmp(second)));
    rated.dedup();
    rated.into_iter().take(max).map(|(_, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_comes_first() {
        let keys = ["retries", "ranges_per_blob", "certs_d", "retried"];
        assert_eq!(similar("retrys", keys, 1), ["retries"]);
        assert_eq!(similar("1.72", ["2.0", "1.27", "1.27", "latest", "1.72"], 3), ["1.27"]);
        assert_eq!(similar("1.27.9", ["1.27.1", "1.27.2", "1.27.3", "1.27.4"], 3).len(), 3);
        assert!(similar("surprise", ["state", "api"], 1).is_empty());
    }
}
