//! The orders of the administration API that concern consumers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pgcapture_actors::{
    consensus::{Consensus, ProposeError},
    gateway::{GatewayError, GatewayHandle, SubscriptionStatus},
};
use pgcapture_engine::{
    capture_options,
    cluster::{Command, Dump, DumpCommand, State},
    codes::{self, Explanation},
};
use pgcapture_proto::{
    admin::v1::{
        Consumer, RemoveConsumerRequest, RemoveConsumerResponse, SeekConsumerRequest,
        SeekConsumerResponse,
    },
    status::status,
};
use tonic::Status;

use super::answer::position;
use crate::{
    resolver::{subscription_of, uri_of},
    sources::{SourceError, chain},
};

/// Returns the consumers of a stream; of all when it is empty.
pub(super) async fn list(
    gateway: &GatewayHandle,
    state: &State,
    stream: &str,
) -> Result<Vec<Consumer>, Status> {
    let subscriptions = gateway.subscriptions().await.map_err(gateway_status)?;
    let wanted = |status: &&SubscriptionStatus| stream.is_empty() || status.id.stream == stream;
    let subscriptions = subscriptions.iter().filter(wanted);
    Ok(subscriptions
        .map(|status| consumer(status, state))
        .collect())
}

/// Returns how many consumers each stream has.
pub(super) async fn counts(gateway: &GatewayHandle) -> Result<BTreeMap<String, u32>, Status> {
    let mut counts = BTreeMap::new();
    for status in gateway.subscriptions().await.map_err(gateway_status)? {
        *counts.entry(status.id.stream).or_default() += 1;
    }
    Ok(counts)
}

/// Returns one consumer.
pub(super) async fn get(
    gateway: &GatewayHandle,
    state: &State,
    uri: &str,
) -> Result<Consumer, Status> {
    let all = list(gateway, state, "").await?;
    let wanted = uri_of(&subscription_of(uri));
    let known: Vec<_> = all.iter().map(|consumer| consumer.uri.clone()).collect();
    let found = all.into_iter().find(|consumer| consumer.uri == wanted);
    found.ok_or_else(|| {
        let known = if known.is_empty() {
            "none yet".to_owned()
        } else {
            known.join(", ")
        };
        let what = format!("unknown consumer \"{uri}\"; known consumers: {known}");
        refuse(&codes::node::NOT_FOUND, what)
    })
}

/// Moves a consumer, or checks that it could be moved. A consumer that does not exist is made.
pub(super) async fn seek(
    gateway: &GatewayHandle,
    state: &State,
    request: SeekConsumerRequest,
) -> Result<SeekConsumerResponse, Status> {
    let start = capture_options::start(&request.to)
        .map_err(|what| refuse(&codes::node::BAD_REQUEST, what))?;
    let before = get(gateway, state, &request.uri).await;
    let before = before.ok().and_then(|consumer| consumer.floor);
    if request.dry_run {
        let after = None;
        return Ok(SeekConsumerResponse { before, after });
    }
    let id = subscription_of(&request.uri);
    gateway.seek(&id, start).await.map_err(gateway_status)?;
    tracing::info!(
        consumer = request.uri,
        to = request.to,
        "an operator moved a consumer"
    );
    let after = get(gateway, state, &request.uri).await;
    let after = after.ok().and_then(|consumer| consumer.floor);
    Ok(SeekConsumerResponse { before, after })
}

/// Forgets a consumer, or says where it stands.
pub(super) async fn remove(
    gateway: &GatewayHandle,
    consensus: &dyn Consensus,
    request: RemoveConsumerRequest,
) -> Result<RemoveConsumerResponse, Status> {
    let state = Arc::clone(&consensus.state().borrow());
    let consumer = get(gateway, &state, &request.uri).await?;
    if !request.dry_run {
        let id = subscription_of(&request.uri);
        let is_its = |stream: &str, consumer: &str| stream == id.stream && consumer == id.consumer;
        let forgotten = forget_cool_downs(consensus, is_its).await;
        forgotten.map_err(|error| {
            let explanation = error.explanation();
            status(explanation.code, error.text(), explanation.next)
        })?;
        gateway.remove(&id).await.map_err(gateway_status)?;
        tracing::info!(consumer = request.uri, "an operator removed a consumer");
    }
    Ok(RemoveConsumerResponse {
        floor: consumer.floor,
    })
}

