//! The connection of a command to its node: addresses, TLS, token, time-outs.
//!
//! With several addresses each is tried once, in order, until one takes the connection. A node that
//! dies afterwards ends the command: only whoever asked knows whether asking again is harmless. `tail`
//! knows.

mod probe;

use std::{fs, path::Path, time::Duration};

use pgcapture_engine::codes;
use pgcapture_proto::{
    admin::v1::{
        admin_client::AdminClient, cluster_client::ClusterClient, dumps_client::DumpsClient,
        replicas_client::ReplicasClient,
    },
    pgcapture::db_log_gateway_client::DbLogGatewayClient,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use self::probe::Shown;
use super::{Failure, Global};
use crate::tls;

/// Largest answer that a command takes; rows can be as large as the node's limit for them.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// A dead peer is noticed within this time on an open stream.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// An address that takes no connection within this time is left for the next one.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The most addresses of `--endpoint`. Each may cost [`CONNECT_MAX`]; no cluster has more that vote.
const ENDPOINTS_MAX: usize = 16;

/// Where https is without a port.
const HTTPS_PORT: u16 = 443;

/// A channel that carries the token.
pub(super) type Authorised = InterceptedService<Channel, Token>;

/// Adds the token to every request.
#[derive(Clone, Debug)]
pub(super) struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Connects to the administration API. Every call ends within `--timeout`.
pub(super) async fn admin(global: &Global) -> Result<AdminClient<Authorised>, Failure> {
    let channel = connect(global, Some(global.timeout.0)).await?;
    let client = AdminClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the administration of the cluster. Every call ends within `--timeout`.
pub(super) async fn cluster(global: &Global) -> Result<ClusterClient<Authorised>, Failure> {
    let channel = connect(global, Some(global.timeout.0)).await?;
    let client = ClusterClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the administration of replicas. Every call ends within `--timeout`.
pub(super) async fn replicas(global: &Global) -> Result<ReplicasClient<Authorised>, Failure> {
    let channel = connect(global, Some(global.timeout.0)).await?;
    let client = ReplicasClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the administration of dumps. Every call ends within `--timeout`.
pub(super) async fn dumps(global: &Global) -> Result<DumpsClient<Authorised>, Failure> {
    let channel = connect(global, Some(global.timeout.0)).await?;
    let client = DumpsClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to watch a dump; the stream has no time-out.
pub(super) async fn dump_watch(global: &Global) -> Result<DumpsClient<Authorised>, Failure> {
    let channel = connect(global, None).await?;
    let client = DumpsClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the stream API of one node; streams have no time-out.
pub(super) async fn gateway(
    global: &Global,
    place: &Place,
) -> Result<DbLogGatewayClient<Authorised>, Failure> {
    let channel = place.connect(None).await?;
    let client = DbLogGatewayClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the first endpoint that takes the connection.
async fn connect(global: &Global, limit: Option<Duration>) -> Result<Channel, Failure> {
    let mut failures = Vec::new();
    for place in places(global)? {
        match place.connect(limit).await {
            Ok(channel) => return Ok(channel),
            Err(failure) => failures.push(failure),
        }
    }
    Err(together(failures))
}

/// What is said when no endpoint could be used: the first failure, with the texts of all.
fn together(failures: Vec<Failure>) -> Failure {
    let texts: Vec<String> = failures.iter().map(|it| it.text.clone()).collect();
    let mut failures = failures.into_iter();
    let mut first = failures
        .next()
        .unwrap_or_else(|| Failure::usage("no endpoint"));
    first.text = texts.join("\n  ");
    first
}

/// One of the nodes that may be asked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As it was given.
    pub(super) name: String,
    endpoint: Endpoint,
    shown: Option<Shown>,
}

impl Place {
    /// Connects; every call over it ends within `limit`.
    async fn connect(&self, limit: Option<Duration>) -> Result<Channel, Failure> {
        let endpoint = match limit {
            Some(limit) => self.endpoint.clone().timeout(limit),
            None => self.endpoint.clone(),
        };
        let channel = endpoint.connect().await.map_err(|error| {
            let mut text = format!("cannot reach {}: {error}", self.name);
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            match tls::distrust(&error) {
                Some(_) => Failure::new(5, &codes::config::UNTRUSTED, text),
                None => Failure::new(6, &codes::node::UNREACHABLE, text),
            }
        })?;
        self.check_trust().await?;
        Ok(channel)
    }

    /// Fails when the node does not take our certificate, which the connection itself does not tell.
    async fn check_trust(&self) -> Result<(), Failure> {
        let uri = self.endpoint.uri().clone();
        let (Some(shown), Some(host)) = (self.shown.clone(), uri.host().map(str::to_owned)) else {
            return Ok(());
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(HTTPS_PORT);
        let asked = tokio::task::spawn_blocking(move || probe::distrust(&host, port, &shown)).await;
        let Some(error) = asked.ok().flatten() else {
            return Ok(());
        };
        let said = tls::distrust(&error).unwrap_or_else(|| error.to_string());
        let text = format!("{}: {said}", self.name);
        Err(Failure::new(5, &codes::config::UNTRUSTED, text))
    }
}

/// Reads `--endpoint`: addresses separated by commas; the scheme of one holds for those after it.
pub(super) fn places(global: &Global) -> Result<Vec<Place>, Failure> {
    places_with(global, &Files::read(global)?)
}

fn places_with(global: &Global, files: &Files) -> Result<Vec<Place>, Failure> {
    let shown = files.shown();
    let has_tls = files.ca.is_some() || files.identity.is_some();
    let mut scheme = if has_tls { "https" } else { "http" };
    let mut places = Vec::new();
    let names = global.endpoint.split(',').map(str::trim);
    for name in names.filter(|name| !name.is_empty()) {
        let address = match name.split_once("://") {
            Some((own @ ("http" | "https"), address)) => {
                scheme = own;
                address
            }
            Some((other, _)) => {
                return Err(Failure::usage(format!(
                    "\"{other}\" is no scheme of an endpoint; use host:port, http://… or https://…"
                )));
            }
            None => name,
        };
        let is_https = scheme == "https";
        places.push(Place {
            name: name.to_owned(),
            endpoint: endpoint(
                global,
                &format!("{scheme}://{address}"),
                is_https.then_some(files),
            )?,
            shown: shown.clone().filter(|_| is_https),
        });
    }
    match places.len() {
        0 => Err(Failure::usage("--endpoint names no node")),
        count if count > ENDPOINTS_MAX => Err(Failure::usage(format!(
            "--endpoint names {count} nodes; {ENDPOINTS_MAX} are enough"
        ))),
        _ => Ok(places),
    }
}

fn endpoint(global: &Global, url: &str, files: Option<&Files>) -> Result<Endpoint, Failure> {
    let bad = |error: tonic::transport::Error| {
        Failure::usage(format!("endpoint \"{url}\" cannot be used: {error}"))
    };
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(bad)?
        .connect_timeout(global.timeout.0.min(CONNECT_MAX))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .tcp_nodelay(true);
    match files {
        Some(files) => endpoint.tls_config(files.tls()).map_err(bad),
        None => Ok(endpoint),
    }
}

/// What the files of `--ca`, `--cert` and `--key` hold, read once for all addresses.
struct Files {
    ca: Option<Vec<u8>>,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Files {
    fn read(global: &Global) -> Result<Self, Failure> {
        let ca = global.ca.as_deref().map(read).transpose()?;
        let identity = match (&global.cert, &global.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Self { ca, identity })
    }

    fn tls(&self) -> ClientTlsConfig {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &self.ca {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        if let Some((cert, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        tls
    }

    /// What is shown and trusted; `None` when nothing is trusted.
    fn shown(&self) -> Option<Shown> {
        Some(Shown {
            ca: self.ca.clone()?,
            identity: self.identity.clone(),
        })
    }
}

fn token(global: &Global) -> Result<Token, Failure> {
    let Some(file) = &global.token_file else {
        return Ok(Token(None));
    };
    let text = read(file)?;
    let text = String::from_utf8_lossy(&text);
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {}", text.trim()).parse().map_err(|_| {
            let text = format!("{} holds no token", file.display());
            Failure::new(5, &codes::node::DENIED, text)
        })?;
    value.set_sensitive(true);
    Ok(Token(Some(value)))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn global(endpoint: &str) -> Global {
        Cli::parse_from(["pgcapture", "source", "ls", "--endpoint", endpoint]).global
    }

    fn urls(endpoint: &str) -> Vec<String> {
        let places = places(&global(endpoint)).unwrap();
        let urls = places.iter().map(|place| place.endpoint.uri().to_string());
        urls.collect()
    }

    #[test]
    fn several_addresses_are_separated_by_commas() {
        assert_eq!(
            urls("n1:7700, n2:7700,"),
            ["http://n1:7700/", "http://n2:7700/"]
        );
        let secure = urls("https://n1:7700,n2:7700");
        assert_eq!(secure, ["https://n1:7700/", "https://n2:7700/"]);
        for bad in ["", ",", "ftp://n1:7700", "n1 n2"] {
            assert_eq!(places(&global(bad)).map(drop).unwrap_err().exit, 2, "{bad}");
        }
        let many = vec!["n:1"; ENDPOINTS_MAX + 1].join(",");
        assert_eq!(places(&global(&many)).map(drop).unwrap_err().exit, 2);
    }

    #[test]
    fn certificates_are_read_once_for_all_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("ca.pem");
        let key = rcgen::generate_simple_self_signed(["n1".to_owned()]).unwrap();
        fs::write(&authority, key.cert.pem()).unwrap();
        let mut global = global("n1:7700,n2:7700,n3:7700");
        global.ca = Some(authority.clone());
        let files = Files::read(&global).unwrap();
        fs::remove_file(&authority).unwrap();
        let places = places_with(&global, &files).unwrap();
        assert_eq!(places.len(), 3);
        assert!(places.iter().all(|place| place.shown.is_some()));
        let failure = super::places(&global).map(drop).unwrap_err();
        assert!(failure.text.contains("cannot read"), "{failure:?}");
    }

    #[tokio::test]
    async fn the_next_address_is_tried_and_all_failures_are_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let both = format!("{closed},{open}");
        assert!(connect(&global(&both), None).await.is_ok());
        drop(listener);
        let failure = connect(&global(&both), None).await.unwrap_err();
        assert_eq!(failure.exit, 6);
        for address in [closed, open] {
            assert!(failure.text.contains(&address.to_string()), "{failure:?}");
        }
    }
}
