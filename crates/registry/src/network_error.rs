//! Errors of the HTTP library as faults of the client.

use std::time::Duration;

use super::address::{AddressRefused, UnknownHost};
use super::error::{Fault, printable};
use larder_model::causes::causes;

/// Returns the reason of a wait that ended without data.
pub(crate) fn no_data(patience: Duration) -> String {
    format!("no data received for {} s", patience.as_secs_f64())
}

/// Converts an error of the HTTP library. Omits its URL, which might be signed.
pub(crate) fn network(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    if let Some(refused) = cause::<AddressRefused>(&error) {
        return Fault::from(refused);
    }
    if let Some(UnknownHost(host)) = cause(&error) {
        return Fault::UnknownHost(host.clone());
    }
    if let Some(rustls::Error::InvalidCertificate(reason)) = cause(&error) {
        return Fault::Untrusted(match reason {
            rustls::CertificateError::UnknownIssuer => "unknown issuer".to_owned(),
            other => other.to_string(),
        });
    }
    if let Some(rustls::Error::InvalidMessage(_)) = cause(&error) {
        return Fault::NoTls;
    }
    if error.is_builder() {
        return Fault::Invalid(chain(&error));
    }
    if error.is_connect() {
        return Fault::Unreachable(chain(&error));
    }
    Fault::transient(chain(&error))
}

/// Finds the cause of type `T` in the chain of causes. [`std::error::Error::source`] skips the wrapped error
/// itself, so it is examined separately.
pub(crate) fn cause<'a, T: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => cause(wrapped),
        None => error.source().and_then(cause),
    }
}

pub(crate) fn chain(error: &reqwest::Error) -> String {
    printable(&causes(error))
}
