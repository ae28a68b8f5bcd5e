//! TLS of a node, as `[tls]` says: what it shows to whom, and whom it trusts.
//!
//! With `client_ca` trust is mutual: whoever connects shows a certificate of that authority, and this
//! node, which reaches its peers by the same files, trusts no other. Files are read when the node
//! starts. Nothing here connects.

use std::{error::Error, fs, path::Path};

use anyhow::Context as _;
use pgcapture_engine::codes;
use rustls::{
    CertificateError, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::config::Config;

/// What rustls says when it or the other side does not take a certificate. The text is all that HTTP/2
/// keeps of the error.
const DISTRUST: [&str; 2] = ["invalid peer certificate", "received fatal alert"];

/// Returns what the listener shows and asks for; `None` without TLS.
pub(crate) fn server(config: &Config) -> anyhow::Result<Option<ServerTlsConfig>> {
    let Some(identity) = identity(config)? else {
        return Ok(None);
    };
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(ca) = &config.tls.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read(ca)?));
    }
    Ok(Some(tls))
}

/// Returns what connections to other nodes show and trust; `None` without TLS.
pub(crate) fn client(config: &Config) -> anyhow::Result<Option<ClientTlsConfig>> {
    let Some(identity) = identity(config)? else {
        return Ok(None);
    };
    let mut tls = ClientTlsConfig::new().identity(identity);
    if let Some(ca) = &config.tls.client_ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    Ok(Some(tls))
}

/// Returns the authority of certificates that must be shown; `None` when none must.
pub(crate) fn authority(config: &Config) -> anyhow::Result<Option<RootCertStore>> {
    let Some(ca) = &config.tls.client_ca else {
        return Ok(None);
    };
    let code = codes::config::TLS.code;
    let unusable = || format!("{code}: {} cannot be used", ca.display());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&read(ca)?) {
        let root = root.with_context(unusable)?;
        roots.add(root).with_context(unusable)?;
    }
    Ok(Some(roots))
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Serving: a node's.
    Node,
    /// Not serving: a client's.
    Client,
}

/// Returns what a certificate is for; `None` when it is good for nothing now, as one that has expired since
/// the handshake.
pub(crate) fn purpose(chain: &[CertificateDer<'_>], authority: &RootCertStore) -> Option<Purpose> {
    let (end, between) = chain.split_first()?;
    let parsed = ParsedCertificate::try_from(end).ok()?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let verified = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        authority,
        between,
        UnixTime::now(),
        algorithms.all,
    );
    match verified {
        Ok(()) => Some(Purpose::Node),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        )) => Some(Purpose::Client),
        Err(_) => None,
    }
}

/// Returns what one side says of the other's certificate, when that is why a call has failed.
pub(crate) fn distrust(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        let found = DISTRUST.iter().find_map(|words| text.find(words));
        if let Some(said) = found.and_then(|at| text.get(at..)) {
            return Some(match said.strip_prefix("received fatal alert: ") {
                Some(alert) => format!("the other side takes no such certificate ({alert})"),
                None => said.replacen("peer certificate", "certificate of the other side", 1),
            });
        }
        cause = error.source();
    }
    None
}

fn identity(config: &Config) -> anyhow::Result<Option<Identity>> {
    let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) else {
        return Ok(None);
    };
    Ok(Some(Identity::from_pem(read(cert)?, read(key)?)))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let code = codes::config::TLS.code;
    fs::read(path).with_context(|| format!("{code}: cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_what_is_about_certificates_is_distrust() {
        let alert = io::Error::other("received fatal alert: UnknownCA");
        let wrapped = tonic::Status::from_error(Box::new(alert));
        let said = distrust(&wrapped).unwrap();
        assert!(said.contains("UnknownCA"), "{said}");
        let name = io::Error::other("invalid peer certificate: NotValidForName");
        let said = distrust(&name).unwrap();
        assert_eq!(
            said,
            "invalid certificate of the other side: NotValidForName"
        );
        assert_eq!(distrust(&io::Error::other("connection refused")), None);
    }
}
