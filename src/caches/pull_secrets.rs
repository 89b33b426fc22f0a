//! Which pull secrets a tenant may use.

use crate::model::pull_secret::PullSecretName;

/// Parts the pull secrets of an order, as they were given, into those that the tenant may use and those that it may not or
/// that are malformed. Which of the two is never told: the names of other tenants' secrets are not to be found out.
///
/// A pattern is `namespace:name`, `namespace:*` or `*`.
pub fn split(patterns: &[String], given: &[String]) -> (Vec<PullSecretName>, Vec<String>) {
    let (mut usable, mut unusable) = (Vec::new(), Vec::new());
    for text in given {
        match text.parse::<PullSecretName>() {
            Ok(name) if patterns.iter().any(|pattern| allows(pattern, &name)) => usable.push(name),
            _ => unusable.push(text.clone()),
        }
    }
    (usable, unusable)
}

fn allows(pattern: &str, name: &PullSecretName) -> bool {
    match pattern.split_once(':') {
        None => pattern == "*",
        Some((namespace, wanted)) => {
            namespace == name.namespace() && (wanted == "*" || wanted == name.name())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let parts = |patterns: &[&str], given: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            let (usable, unusable) = split(&own(patterns), &own(given));
            (usable.iter().map(ToString::to_string).collect::<Vec<_>>(), unusable)
        };
        let given = ["team-a:one", "team-b:one", "team-a:two", "../x:y", ""];
        let (usable, unusable) = parts(&["team-a:*"], &given);
        assert_eq!(usable, ["team-a:one", "team-a:two"]);
        assert_eq!(unusable, ["team-b:one", "../x:y", ""]);
        assert_eq!(parts(&["team-a:two"], &given).0, ["team-a:two"]);
        assert_eq!(parts(&["*"], &given).0.len(), 3);
        assert!(parts(&[], &given).0.is_empty());
    }
}
