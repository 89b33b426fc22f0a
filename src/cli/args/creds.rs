//! The value of `--creds`, which must not become visible anywhere else.

use std::convert::Infallible;
use std::ffi::OsString;
use std::str::FromStr;

use larder_model::credential::{Credential, Secret};

const FLAG: &str = "--creds";

/// `USER:PASSWORD` as given. Its `Debug` form shows neither.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Creds(Secret);

impl FromStr for Creds {
    type Err = Infallible;

    /// Accepts every text, because the error of a parser would show it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Creds(Secret::new(text)))
    }
}

impl Creds {
    /// Returns the credential; `None` if the user name or the password is missing.
    pub(in crate::cli) fn credential(&self) -> Option<Credential> {
        let (username, password) = self.0.expose().split_once(':')?;
        let is_complete = !username.is_empty() && !password.is_empty();
        let password = Secret::new(password);
        is_complete.then(|| Credential::Basic { username: username.to_owned(), password })
    }
}

/// Removes `--creds` and its value from a command line, which child processes get.
pub(in crate::cli) fn without_creds(argv: Vec<OsString>) -> Vec<OsString> {
    let mut kept = Vec::with_capacity(argv.len());
    let mut words = argv.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            kept.push(word);
            kept.extend(words);
            break;
        }
        if word == FLAG {
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"--creds=") {
            kept.push(word);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Creds {
        let Ok(creds) = text.parse();
        creds
    }

    #[test]
    fn the_password_can_contain_colons() {
        let credential = parse("u:p:q").credential();
        let expected = Credential::Basic { username: "u".into(), password: Secret::new("p:q") };
        assert_eq!(credential, Some(expected));
        for incomplete in ["", "u", "u:", ":p", ":"] {
            assert_eq!(parse(incomplete).credential(), None, "{incomplete}");
        }
        assert!(!format!("{:?}", parse("user:hidden")).contains("hidden"));
    }

    #[test]
    fn child_processes_do_not_get_it() {
        for (given, kept) in [
            ("larder build --creds u:p a", "larder build a"),
            ("larder build --creds=u:p a --volume v", "larder build a --volume v"),
            ("larder build a --creds u:p", "larder build a"),
            ("larder build --creds u:p --creds=x:y a", "larder build a"),
            ("larder build --volume v -- --creds u", "larder build --volume v -- --creds u"),
        ] {
            let words = given.split(' ').map(OsString::from).collect();
            let expected: Vec<OsString> = kept.split(' ').map(OsString::from).collect();
            assert_eq!(without_creds(words), expected, "{given}");
        }
    }
}
