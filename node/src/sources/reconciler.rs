//! Brings what runs in step with the agreed state, each source by itself.
//!
//! One task for all: it looks which sources are due whenever the state changes, one of them is done, or
//! something failed a while ago, and works on all that are due side by side. A source is worked on by
//! one piece of work at a time, so that its own drain ends before its own start; no source waits for
//! another one's drain.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use pgcapture_engine::cluster::State;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How long the reconciler waits before it tries again what failed. An operator who mends a
/// password file sees the effect at once; a broken one costs a log line each time.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What is brought in step.
pub(super) trait Hosting {
    /// Returns the sources that are not as the state wants them.
    fn due(&self, state: &State) -> Vec<String>;

    /// Does what the newest state wants of one source; returns whether nothing is left to try again.
    async fn settle(&self, source: &str) -> bool;
}

/// Reconciles until `stop`, or until nobody can change the state any more. Returns with nothing under
/// way.
pub(super) async fn reconcile_until(
    hosting: &impl Hosting,
    mut state: watch::Receiver<Arc<State>>,
    stop: &CancellationToken,
) {
    let mut settling = FuturesUnordered::new();
    let mut busy = BTreeSet::new();
    // Sources that were worked on under the present state: not again before it changes or, if that
    // failed, before some time has passed.
    let mut tried = BTreeSet::new();
    let mut retry_at: Option<Instant> = None;
    while !stop.is_cancelled() {
        if state.has_changed().unwrap_or(false) {
            tried.clear();
        }
        let wanted = Arc::clone(&state.borrow_and_update());
        for source in hosting.due(&wanted) {
            if !tried.contains(&source) && busy.insert(source.clone()) {
                let wanted = Arc::clone(&wanted);
                settling.push(async move {
                    let is_done = hosting.settle(&source).await;
                    (source, wanted, is_done)
                });
            }
        }
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    break;
                }
                tried.clear();
            }
            Some((source, seen, is_done)) = settling.next(), if !settling.is_empty() => {
                busy.remove(&source);
                if !is_done {
                    retry_at.get_or_insert_with(|| Instant::now() + RETRY_AFTER);
                }
                // What was done under an older state may not fit this one.
                if Arc::ptr_eq(&seen, &wanted) {
                    tried.insert(source);
                }
            }
            () = retry => {
                retry_at = None;
                tried.clear();
            }
            () = stop.cancelled() => (),
        }
    }
    while settling.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use tokio::sync::Notify;

    use super::*;

    /// Sources that take as long as somebody wants.
    #[derive(Default)]
    struct Scripted {
        /// Epochs that are wanted and that run, by source.
        wanted: Mutex<BTreeMap<String, u64>>,
        runs: watch::Sender<BTreeMap<String, u64>>,
        /// What was begun and ended, in order.
        told: Mutex<Vec<String>>,
        /// `slow` ends once for each of these.
        go: Notify,
        is_failing: AtomicBool,
    }

    impl Scripted {
        fn want(&self, state: &watch::Sender<Arc<State>>, source: &str, epoch: u64) {
            self.wanted.lock().unwrap().insert(source.to_owned(), epoch);
            state.send_replace(Arc::default());
        }

        fn tell(&self, what: &str, source: &str) {
            self.told.lock().unwrap().push(format!("{what} {source}"));
        }

        async fn until(&self, source: &str, epoch: u64) {
            let mut runs = self.runs.subscribe();
            let is_there = |runs: &BTreeMap<String, u64>| runs.get(source) == Some(&epoch);
            drop(runs.wait_for(is_there).await.unwrap());
        }
    }

    impl Hosting for Scripted {
        fn due(&self, _: &State) -> Vec<String> {
            let (wanted, runs) = (self.wanted.lock().unwrap(), self.runs.borrow());
            let due = wanted
                .iter()
                .filter(|(name, epoch)| runs.get(*name) != Some(epoch));
            due.map(|(name, _)| name.clone()).collect()
        }

        async fn settle(&self, source: &str) -> bool {
            self.tell("begin", source);
            let epoch = self
                .wanted
                .lock()
                .unwrap()
                .get(source)
                .copied()
                .unwrap_or(0);
            if source == "slow" {
                self.go.notified().await;
            }
            self.tell("end", source);
            if self.is_failing.load(Ordering::SeqCst) {
                return false;
            }
            self.runs.send_modify(|runs| {
                runs.insert(source.to_owned(), epoch);
            });
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_takes_its_time_holds_up_no_other_and_is_worked_on_by_one() {
        let (hosting, stop) = (Scripted::default(), CancellationToken::new());
        let (state, states) = watch::channel(Arc::default());
        let orders = async {
            hosting.want(&state, "slow", 1);
            hosting.want(&state, "a", 1);
            hosting.until("a", 1).await;
            // The state wants something else of a source that is under way.
            hosting.want(&state, "slow", 2);
            hosting.want(&state, "a", 2);
            hosting.until("a", 2).await;
            hosting.go.notify_one();
            hosting.until("slow", 1).await;
            hosting.go.notify_one();
            hosting.until("slow", 2).await;
            stop.cancel();
        };
        tokio::join!(reconcile_until(&hosting, states, &stop), orders);
        let told = hosting.told.lock().unwrap();
        let slow: Vec<_> = told.iter().filter(|it| it.ends_with("slow")).collect();
        assert_eq!(slow, ["begin slow", "end slow", "begin slow", "end slow"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_tried_again_after_a_while_and_when_the_state_changes() {
        let (hosting, stop) = (Scripted::default(), CancellationToken::new());
        hosting.is_failing.store(true, Ordering::SeqCst);
        let (state, states) = watch::channel(Arc::default());
        hosting.want(&state, "a", 1);
        let began = Instant::now();
        let count = || hosting.told.lock().unwrap().len();
        let orders = async {
            tokio::time::advance(RETRY_AFTER / 2).await;
            assert_eq!(count(), 2, "tried once");
            hosting.want(&state, "b", 1);
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(count(), 6, "both");
            hosting.is_failing.store(false, Ordering::SeqCst);
            hosting.until("a", 1).await;
            hosting.until("b", 1).await;
            stop.cancel();
        };
        tokio::join!(reconcile_until(&hosting, states, &stop), orders);
        assert!(began.elapsed() >= RETRY_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_what_is_under_way() {
        let (hosting, stop) = (Scripted::default(), CancellationToken::new());
        let (state, states) = watch::channel(Arc::default());
        hosting.want(&state, "slow", 1);
        let orders = async {
            tokio::task::yield_now().await;
            stop.cancel();
            tokio::task::yield_now().await;
            hosting.go.notify_one();
        };
        tokio::join!(reconcile_until(&hosting, states, &stop), orders);
        assert_eq!(hosting.told.lock().unwrap().last().unwrap(), "end slow");
    }
}
