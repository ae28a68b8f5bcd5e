//! What a consumer's uri stands for: `stream` or `stream/consumer`.
//!
//! Looks into the agreed state, and hands out the log by its route, so that an open session follows it
//! from node to node. Owns nothing.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pgcapture_actors::{
    cursors::SubscriptionId,
    gateway::{ResolveError, Resolved, SourceResolver},
};
use pgcapture_engine::cluster::State;
use tokio::sync::watch;

use crate::routes::Routes;

/// How long a new session waits for a log whose agent is just taken over; then its client comes again.
const READY_MAX: Duration = Duration::from_secs(3);

/// Resolves uris against the sources of the cluster.
#[derive(Clone, Debug)]
pub struct StreamResolver {
    state: watch::Receiver<Arc<State>>,
    routes: Routes,
}

impl StreamResolver {
    /// Makes a resolver over the agreed state and the routes to logs.
    #[must_use]
    pub const fn new(state: watch::Receiver<Arc<State>>, routes: Routes) -> Self {
        Self { state, routes }
    }
}

/// Splits a uri into the subscription that it names. A uri that names only a stream names the
/// subscription of the same name.
#[must_use]
pub fn subscription_of(uri: &str) -> SubscriptionId {
    let (stream, consumer) = match uri.split_once('/') {
        Some((stream, consumer)) if !consumer.is_empty() => (stream, consumer),
        Some((stream, _)) => (stream, stream),
        None => (uri, uri),
    };
    SubscriptionId {
        stream: stream.to_owned(),
        consumer: consumer.to_owned(),
    }
}

/// Returns the uri that names a subscription.
#[must_use]
pub fn uri_of(id: &SubscriptionId) -> String {
    if id.stream == id.consumer {
        id.stream.clone()
    } else {
        format!("{}/{}", id.stream, id.consumer)
    }
}

#[async_trait]
impl SourceResolver for StreamResolver {
    async fn resolve(&self, uri: &str) -> Result<Resolved, ResolveError> {
        let subscription = subscription_of(uri);
        let state = Arc::clone(&self.state.borrow());
        let source = state.source_of_stream(&subscription.stream);
        let source = source.ok_or_else(|| ResolveError::Unknown {
            uri: uri.to_owned(),
            known: state.known_streams(),
        })?;
        let log = self.routes.log(&source.name);
        let ready = log.ready(READY_MAX).await;
        ready.map_err(|reason| ResolveError::Unavailable {
            stream: subscription.stream.clone(),
            reason,
        })?;
        Ok(Resolved { subscription, log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_and_its_subscription_are_the_same_thing() {
        for (uri, stream, consumer) in [
            ("orders", "orders", "orders"),
            ("orders/search", "orders", "search"),
            ("orders/a/b", "orders", "a/b"),
        ] {
            let id = subscription_of(uri);
            assert_eq!(
                (id.stream.as_str(), id.consumer.as_str()),
                (stream, consumer)
            );
            assert_eq!(uri_of(&id), uri);
        }
        assert_eq!(uri_of(&subscription_of("orders/")), "orders");
    }
}
