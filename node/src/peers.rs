//! The way to other nodes: one connection each, shared by everything that talks to them.
//!
//! A connection is made when it is first used and made again by itself when it broke. Peers are
//! reached like any node: over TLS when this node serves it, with the same token. Knows addresses
//! only; who is behind one is the business of whoever asks.

mod routes;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use pgcapture_engine::codes;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use self::routes::Routes;
pub(crate) use self::routes::VARIABLE as ROUTES_VARIABLE;
use crate::{
    config::{Config, read_secret},
    tls,
};

/// A peer that does not answer a connection within this time is away for now.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// A silent peer is asked for a sign of life this often, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// What a peer may send on one stream before it is read. At 1 ms between nodes that is 1 GB/s.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The same for all streams of a connection: so much that a thousand consumers that read nothing hold
/// up no other stream.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// A channel that carries the token.
pub type PeerChannel = InterceptedService<Channel, PeerToken>;

/// Connections to other nodes. Cheap to clone. The default has neither TLS nor a token.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tls: Option<ClientTlsConfig>,
    token: PeerToken,
    routes: Routes,
    channels: Mutex<BTreeMap<String, Channel>>,
}

/// Adds the token to every request.
#[derive(Clone, Debug, Default)]
pub struct PeerToken(Option<MetadataValue<Ascii>>);

impl Interceptor for PeerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Peers {
    /// Reads what connections need; connects nowhere.
    ///
    /// # Errors
    ///
    /// When a file or the token cannot be read, or a detour of `pgcapture dev` is none.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let token = config.auth.token.as_ref().map(read_secret).transpose()?;
        let token = token.map(|token| bearer(&token)).transpose()?;
        Ok(Self {
            inner: Arc::new(Inner {
                tls: tls::client(config)?,
                token: PeerToken(token),
                routes: Routes::from_environment()?,
                channels: Mutex::default(),
            }),
        })
    }

    /// Returns the connection to `address` (`host:port`). It is made by the first call over it.
    ///
    /// # Errors
    ///
    /// When the address is none.
    pub fn channel(&self, address: &str) -> Result<PeerChannel, tonic::transport::Error> {
        // A panic under the lock leaves the map as it was: go on.
        let channels = self.inner.channels.lock();
        let mut channels = channels.unwrap_or_else(PoisonError::into_inner);
        let channel = if let Some(channel) = channels.get(address) {
            channel.clone()
        } else {
            let channel = self.connect(address)?;
            channels.insert(address.to_owned(), channel.clone());
            channel
        };
        let token = self.inner.token.clone();
        Ok(InterceptedService::new(channel, token))
    }

    /// Forgets the connection to a node that is gone. The second call does nothing.
    pub fn forget(&self, address: &str) {
        let channels = self.inner.channels.lock();
        let mut channels = channels.unwrap_or_else(PoisonError::into_inner);
        channels.remove(address);
    }

    fn connect(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let scheme = self.inner.tls.as_ref().map_or("http", |_| "https");
        let target = self.inner.routes.target(address);
        let target = target.unwrap_or_else(|error| {
            tracing::error!(%error, address, "the detour cannot be found; going straight");
            address.to_owned()
        });
        let endpoint = Endpoint::from_shared(format!("{scheme}://{target}"))?
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .tcp_nodelay(true);
        let endpoint = match &self.inner.tls {
            Some(tls) => endpoint.tls_config(tls.clone())?,
            None => endpoint,
        };
        Ok(endpoint.connect_lazy())
    }
}

fn bearer(token: &str) -> anyhow::Result<MetadataValue<Ascii>> {
    let code = codes::config::SECRET.code;
    let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
    let mut value = value.with_context(|| format!("{code}: [auth] token is no header value"))?;
    value.set_sensitive(true);
    Ok(value)
}
