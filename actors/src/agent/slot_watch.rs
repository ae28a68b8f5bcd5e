//! Watches by SQL what the stream does not tell: the slot's health and the publication's identity.
//!
//! Looks every few seconds over a connection that is opened for the look: a session that stayed
//! would hold up a smart shutdown. A publication that was dropped, or dropped and made anew, is a
//! gap: 14 to 17 fail at that place for ever, 18 skips the changes with a warning that only the
//! server's log shows.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use tokio::{sync::watch, time::sleep};
use tracing::debug;

use super::{AgentSpec, AgentStatus, take_over::Lost};
use crate::postgres::{Config, Connection, PgError, Replication, catalog};

/// How often to look: a dropped publication is to be noticed within five seconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// What the watch looks at.
#[derive(Debug)]
pub(super) struct SlotWatch {
    pub(super) spec: Arc<AgentSpec>,
    pub(super) config: Config,
    pub(super) status: Arc<watch::Sender<AgentStatus>>,
    /// The publication as it was when reading began.
    pub(super) publication_oid: u32,
}

impl SlotWatch {
    /// Watches until something is wrong for good. A look that fails says nothing: the stream has
    /// its own deadlines.
    pub(super) async fn run(self) -> Lost {
        loop {
            sleep(LOOK_INTERVAL).await;
            match self.look().await {
                Ok(None) => {}
                Ok(Some(lost)) => return lost,
                Err(error) => {
                    debug!(source = %self.spec.source, %error, "could not look at the slot");
                }
            }
        }
    }

    /// Looks once and returns what was lost, if anything.
    async fn look(&self) -> Result<Option<Lost>, PgError> {
        let spec = &self.spec;
        let mut connection = Connection::connect(&self.config, Replication::Off).await?;
        let publication = catalog::publication(&mut connection, &spec.publication).await?;
        if publication.map(|publication| publication.oid) != Some(self.publication_oid) {
            return Ok(Some(Lost::publication(spec)));
        }
        if let Some(slot) = catalog::slot(&mut connection, &spec.slot).await? {
            let retained = slot.retained_bytes;
            self.status
                .send_modify(|status| status.wal_retained_bytes = retained);
            gauge!("pgcapture_slot_wal_retained_bytes", "source" => spec.source.clone())
                .set(retained as f64);
        }
        Ok(None)
    }
}
