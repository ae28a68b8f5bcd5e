//! Finds out who serves a Capture stream: this node, or the home of its subscription.

use std::time::Duration;

use http::HeaderValue;
use pgcapture_actors::{
    cursors::SubscriptionId,
    gateway::{CaptureError, Deliveries, GatewayHandle, GatewayLimits},
};
use pgcapture_engine::capture_options::CaptureOptions;
use pgcapture_proto::pgcapture::CaptureInit;
use tonic::Status;

use super::{
    capture_status,
    client::{Client, SharedClient},
    forward::{self, Attempts, Forwarded, Lost, Next, elsewhere, home_lost, unplaced},
};
use crate::{
    homes::{Held, Homes, Placed},
    resolver::subscription_of,
};

/// What it takes to open a stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) gateway: GatewayHandle,
    pub(super) homes: Homes,
    /// The deadline that the client set.
    pub(super) timeout: Option<HeaderValue>,
}

/// Who serves it.
pub(super) enum Opened {
    Here(Deliveries, Option<Held>),
    There(Box<Forwarded>),
}

impl Opening {
    /// Reads init and opens the stream where it belongs.
    pub(super) async fn open(
        self,
        mut client: Client,
        is_forwarded: bool,
    ) -> Result<Opened, Status> {
        let deadline: Duration = GatewayLimits::default().init_deadline;
        let init = tokio::time::timeout(deadline, client.init()).await;
        let init = init.map_err(|_| capture_status(&CaptureError::InitTooLate(deadline)))?;
        let Some(id) = self.subscription(init.as_ref()) else {
            return self.here(client, None).await;
        };
        if is_forwarded {
            let held = self.homes.place_forwarded(&id).await;
            return self.here(client, Some(held.ok_or_else(elsewhere)?)).await;
        }
        self.find(id, client.share(), Attempts::new()).await
    }

    /// Opens a stream anew that was lost before anything was delivered.
    pub(super) async fn open_again(
        self,
        forwarded: Forwarded,
        lost: Lost,
    ) -> Result<Opened, Status> {
        let Forwarded {
            node,
            id,
            client,
            mut attempts,
            ..
        } = forwarded;
        self.after(&id, &node, (lost, &mut attempts)).await?;
        self.find(id, client, attempts).await
    }

    /// The subscription whose home must serve the stream; `None` when any node can: a peek leaves
    /// no trace, and what is wrong is refused by this node's gateway.
    fn subscription(&self, init: Option<&CaptureInit>) -> Option<SubscriptionId> {
        let init = init?;
        let parameters = init.parameters.clone().unwrap_or_default();
        let (options, _) = CaptureOptions::parse(&parameters).ok()?;
        let id = subscription_of(&init.uri);
        (!options.peek && self.homes.knows(&id)).then_some(id)
    }

    async fn here(&self, client: Client, held: Option<Held>) -> Result<Opened, Status> {
        let requests = Box::new(client.requests());
        let deliveries = self.gateway.capture(requests).await;
        let deliveries = deliveries.map_err(|error| capture_status(&error))?;
        Ok(Opened::Here(deliveries, held))
    }

    async fn find(
        self,
        id: SubscriptionId,
        client: SharedClient,
        mut attempts: Attempts,
    ) -> Result<Opened, Status> {
        loop {
            let placed = self.homes.place(&id).await;
            let (node, address) = match placed.map_err(|error| unplaced(&error))? {
                Placed::Here(held) => {
                    let client = client.take().ok_or_else(elsewhere)?;
                    return self.here(client, Some(held)).await;
                }
                Placed::There { node, address } => (node, address),
            };
            let (peers, me) = (self.homes.peers(), self.homes.node());
            let sent = (self.timeout.as_ref(), &client);
            match forward::open(peers, &address, me, sent).await {
                Ok(response) => {
                    let stopping = self.homes.stop().clone().cancelled_owned();
                    let forwarded =
                        Forwarded::new((id, node), (client, attempts), response, stopping);
                    return Ok(Opened::There(Box::new(forwarded)));
                }
                Err(_) if !client.is_unspent() => return Err(home_lost(&node, "not reached")),
                Err(lost) => self.after(&id, &node, (lost, &mut attempts)).await?,
            }
        }
    }

    /// Does what the loss of a node asks for.
    async fn after(
        &self,
        id: &SubscriptionId,
        node: &str,
        (lost, attempts): (Lost, &mut Attempts),
    ) -> Result<(), Status> {
        match attempts.on_lost(lost, rand::random()) {
            Next::Replace => {
                tracing::info!(
                    node,
                    subscription = id.consumer,
                    "replaces a home that is gone"
                );
                let replaced = self.homes.replace(id, node).await;
                replaced.map_err(|error| unplaced(&error))
            }
            Next::Pause(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            Next::Fail => Err(home_lost(node, "it was tried again and again")),
        }
    }
}
