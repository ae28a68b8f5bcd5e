//! The connection of a command to its node: address, TLS, token, time-outs.

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

use super::{Failure, Global};

/// Largest answer that a command takes; rows can be as large as the node's limit for them.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// A dead peer is noticed within this time on an open stream.
const KEEPALIVE: Duration = Duration::from_secs(10);

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
    let endpoint = endpoint(global)?.timeout(global.timeout.0);
    let channel = connect(global, &endpoint).await?;
    let client = AdminClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the administration of the cluster. Every call ends within `--timeout`.
pub(super) async fn cluster(global: &Global) -> Result<ClusterClient<Authorised>, Failure> {
    let endpoint = endpoint(global)?.timeout(global.timeout.0);
    let channel = connect(global, &endpoint).await?;
    let client = ClusterClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the administration of replicas. Every call ends within `--timeout`.
pub(super) async fn replicas(global: &Global) -> Result<ReplicasClient<Authorised>, Failure> {
    let endpoint = endpoint(global)?.timeout(global.timeout.0);
    let channel = connect(global, &endpoint).await?;
    let client = ReplicasClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the administration of dumps. Every call ends within `--timeout`.
pub(super) async fn dumps(global: &Global) -> Result<DumpsClient<Authorised>, Failure> {
    let endpoint = endpoint(global)?.timeout(global.timeout.0);
    let channel = connect(global, &endpoint).await?;
    let client = DumpsClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to watch a dump; the stream has no time-out.
pub(super) async fn dump_watch(global: &Global) -> Result<DumpsClient<Authorised>, Failure> {
    let channel = connect(global, &endpoint(global)?).await?;
    let client = DumpsClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// Connects to the stream API; streams have no time-out.
pub(super) async fn gateway(global: &Global) -> Result<DbLogGatewayClient<Authorised>, Failure> {
    let channel = connect(global, &endpoint(global)?).await?;
    let client = DbLogGatewayClient::with_interceptor(channel, token(global)?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

async fn connect(global: &Global, endpoint: &Endpoint) -> Result<Channel, Failure> {
    endpoint.connect().await.map_err(|error| {
        let mut text = format!("cannot reach {}: {error}", global.endpoint);
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Failure::new(6, &codes::node::UNREACHABLE, text)
    })
}

fn endpoint(global: &Global) -> Result<Endpoint, Failure> {
    let text = global.endpoint.trim();
    let needs_tls = global.ca.is_some() || global.cert.is_some();
    let url = match text.split_once("://") {
        Some(("http" | "https", _)) => text.to_owned(),
        Some((scheme, _)) => {
            return Err(Failure::usage(format!(
                "\"{scheme}\" is no scheme of an endpoint; use host:port, http://… or https://…"
            )));
        }
        None if needs_tls => format!("https://{text}"),
        None => format!("http://{text}"),
    };
    let bad = |error: tonic::transport::Error| {
        Failure::usage(format!("endpoint \"{text}\" cannot be used: {error}"))
    };
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(bad)?
        .connect_timeout(global.timeout.0.min(Duration::from_secs(5)))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .tcp_nodelay(true);
    if !url.starts_with("https://") {
        return Ok(endpoint);
    }
    let mut tls = ClientTlsConfig::new();
    if let Some(ca) = &global.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let (Some(cert), Some(key)) = (&global.cert, &global.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    endpoint.tls_config(tls).map_err(bad)
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
