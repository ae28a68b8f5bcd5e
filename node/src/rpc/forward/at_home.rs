//! Orders to the node that keeps a subscription, also when that node is gone.
//!
//! The rule is that of streams: a node that refuses connections is gone, and one that is silent is taken
//! for gone after a while. Then this node becomes the home instead and does what was ordered.

use pgcapture_engine::cluster::SubscriptionId;
use pgcapture_proto::admin::v1::admin_client::AdminClient;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{admin::ForwardingAdmin, deadline, is_away};
use crate::{
    homes::Held,
    peers::PeerChannel,
    rpc::capture::forward::{Attempts, Next, lost_of, unplaced},
};

/// Where an order was, or is to be, done.
pub(super) enum AtHome<T, R> {
    /// The home has done it.
    Answered(Response<R>),
    /// This node does it; what it took over from another node stays here while the second is kept.
    Here(Request<T>, Option<Held>),
}

impl ForwardingAdmin {
    /// Has the home of a subscription do what is ordered. One that is gone is replaced by this node if the
    /// order will change something; else this node answers from what is agreed on.
    pub(super) async fn at_home<T, R, F>(
        &self,
        request: Request<T>,
        (id, will_change): (&SubscriptionId, bool),
        call: impl Fn(AdminClient<PeerChannel>, Request<T>) -> F,
    ) -> Result<AtHome<T, R>, Status>
    where
        T: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let (began, left) = (Instant::now(), deadline::of(request.metadata()));
        let mut attempts = Attempts::new();
        let mut has_replaced = false;
        while let Some(home) = self.forward.home(&request, id) {
            let mut asked = Request::new(request.get_ref().clone());
            if let Some(left) = left {
                asked.set_timeout(left.saturating_sub(began.elapsed()));
            }
            let away = match self.forward.admin(&home, asked, &call).await {
                Err(status) if is_away(&status) => status,
                answer => return answer.map(AtHome::Answered),
            };
            if !will_change {
                return Ok(AtHome::Here(request, None));
            }
            match attempts.on_lost(lost_of(&away), rand::random()) {
                Next::Replace => {
                    let (node, subscription) = (&home.name, &id.consumer);
                    tracing::info!(node, subscription, "replaces a home that is gone");
                    let replaced = self.homes.replace(id, &home.name).await;
                    replaced.map_err(|error| unplaced(&error))?;
                    has_replaced = true;
                }
                Next::Pause(pause) => tokio::time::sleep(pause).await,
                Next::Fail => return Err(away),
            }
        }
        let held = if has_replaced {
            self.homes.place_forwarded(id).await
        } else {
            None
        };
        Ok(AtHome::Here(request, held))
    }
}
