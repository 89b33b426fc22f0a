//! TLS of the TCP listener.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::ListenError;
use crate::config::api::Api;
use larder_sys::private;

/// Maximum size of a key file, bytes. An RSA key of 16,384 bits takes 13 KiB.
const MAX_KEY: u64 = 64 << 10;

/// The certificate and the key. Clones share the same configuration.
#[derive(Clone, Debug)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Reads the certificate and the key. `None` if they are not configured.
    ///
    /// # Errors
    /// Returns [`ListenError::Tls`] or [`ListenError::Key`] if a file cannot be read or used.
    pub fn load(settings: &Api) -> Result<Option<Self>, ListenError> {
        let config = read(settings)?;
        Ok(config.map(|config| Tls(Arc::new(RwLock::new(config)))))
    }

    /// Reloads both files for new connections. On failure the previous ones stay in use.
    ///
    /// # Errors
    /// Returns [`ListenError::Tls`] or [`ListenError::Key`] if a file cannot be read or used.
    pub fn reload(&self, settings: &Api) -> Result<(), ListenError> {
        if let Some(config) = read(settings)? {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        }
        Ok(())
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn read(settings: &Api) -> Result<Option<Arc<ServerConfig>>, ListenError> {
    let (Some(certificate), Some(key)) = (&settings.tls_certificate, &settings.tls_key) else {
        return Ok(None);
    };
    let fault = |path: &Path, reason: String| ListenError::Tls { path: PathBuf::from(path), reason };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|e| fault(certificate, e.to_string()))?;
    let pem = private::read(key, MAX_KEY).map_err(|source| ListenError::Key { path: key.clone(), source })?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| fault(key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|e| fault(certificate, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}
