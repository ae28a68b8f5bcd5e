//! Watches by SQL what the stream does not tell: the slot's health and the publication's identity.
//!
//! Looks every few seconds over a connection that is opened for the look, together with the other
//! agents of the node: a session that stayed would hold up a smart shutdown. A publication that was dropped, or dropped and made anew, is a
//! gap: 14 to 17 fail at that place for ever, 18 skips the changes with a warning that only the
//! server's log shows. WAL beyond its limit is told, and dealt with as the policy says.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge};
use pgcapture_engine::{
    cluster::LetGo,
    codes::source as codes,
    lsn::Lsn,
    wal_guard::{WalBudget, WalGuard, WalLevel, WalOutlook, WalPolicy},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, error, info, warn};

use super::{
    AgentHost, AgentSpec, AgentStatus, Durability,
    looks::ServerLooks,
    lost::{GUARD_REASON, Lost},
};
use crate::{log::Tail, postgres::Config};

/// How often to look: a dropped publication is to be noticed within five seconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// A take-over decodes again from the slot's restart position before it brings anything new: some
/// 200 MB a second. From this on it is worth a record of some bytes to keep that position recent.
const FRESHEN_ABOVE: u64 = 32 << 20;

/// What the watch looks at.
#[derive(Debug)]
pub(super) struct SlotWatch {
    pub(super) spec: Arc<AgentSpec>,
    pub(super) host: Arc<dyn AgentHost>,
    /// The durable end of the log.
    pub(super) tail: watch::Receiver<Tail>,
    /// Up to where the slot is let go whatever consumers lack.
    pub(super) let_go: watch::Sender<Lsn>,
    pub(super) config: Config,
    /// Looks at the server, shared with others.
    pub(super) looks: Arc<ServerLooks>,
    pub(super) status: Arc<watch::Sender<AgentStatus>>,
    /// The publication as it was when reading began.
    pub(super) publication_oid: u32,
    /// Whether it is agreed on that it is this one.
    pub(super) is_publication_kept: bool,
}

/// Why reading must end.
pub(super) enum Seen {
    /// Changes are lost.
    Lost(Lost),
    /// The source keeps as much WAL as it may, and is to be protected.
    GuardReached(WalOutlook),
}

/// What a look found.
enum Looked {
    /// Nothing to do.
    Well,
    /// Changes are lost.
    Lost(Lost),
    /// The source keeps as much WAL as it may.
    Over(WalGuard, WalOutlook),
}

