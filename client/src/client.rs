//! The door: where the cluster is and how to speak to it.
//!
//! A client holds addresses and credentials and makes connections; every subscription has a
//! connection of its own, so that a consumer that stops reading holds up no other. A token
//! file is read again for each connection. Tokens never appear in Debug output or logs.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    dump::{DumpHandle, StartDump},
    error::Error,
    members,
    options::Options,
    subscribe::Subscribe,
    trust,
};

/// Flow-control window of a stream: what may be on its way to one consumer.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Flow-control window of a connection.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Largest frame of HTTP/2: the node sends batches of up to 256 KiB, and each frame is a system call
/// there and one here. The default of 16 KiB makes sixteen of one.
const FRAME_BYTES_MAX: u32 = 256 * 1024;
/// The largest message that is accepted unless said otherwise: above the largest row that
/// PostgreSQL can send in one message (1 GiB would be allowed; this is what fits in memory).
const MAX_MESSAGE_BYTES: usize = 256 * 1024 * 1024;
/// How long a connection may take to come up before the next node is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the connection is probed; half of what usual load balancers allow.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long a probe may stay without an answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Speaks to a pgcapture cluster. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<ClientBuilder>,
}

/// How a [`Client`] connects.
#[derive(Clone)]
#[must_use = "call connect or build"]
pub struct ClientBuilder {
    endpoints: String,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    ca_pem: Option<Vec<u8>>,
    /// Certificate and key.
    identity_files: Option<(PathBuf, PathBuf)>,
    /// Nodes of which another node has told.
    learned: OnceLock<Vec<String>>,
    connect_timeout: Duration,
    keepalive: Option<Duration>,
    stream_window: u32,
    connection_window: u32,
    max_message_bytes: usize,
    pub(crate) give_up_after: Option<Duration>,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("endpoints", &self.endpoints)
            .field(
                "has_token",
                &(self.token.is_some() || self.token_file.is_some()),
            )
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// Sends this token with every call.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sends the token that this file holds; read again for every connection.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token_file = Some(path.into());
        self
    }

    /// Trusts the certificate authorities in this PEM file.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Trusts these certificate authorities, in PEM form.
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// Shows the certificate of the first PEM file, whose key is in the second, to nodes that ask for
    /// one; `pgcapture cert issue NAME --client` makes both. Read again for every stream.
    pub fn identity_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity_files = Some((cert.into(), key.into()));
        self
    }

    /// How long a connection may take to come up (5 s).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The silence after which a connection is probed (20 s); `None` = never.
    pub fn keepalive(mut self, interval: Option<Duration>) -> Self {
        self.keepalive = interval;
        self
    }

    /// Flow-control windows in bytes (4 MiB for a stream, 8 MiB for its connection).
    pub fn windows(mut self, stream_bytes: u32, connection_bytes: u32) -> Self {
        self.stream_window = stream_bytes;
        self.connection_window = connection_bytes;
        self
    }

    /// The largest message that is accepted, in bytes (256 MiB).
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// Ends a stream that could not reconnect for this long; without it streams try for ever.
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = Some(limit);
        self
    }

    /// Makes the client without connecting.
    ///
    /// # Errors
    /// An address is no address, or a file cannot be read.
    pub fn build(self) -> Result<Client, Error> {
        self.endpoints()?;
        self.authorization()?;
        Ok(Client {
            inner: Arc::new(self),
        })
    }

    /// Makes the client, sees whether a node answers, and learns from it where the others are.
    ///
    /// # Errors
    /// As [`build`](Self::build), or no node could be reached, or none takes the certificate.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.build()?;
        let mut last = Error::Config("no endpoint".to_owned());
        for endpoint in client.inner.endpoints()? {
            match connect(&endpoint).await {
                Ok(channel) => match members::learn(&client, channel).await {
                    Ok(learned) => {
                        client.inner.learned.get_or_init(|| learned);
                        return Ok(client);
                    }
                    // It does not take our certificate, which the connection does not tell.
                    Err(status) => last = trust::not_opened(&endpoint, status),
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn addresses(&self) -> Result<Vec<String>, Error> {
        let mut scheme = "http";
        let mut addresses = Vec::new();
        for part in self
            .endpoints
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let host = match part.split_once("://") {
                Some((own @ ("http" | "https"), host)) => {
                    scheme = own;
                    host
                }
                Some((other, _)) => {
                    return Err(Error::Config(format!("{other} is neither http nor https")));
                }
                None => part,
            };
            addresses.push(format!("{scheme}://{host}"));
        }
        if addresses.is_empty() {
            return Err(Error::Config(
                "no endpoint; write for example http://n1:7700".to_owned(),
            ));
        }
        let learned = self.learned.get().map_or(&[][..], Vec::as_slice);
        Ok(members::join(addresses, learned))
    }

    /// How many of the endpoints were given; those that were learned come after them.
    pub(crate) fn given_count(&self) -> usize {
        let parts = self.endpoints.split(',');
        parts.filter(|part| !part.trim().is_empty()).count()
    }

    /// One prepared endpoint per node. Reads the CA file.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        let tls = self.tls()?;
        let build = |address: String| {
            let bad = |_| Error::Config(format!("{address} is no address such as http://n1:7700"));
            let secure = address.starts_with("https://");
            let mut endpoint = Endpoint::from_shared(address.clone())
                .map_err(bad)?
                .connect_timeout(self.connect_timeout)
                .tcp_nodelay(true)
                .initial_stream_window_size(self.stream_window)
                .initial_connection_window_size(self.connection_window)
                .max_frame_size(FRAME_BYTES_MAX)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
            if let Some(interval) = self.keepalive {
                endpoint = endpoint.http2_keep_alive_interval(interval);
            }
            if secure {
                let unusable = |_| Error::Config("the certificates cannot be used".to_owned());
                endpoint = endpoint.tls_config(tls.clone()).map_err(unusable)?;
            }
            Ok(endpoint)
        };
        self.addresses()?.into_iter().map(build).collect()
    }

    fn tls(&self) -> Result<ClientTlsConfig, Error> {
        let pem = match &self.ca_file {
            Some(path) => Some(read(path)?),
            None => self.ca_pem.clone(),
        };
        let mut tls = ClientTlsConfig::new().with_enabled_roots();
        if let Some((cert, key)) = &self.identity_files {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(match pem {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls,
        })
    }

    /// The authorization header, from the token or its file.
    pub(crate) fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let token = match &self.token_file {
            Some(path) => Some(String::from_utf8_lossy(&read(path)?).trim().to_owned()),
            None => self.token.clone(),
        };
        let Some(token) = token else { return Ok(None) };
        let bad = |_| Error::Config("the token is no header value".to_owned());
        let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(bad)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    pub(crate) fn message_limit(&self) -> usize {
        self.max_message_bytes
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.clone(),
        source,
    })
}

