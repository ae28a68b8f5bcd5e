//! The gRPC listener: streams, administration, health and reflection on one port.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Context as _;
use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use pgcapture_engine::codes;
use pgcapture_proto::{FILE_DESCRIPTOR_SET, admin::v1::admin_server::AdminServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    config::{Config, read_secret},
    rpc::{
        admin::{self, AdminService},
        auth::TokenCheck,
        capture::{self, CaptureService},
    },
};

/// The largest administration request; a definition of a source has some KiB.
const ADMIN_REQUEST_BYTES_MAX: usize = 1 << 20;

/// What the listener needs to be protected; read before anything starts.
pub(super) struct Credentials {
    tls: Option<ServerTlsConfig>,
    check: TokenCheck,
}

impl Credentials {
    /// Reads the files and the token.
    pub(super) fn read(config: &Config) -> anyhow::Result<Self> {
        let token = config.auth.token.as_ref().map(read_secret).transpose()?;
        let tls = match (&config.tls.cert, &config.tls.key) {
            (Some(cert), Some(key)) => {
                let identity = Identity::from_pem(read(cert)?, read(key)?);
                let mut tls = ServerTlsConfig::new().identity(identity);
                if let Some(ca) = &config.tls.client_ca {
                    tls = tls.client_ca_root(Certificate::from_pem(read(ca)?));
                }
                Some(tls)
            }
            _ => None,
        };
        Ok(Self {
            tls,
            check: TokenCheck::new(token.as_deref()),
        })
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let code = codes::config::TLS.code;
    fs::read(path).with_context(|| format!("{code}: cannot read {}", path.display()))
}

/// What the health service says.
#[derive(Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

impl Health {
    pub(super) async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    pub(super) async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in ["", capture::SERVICE_NAME, admin::SERVICE_NAME] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Serves until `stop`. Health answers without a token: probes have none.
pub(super) async fn serve(
    listener: TcpListener,
    admin: AdminService,
    credentials: Credentials,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, Health, Task<()>)> {
    let address = listener.local_addr()?;
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health { reporter };
    health.not_serving().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let check = credentials.check;
    let mut server = capture::configure(Server::builder());
    if let Some(tls) = credentials.tls {
        let code = codes::config::TLS.code;
        let configured = server.tls_config(tls);
        server = configured.with_context(|| format!("{code}: TLS cannot be set up"))?;
    }
    let capture = CaptureService::new(admin.gateway.clone());
    let admin = AdminServer::new(admin).max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    let router = server
        .add_service(health_service)
        .add_service(InterceptedService::new(capture, check.clone()))
        .add_service(InterceptedService::new(admin, check.clone()))
        .add_service(InterceptedService::new(
            reflection().build_v1()?,
            check.clone(),
        ))
        .add_service(InterceptedService::new(
            reflection().build_v1alpha()?,
            check,
        ));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let task = spawn(TaskKind::Server, "grpc", async move {
        let served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the gRPC listener failed");
        }
    });
    Ok((address, health, task))
}
