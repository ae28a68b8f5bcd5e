//! The gRPC services: each unwraps a request, calls a handle, and maps the error.

pub mod auth;

pub mod capture;

pub mod codec;

pub mod admin;

pub mod liveness;

pub mod replicas;

pub mod dumps;

pub mod dump_control;

pub mod agent;

pub mod forward;

pub mod cluster;

pub mod raft;

pub mod peer_log;

pub mod peer_ranges;

use pgcapture_actors::dump::DumpError;
use pgcapture_engine::codes;
use pgcapture_proto::status::status;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::sources::SourceError;

/// Runs an order that changes something to its end, even when the caller hangs up.
async fn order<T, E>(
    orders: &TaskTracker,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, Status>
where
    T: Send + 'static,
    E: IntoStatus + Send + 'static,
{
    let done = orders.spawn(work).await.map_err(|error| {
        let failed = &codes::node::STORE_FAILED;
        let what = format!("the order did not end: {error}");
        status(failed.code, what, failed.next)
    })?;
    done.map_err(|error| error.into_status())
}

/// An error of a handle that a client may see.
trait IntoStatus {
    fn into_status(self) -> Status;
}

impl IntoStatus for SourceError {
    fn into_status(self) -> Status {
        status(self.explanation().code, &self, self.next())
    }
}

impl IntoStatus for DumpError {
    fn into_status(self) -> Status {
        let explanation = self.explanation;
        status(explanation.code, &self, explanation.next)
    }
}
