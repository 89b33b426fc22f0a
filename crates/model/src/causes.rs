//! The causes of an error of the HTTP library.

use std::error::Error;
use std::iter::successors;

/// Starts of messages that only say that a cause follows.
const WRAPPERS: [&str; 3] = ["error sending request", "client error (", "tcp connect error"];

/// Formats an error of the HTTP library with its causes, because only they have the reason. Omits wrappers
/// without information.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = successors(Some(error), |&error| error.source());
    let all: Vec<String> = chain.map(|error| error.to_string()).collect();
    let is_wrapper = |text: &str| WRAPPERS.iter().any(|start| text.starts_with(start));
    let wrappers = all.iter().take_while(|text| is_wrapper(text)).count();
    // Without another cause, the last wrapper is all there is.
    all[wrappers.min(all.len() - 1)..].join(": ")
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Chained {
        text: &'static str,
        next: Option<Box<Chained>>,
    }

    impl fmt::Display for Chained {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.text)
        }
    }

    impl Error for Chained {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.next.as_deref().map(|next| next as &(dyn Error + 'static))
        }
    }

    fn chained(texts: &[&'static str]) -> Chained {
        let next = (texts.len() > 1).then(|| Box::new(chained(&texts[1..])));
        Chained { text: texts[0], next }
    }

    #[test]
    fn wrappers_are_omitted() {
        let refused = ["error sending request", "client error (Connect)", "tcp connect error", "refused"];
        assert_eq!(causes(&chained(&refused)), "refused");
        assert_eq!(causes(&chained(&["error decoding body", "reset"])), "error decoding body: reset");
        assert_eq!(causes(&chained(&refused[..2])), "client error (Connect)");
    }
}