/// Forgets every consumer of a stream.
pub(super) async fn remove_all(
    gateway: &GatewayHandle,
    consensus: &dyn Consensus,
    stream: &str,
) -> Result<(), SourceError> {
    forget_cool_downs(consensus, |of, _| of == stream).await?;
    let store = |error: GatewayError| SourceError::Store {
        text: format!("the consumers cannot be removed: {}", chain(&error)),
    };
    for status in gateway.subscriptions().await.map_err(store)? {
        if status.id.stream == stream {
            gateway.remove(&status.id).await.map_err(store)?;
        }
    }
    Ok(())
}

/// Takes back the pauses between ranges that were set for consumers who go: one of the same name, who
/// may come later, has not asked for them. First of all, so that the order can be given again when it fails.
async fn forget_cool_downs(
    consensus: &dyn Consensus,
    is_going: impl Fn(&str, &str) -> bool,
) -> Result<(), ProposeError> {
    let state = Arc::clone(&consensus.state().borrow());
    for (stream, consumer) in state.cool_downs.keys() {
        if is_going(stream, consumer) {
            let none = DumpCommand::SetCoolDown {
                stream: stream.clone(),
                consumer: consumer.clone(),
                cool_down: Duration::ZERO,
            };
            consensus.propose(Command::Dump(none)).await?;
        }
    }
    Ok(())
}

fn consumer(status: &SubscriptionStatus, state: &State) -> Consumer {
    let is_open = |dump: &&Arc<Dump>| {
        let is_ours = dump.stream == status.id.stream && dump.consumer == status.id.consumer;
        is_ours && !dump.is_over()
    };
    let open_dumps = state.dumps.values().filter(is_open);
    let lag = status.lag.unwrap_or_default().as_micros();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Consumer {
        uri: uri_of(&status.id),
        stream: status.id.stream.clone(),
        name: status.id.consumer.clone(),
        floor: Some(position(status.floor)),
        session_count: count(status.session_count),
        unacked_count: u64::from(count(status.unacked)),
        lag_bytes: status.lag_bytes.unwrap_or(0),
        lag_micros: i64::try_from(lag).unwrap_or(i64::MAX),
        mode: status.mode.as_str().to_owned(),
        redelivered_count: status.redelivered_count,
        open_dumps: open_dumps.map(|dump| dump.id.to_string()).collect(),
    }
}

fn refuse(explanation: &'static Explanation, what: String) -> Status {
    status(explanation.code, what, explanation.next)
}

fn gateway_status(error: GatewayError) -> Status {
    let explanation = error.explanation();
    status(explanation.code, chain(&error), explanation.next)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use pgcapture_actors::consensus::Leadership;
    use pgcapture_engine::cluster::Answer;
    use tokio::sync::watch;

    use super::*;

    /// Agrees to everything at once.
    #[derive(Debug, Default)]
    struct Agreeing(watch::Sender<Arc<State>>);

    #[async_trait]
    impl Consensus for Agreeing {
        async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
            let mut state = State::clone(&self.0.borrow());
            let answer = state.apply(command)?;
            self.0.send_replace(Arc::new(state));
            Ok(answer)
        }

        fn state(&self) -> watch::Receiver<Arc<State>> {
            self.0.subscribe()
        }

        fn leadership(&self) -> watch::Receiver<Leadership> {
            watch::channel(Leadership::default()).1
        }

        async fn confirm_leadership(&self) -> Result<(), ProposeError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_pause_goes_with_the_consumer_that_it_was_set_for() {
        let agreeing = Agreeing::default();
        for (stream, consumer) in [("shop", "a"), ("shop", "b"), ("audit", "a")] {
            let set = DumpCommand::SetCoolDown {
                stream: stream.to_owned(),
                consumer: consumer.to_owned(),
                cool_down: Duration::from_secs(9),
            };
            agreeing.propose(Command::Dump(set)).await.unwrap();
        }
        let left = || -> Vec<(String, String)> {
            agreeing.0.borrow().cool_downs.keys().cloned().collect()
        };
        let one = |stream: &str, consumer: &str| (stream, consumer) == ("shop", "a");
        forget_cool_downs(&agreeing, one).await.unwrap();
        assert_eq!(left().len(), 2);
        forget_cool_downs(&agreeing, |stream, _| stream == "shop")
            .await
            .unwrap();
        assert_eq!(left(), [("audit".to_owned(), "a".to_owned())]);
    }
}
