//! Which daemon is asked, and as whom: flag over variable over the socket of this host.

use std::path::Path;

use crate::client::Client;
use crate::client::address::{self, Address};
use crate::client::credentials::{Credentials, CredentialsError};
use crate::model::class::Class;

/// There is nobody to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Client(#[from] crate::client::error::Error),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("LARDER_HOST: {0}")]
    Address(#[from] address::ParseAddressError),
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Client(e) => e.class(),
            Error::Credentials(_) | Error::Address(_) => Class::Invalid,
        }
    }
}

/// The daemon that the flag `host` names, else LARDER_HOST.
pub(super) fn named(host: Option<&Address>) -> Result<Option<Address>, Error> {
    match (host, variable("LARDER_HOST")) {
        (Some(address), _) => Ok(Some(address.clone())),
        (None, Some(text)) => Ok(Some(text.parse()?)),
        (None, None) => Ok(None),
    }
}

/// A client of the daemon at `address`, else at the socket of this host.
pub(super) fn connect(address: Option<Address>, ca: Option<&Path>) -> Result<Client, Error> {
    let address = match address {
        Some(address) => address,
        None => address::DEFAULT.parse()?,
    };
    let variable_ca = variable("LARDER_CA").map(Into::into);
    let ca = ca.map(Path::to_owned).or(variable_ca);
    Ok(Client::new(address, Credentials::of(variable)?, ca.as_deref())?)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
