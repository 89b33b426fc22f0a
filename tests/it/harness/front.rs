//! An HTTPS proxy in front of a plain HTTP server, because kubectl sends tokens only over HTTPS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// Terminates TLS and forwards connections. Stops when it is dropped.
#[derive(Debug)]
pub(crate) struct Front {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Front {
    /// Starts a proxy for `behind`, on a free port of 127.0.0.1. It uses the certificate `<name>.pem` and its
    /// key in `dir`.
    pub(crate) fn start(behind: SocketAddr, dir: &Path, name: &str) -> Self {
        let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).unwrap();
        let chain = chain.map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut outside) = acceptor.accept(stream).await else { return };
                    let Ok(mut inside) = TcpStream::connect(behind).await else { return };
                    // A disconnect of either side ends both.
                    let _ = copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Front { address, _runtime: runtime }
    }

    /// Returns the URL, such as `https://127.0.0.1:1234`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}
