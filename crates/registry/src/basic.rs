//! The Basic authorization header (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;

use super::error::{Fault, printable};

/// Returns the header for a user name and a password.
pub(crate) fn basic(username: &str, password: &str) -> Result<HeaderValue, Fault> {
    if username.contains(':') {
        let name = printable(username);
        return Err(Fault::Invalid(format!(
            "the user name {name:?} contains a colon, which RFC 7617 forbids"
        )));
    }
    let text = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let mut header =
        HeaderValue::try_from(text).map_err(|_| Fault::Invalid("credentials are malformed".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_have_no_colon() {
        let header = basic("user", "pass:word").unwrap();
        assert_eq!(header, "Basic dXNlcjpwYXNzOndvcmQ=");
        assert!(!format!("{header:?}").contains("dXNl"));
        assert!(matches!(basic("us:er", "p"), Err(Fault::Invalid(_))));
    }
}