impl SlotWatch {
    /// Watches until something is wrong for good. A look that fails says nothing: the stream has
    /// its own deadlines.
    pub(super) async fn run(mut self) -> Seen {
        let started = Instant::now();
        let mut budget = self.spec.wal_guard.map(WalBudget::new);
        loop {
            match self.look(budget.as_mut(), started).await {
                Looked::Well => {}
                Looked::Over(guard, outlook) => match guard.policy {
                    WalPolicy::Alert => {}
                    WalPolicy::DropWithGap => return Seen::GuardReached(outlook),
                    WalPolicy::Spill => self.spill(guard).await,
                },
                Looked::Lost(lost) => return Seen::Lost(lost),
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Looks once and returns what is wrong, if anything; `started` is when this watch began.
    async fn look(&mut self, budget: Option<&mut WalBudget>, started: Instant) -> Looked {
        let spec = Arc::clone(&self.spec);
        let Some(found) = self.looks.look(&self.config, started).await else {
            return Looked::Well;
        };
        if found.publications.get(&spec.publication) != Some(&self.publication_oid) {
            return Looked::Lost(Lost::publication(&spec));
        }
        self.keep_publication().await;
        let Some(slot) = found.slots.get(&spec.slot) else {
            return Looked::Well;
        };
        let retained = slot.retained_bytes;
        self.status
            .send_modify(|status| status.wal_retained_bytes = retained);
        gauge!("pgcapture_slot_wal_retained_bytes", "source" => spec.source.clone())
            .set(retained as f64);
        let is_over = spec
            .wal_guard
            .is_some_and(|guard| retained >= guard.limit_bytes);
        // A negative one is a slot that may go at the next checkpoint.
        let safe = slot
            .safe_wal_size
            .map(|safe| u64::try_from(safe).unwrap_or(0));
        let looked = match (budget, spec.wal_guard) {
            (Some(budget), Some(guard)) => {
                let outlook = budget.observe(started.elapsed(), retained, safe);
                self.tell(outlook);
                let is_reached = outlook.level == WalLevel::Reached;
                is_reached.then_some(Looked::Over(guard, outlook))
            }
            _ => None,
        };
        if (retained > FRESHEN_ABOVE || is_over)
            && let Err(error) = self.looks.note_running(&self.config, &found).await
        {
            debug!(source = %spec.source, %error, "running transactions were not noted");
        }
        looked.unwrap_or(Looked::Well)
    }

    /// Has it agreed on which publication this is, if that could not be kept before: a cluster that is
    /// upgraded keeps it only when all of its nodes can.
    async fn keep_publication(&mut self) {
        if self.is_publication_kept {
            return;
        }
        let (epoch, oid) = (self.spec.epoch, self.publication_oid);
        match self.host.keep_publication(epoch, oid).await {
            Ok(is_kept) => self.is_publication_kept = is_kept,
            Err(error) => {
                debug!(source = %self.spec.source, %error, "the publication is not kept yet");
            }
        }
    }

    /// Lets the slot go up to the alert where consumers hold it; nothing where the log is the truth,
    /// since it holds nothing back there. What cannot be agreed on is tried again at the next look.
    async fn spill(&self, guard: WalGuard) {
        if !matches!(self.spec.durability, Durability::Slot { .. }) {
            return;
        }
        let source = self.spec.source.as_str();
        let (durable, before) = (self.tail.borrow().resume_lsn, *self.let_go.borrow());
        let (end, confirmed) = {
            let status = self.status.borrow();
            (status.server_end_lsn.max(durable), status.confirmed_lsn)
        };
        let Some(to) = guard.let_go_to(end, durable, confirmed.max(before)) else {
            return;
        };
        let reason = GUARD_REASON.to_owned();
        match self
            .host
            .let_go(self.spec.epoch, LetGo { to, reason })
            .await
        {
            Ok(()) => {
                let code = codes::WAL_GUARD.code;
                warn!(source, code, %to, "letting the slot go; consumers read on from this node's log");
                counter!("pgcapture_slot_let_go_total", "source" => source.to_owned()).increment(1);
                self.let_go.send_replace(to);
            }
            Err(error) => {
                let code = error.explanation.code;
                warn!(source, code, %error, "the slot cannot be let go yet");
            }
        }
    }

    /// Shows how kept WAL stands to its limit, and tells when that has changed.
    fn tell(&self, outlook: WalOutlook) {
        let source = self.spec.source.as_str();
        let label = || source.to_owned();
        let seconds = outlook
            .seconds_to_limit
            .map_or(f64::INFINITY, |seconds| seconds as f64);
        gauge!("pgcapture_slot_wal_guard_bytes", "source" => label())
            .set(outlook.limit_bytes as f64);
        gauge!("pgcapture_slot_wal_seconds_to_guard", "source" => label()).set(seconds);
        let mut before = WalLevel::Within;
        self.status.send_modify(|status| {
            before = std::mem::replace(&mut status.wal_outlook, outlook).level;
        });
        let (limit, seconds) = (outlook.limit_bytes, outlook.seconds_to_limit);
        let code = codes::WAL_GUARD.code;
        if before != outlook.level {
            match outlook.level {
                WalLevel::Within => info!(source, "the source keeps little WAL again"),
                WalLevel::Warning => {
                    warn!(
                        source,
                        code,
                        limit,
                        ?seconds,
                        "the source keeps much WAL for the slot"
                    );
                }
                WalLevel::Reached => error!(source, code, limit, "{}", codes::WAL_GUARD.title),
            }
        }
    }
}