/// Connects to one node.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    let connected = endpoint.connect().await;
    connected.map_err(|source| trust::not_connected(endpoint, source))
}

impl Client {
    /// Begins a client for these nodes, separated by commas: `https://n1:7700,n2:7700`. The
    /// scheme of an address holds for those after it; without one it is `http`.
    pub fn builder(endpoints: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            endpoints: endpoints.into(),
            token: None,
            token_file: None,
            ca_file: None,
            ca_pem: None,
            identity_files: None,
            learned: OnceLock::new(),
            connect_timeout: CONNECT_TIMEOUT,
            keepalive: Some(KEEPALIVE_INTERVAL),
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_message_bytes: MAX_MESSAGE_BYTES,
            give_up_after: None,
        }
    }

    /// A consumer by name. The gateway keeps its position under this name.
    #[must_use]
    pub fn consumer(&self, name: impl Into<String>) -> Consumer {
        Consumer {
            client: self.clone(),
            name: name.into(),
        }
    }

    /// A stream without a consumer's name: its uri is the stream's name alone.
    pub fn stream(&self, name: impl Into<String>) -> Subscribe {
        Subscribe::new(
            self.clone(),
            Options {
                stream: name.into(),
                ..Options::default()
            },
        )
    }

    /// Asks for rows that exist already, on a stream that brings the changes.
    pub fn dump(&self, stream: impl Into<String>) -> StartDump {
        StartDump::new(self.clone(), stream.into())
    }

    /// A dump that was started before, by its id, such as `d-41`.
    #[must_use]
    pub fn find_dump(&self, id: impl Into<String>) -> DumpHandle {
        DumpHandle::new(self.clone(), id.into())
    }

    pub(crate) fn settings(&self) -> &ClientBuilder {
        &self.inner
    }
}

/// A named consumer of a cluster's streams.
#[derive(Clone, Debug)]
pub struct Consumer {
    client: Client,
    name: String,
}

impl Consumer {
    /// One of the cluster's streams; its uri is `stream/consumer`.
    pub fn stream(&self, name: impl Into<String>) -> Subscribe {
        let options = Options {
            stream: name.into(),
            consumer: Some(self.name.clone()),
            ..Options::default()
        };
        Subscribe::new(self.client.clone(), options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_holds_for_the_addresses_after_it() {
        let addresses = |text: &str| Client::builder(text).addresses();
        assert_eq!(
            addresses("https://n1:7700, n2:7700").unwrap(),
            ["https://n1:7700", "https://n2:7700"]
        );
        assert_eq!(addresses("n1:7700").unwrap(), ["http://n1:7700"]);
        assert!(addresses("").is_err() && addresses("ftp://n1").is_err());
    }

    #[test]
    fn tokens_stay_out_of_debug_output() {
        let client = Client::builder("n1:7700").token("s3cret").build().unwrap();
        assert!(!format!("{client:?}").contains("s3cret"));
        let header = client.settings().authorization().unwrap().unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer s3cret");
        assert!(!format!("{header:?}").contains("s3cret"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Client::builder("n1:7700")
            .token_file("/no/such/token")
            .build()
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot read /no/such/token");
        let error = Client::builder("https://n1:7700")
            .identity_files("/no/such/cert", "/no/such/key")
            .build()
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot read /no/such/cert");
    }
}
