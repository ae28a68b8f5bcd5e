//! What the controller is told by workers and tells people.

use std::{sync::Arc, time::Duration};

use actix::{Handler, Message, MessageResult};
use pgcapture_engine::{
    cluster::DumpRefusal,
    dump::{DumpId, DumpStatus, ReplicaFacts, ReplicaHealth, ReplicaStatus},
};
use tokio::sync::watch;

use super::DumpController;
use crate::{consensus::ProposeError, dump::DumpError};

/// Event: a worker has looked at a replica.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::dump) struct ReplicaSeen {
    pub(in crate::dump) replica: String,
    pub(in crate::dump) lag_max: Duration,
    pub(in crate::dump) seen: Result<ReplicaFacts, DumpError>,
}

impl Handler<ReplicaSeen> for DumpController {
    type Result = ();

    fn handle(&mut self, event: ReplicaSeen, ctx: &mut Self::Context) {
        self.look();
        let health = match event.seen {
            Ok(facts) => {
                let before = self.facts.insert(event.replica.clone(), facts);
                facts.judge(event.lag_max, before.as_ref())
            }
            Err(error) => {
                self.facts.remove(&event.replica);
                ReplicaHealth::Unusable {
                    code: error.explanation.code.to_owned(),
                    what: error.what,
                }
            }
        };
        let is_news = self.chronicle.replica_seen(&event.replica, &health);
        let may_read = matches!(health, ReplicaHealth::Ready { .. });
        if self.state.borrow().replicas.contains_key(&event.replica) {
            self.hub.set_readable(&event.replica, may_read);
        }
        self.schedule.set_health(&event.replica, health);
        if is_news {
            self.follow_up(ctx);
        }
    }
}

/// Query: how is a dump?
#[derive(Message)]
#[rtype(result = "Result<DumpStatus, DumpError>")]
pub(in crate::dump) struct Status(pub(in crate::dump) DumpId);

impl Handler<Status> for DumpController {
    type Result = Result<DumpStatus, DumpError>;

    fn handle(&mut self, Status(id): Status, _: &mut Self::Context) -> Self::Result {
        self.look();
        self.status(id)
    }
}

/// Query: how are all dumps?
#[derive(Message)]
#[rtype(result = "Vec<DumpStatus>")]
pub(in crate::dump) struct Statuses;

impl Handler<Statuses> for DumpController {
    type Result = MessageResult<Statuses>;

    fn handle(&mut self, _: Statuses, _: &mut Self::Context) -> Self::Result {
        self.look();
        let (state, now) = (self.hub.state(), self.hub.now());
        let statuses = state.dumps.values();
        MessageResult(
            statuses
                .map(|dump| self.schedule.status(dump, now))
                .collect(),
        )
    }
}

/// Query: how are the replicas?
#[derive(Message)]
#[rtype(result = "Vec<ReplicaStatus>")]
pub(in crate::dump) struct ReplicaStatuses;

impl Handler<ReplicaStatuses> for DumpController {
    type Result = MessageResult<ReplicaStatuses>;

    fn handle(&mut self, _: ReplicaStatuses, _: &mut Self::Context) -> Self::Result {
        self.look();
        MessageResult(self.schedule.replica_statuses().collect())
    }
}

/// Query: tell how a dump is, again and again.
#[derive(Message)]
#[rtype(result = "Result<watch::Receiver<Arc<DumpStatus>>, DumpError>")]
pub(in crate::dump) struct Watch(pub(in crate::dump) DumpId);

impl Handler<Watch> for DumpController {
    type Result = Result<watch::Receiver<Arc<DumpStatus>>, DumpError>;

    fn handle(&mut self, Watch(id): Watch, _: &mut Self::Context) -> Self::Result {
        self.look();
        let status = Arc::new(self.status(id)?);
        let watcher = self.watchers.entry(id);
        let watcher = watcher.or_insert_with(|| watch::Sender::new(Arc::clone(&status)));
        watcher.send_replace(status);
        Ok(watcher.subscribe())
    }
}

impl DumpController {
    fn status(&self, id: DumpId) -> Result<DumpStatus, DumpError> {
        let state = self.hub.state();
        let dump = state.dumps.get(&id);
        let unknown = DumpRefusal::Unknown { id };
        let dump = dump.ok_or_else(|| ProposeError::Refused(unknown.into()))?;
        Ok(self.schedule.status(dump, self.hub.now()))
    }

    /// Tells watchers what is new, and sets the gauges. A dump that is over is told a last time.
    pub(super) fn tick(&mut self) {
        self.look();
        let now = self.hub.now();
        let state = self.hub.state();
        self.watchers.retain(|id, watcher| {
            let Some(dump) = state.dumps.get(id) else {
                return false;
            };
            if watcher.is_closed() {
                return false;
            }
            let status = self.schedule.status(dump, now);
            watcher.send_if_modified(|known| {
                let is_new = **known != status;
                if is_new {
                    *known = Arc::new(status);
                }
                is_new
            });
            !dump.is_over()
        });
        self.chronicle.tick(&state, &self.schedule);
    }
}
