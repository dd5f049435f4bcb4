//! TLS for probes: which certificates hold, and why one does not.

use std::io;
use std::sync::Arc;

use rustls_native_certs::load_native_certs;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use crate::health::Failure;

/// The system's root certificates, read when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Tls {
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// With these roots in place of the system's.
    #[cfg(test)]
    pub(super) fn with(roots: RootCertStore) -> Self {
        Self { config: OnceCell::new_with(Some(client(roots).unwrap())) }
    }

    /// How to connect.
    pub(super) async fn config(&self) -> Result<Arc<ClientConfig>, Failure> {
        self.config.get_or_try_init(load).await.cloned()
    }
}

async fn load() -> Result<Arc<ClientConfig>, Failure> {
    let found =
        spawn_blocking(load_native_certs).await.map_err(|_| Failure::tls("reading root certificates failed"))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Failure::tls("no root certificates, install ca-certificates"));
    }
    client(roots)
}

fn client(roots: RootCertStore) -> Result<Arc<ClientConfig>, Failure> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::tls(&error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Why a handshake failed.
pub(super) fn failure(error: &io::Error) -> Failure {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return super::socket::failure(error);
    };
    let text = match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "certificate not valid yet",
            CertificateError::UnknownIssuer => "certificate of unknown issuer",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "certificate for another name"
            }
            CertificateError::Revoked => "certificate revoked",
            _ => "certificate not valid",
        },
        Error::AlertReceived(alert) => return Failure::tls(&format!("TLS alert {alert:?}")),
        _ => "no TLS",
    };
    Failure::tls(text)
}
