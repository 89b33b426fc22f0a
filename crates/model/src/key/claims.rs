//! The claims that a key makes for the volumes that it signs.

/// Maximum length of a name, bytes.
const MAX_NAME: usize = 255;

/// The claims that the owner of a key makes for the volumes that it signs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Name of the cache, if it has one.
    pub name: Option<String>,
    /// Sequence number of the volume among those of this name; `None` for the seconds since 1970-01-01 UTC.
    pub sequence: Option<u64>,
}

impl Claims {
    /// Reports whether a name can be signed: 1 to 255 bytes without control characters.
    pub fn is_name(name: &str) -> bool {
        (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
    }
}
