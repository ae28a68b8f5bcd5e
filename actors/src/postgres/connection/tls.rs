//! TLS with PostgreSQL: the request, the trust, the channel binding.
//!
//! The modes mean what they mean in libpq: `prefer` and `require` encrypt without looking at the
//! certificate (unless a root certificate is given), `verify-ca` and `verify-full` look.

mod verifier;

use std::{fmt::Display, io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use self::verifier::{AnyCertificate, AnyName};
use super::{socket::Socket, transport::Stream};
use crate::postgres::{
    config::{Config, Host, SslMode},
    error::PgError,
};

/// Asks for TLS as the mode says and returns the stream, and the hash for channel binding if the
/// stream is encrypted.
pub(super) async fn negotiate(
    mut socket: Socket,
    host: &Host,
    config: &Config,
) -> Result<(Stream, Option<Vec<u8>>), PgError> {
    let Host::Tcp { host: name, .. } = host else {
        // A unix socket has no eavesdropper; libpq does not encrypt it either.
        return Ok((Stream::Plain(socket), None));
    };
    if config.ssl_mode == SslMode::Disable {
        return Ok((Stream::Plain(socket), None));
    }
    let failed = |what: &dyn Display| PgError::Tls {
        target: host.to_string(),
        what: what.to_string(),
    };
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(PgError::Io)?;
    let answer = socket.read_u8().await.map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            PgError::Closed
        } else {
            PgError::Io(error)
        }
    })?;
    match (answer, config.ssl_mode) {
        (b'S', _) => {}
        (b'N', SslMode::Prefer) => return Ok((Stream::Plain(socket), None)),
        (b'N', _) => return Err(failed(&"the server has no TLS")),
        (other, _) => {
            return Err(PgError::Protocol(format!(
                "byte {other} in answer to a request for TLS"
            )));
        }
    }
    let server = ServerName::try_from(name.clone()).map_err(|error| failed(&error))?;
    let tls = client_config(config).map_err(|error| failed(&error))?;
    let connector = TlsConnector::from(Arc::new(tls));
    let stream = connector.connect(server, socket).await;
    let stream = stream.map_err(|error| failed(&error))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let binding = certificates.first().and_then(end_point_hash);
    Ok((Stream::Tls(Box::new(stream)), binding))
}

fn client_config(config: &Config) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let checks_authority = matches!(config.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull)
        || config.ssl_root_cert.is_some();
    if !checks_authority {
        let any = AnyCertificate::new(provider);
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(any));
        return Ok(builder.with_no_client_auth());
    }
    let roots = Arc::new(roots(config)?);
    if config.ssl_mode == SslMode::VerifyFull {
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    let any_name = any_name(roots, provider)?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(any_name));
    Ok(builder.with_no_client_auth())
}

fn any_name(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>) -> Result<AnyName, String> {
    AnyName::new(roots, provider).map_err(|error| error.to_string())
}

fn roots(config: &Config) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match config.ssl_root_cert.as_deref() {
        Some(file) if file.as_os_str() != "system" => {
            let unreadable = |error: &dyn Display| format!("{}: {error}", file.display());
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| unreadable(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                roots.add(certificate).map_err(|error| unreadable(&error))?;
            }
        }
        _ => {
            let (_added, _ignored) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("no root certificate to trust; set sslrootcert".to_owned());
    }
    Ok(roots)
}

/// Hashes the certificate as RFC 5929 `tls-server-end-point` says: with the hash of its signature,
/// SHA-256 instead of MD5 and SHA-1. `None` for signatures that name no hash: then the login goes
/// without channel binding.
fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    /// `1.2.840.113549.1.1`: PKCS#1.
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    /// `1.2.840.10045.4`: ANSI X9.62 signatures.
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let (_, certificate_body, _) = der_element(certificate)?;
    let (_, _, after_tbs) = der_element(certificate_body)?;
    let (_, algorithm, _) = der_element(after_tbs)?;
    let (_, oid, _) = der_element(algorithm)?;
    let tail = oid.strip_prefix(RSA).or_else(|| oid.strip_prefix(ECDSA))?;
    match tail {
        // md5 and sha1 with RSA, sha256 with RSA; sha1 and sha256 with ECDSA.
        [4 | 5 | 11] | [1] | [3, 2] => Some(Sha256::digest(certificate).to_vec()),
        [12] | [3, 3] => Some(Sha384::digest(certificate).to_vec()),
        [13] | [3, 4] => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// Splits the first DER element off: tag, content, rest.
fn der_element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}
