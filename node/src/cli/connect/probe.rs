//! Finds out whether a node takes the certificate that a command shows.
//!
//! A node says no after the client's part of the handshake is over: in HTTP/2 that is a connection that
//! breaks for no visible reason. So a connection of its own waits for the node's first word, which is
//! its refusal or anything else. Only the clear answer counts; whatever else happens is left to the real
//! connection.

use std::{
    fmt, io,
    net::{TcpStream, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

/// A node that says nothing within this time has refused nothing.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// What a command shows and trusts, in PEM.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) ca: Vec<u8>,
    /// Certificate and key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The key is a secret.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// Returns why the two sides do not trust each other; `None` when they do, or nobody knows. Blocking.
pub(super) fn distrust(host: &str, port: u16, shown: &Shown) -> Option<rustls::Error> {
    let config = config(shown)?;
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let mut tls = ClientConnection::new(Arc::new(config), name).ok()?;
    let error = wait(host, port, &mut tls).err()?;
    error.into_inner()?.downcast().ok().map(|error| *error)
}

/// Waits for the first word after the handshake. What rustls says is inside the error.
fn wait(host: &str, port: u16, tls: &mut ClientConnection) -> io::Result<()> {
    let address = (host, port).to_socket_addrs()?.next();
    let address = address.ok_or(io::ErrorKind::NotFound)?;
    let mut socket = TcpStream::connect_timeout(&address, SILENCE_MAX)?;
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    socket.set_write_timeout(Some(SILENCE_MAX))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    // Before version 1.3 the node had to say yes to end the handshake.
    if tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
        tls.read_tls(&mut socket)?;
        tls.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(())
}

fn config(shown: &Shown) -> Option<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&shown.ca) {
        roots.add(root.ok()?).ok()?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match &shown.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
            let key = PrivateKeyDer::from_pem_slice(key).ok()?;
            builder.with_client_auth_cert(chain.ok()?, key).ok()?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some(config)
}
