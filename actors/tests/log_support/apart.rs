//! A log that is written in one way and read in another, for the contract test of what only reads.

use std::sync::Arc;

use async_trait::async_trait;
use pgcapture_actors::log::{
    ChangeLog, LogError, LogExtent, LogHealth, LogReader, LogWriter, Start, Tail,
};
use pgcapture_engine::checkpoint::Epoch;
use tokio::sync::watch;

/// Written through `written`, read through `read`.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) written: Arc<dyn ChangeLog>,
    pub(crate) read: Arc<dyn ChangeLog>,
}

#[async_trait]
impl ChangeLog for Apart {
    async fn open_writer(&self, epoch: Epoch) -> Result<Box<dyn LogWriter>, LogError> {
        self.written.open_writer(epoch).await
    }

    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError> {
        if start == Start::Latest {
            // The end is shown a moment after it moved.
            let durable = self.written.tail().borrow().last;
            let mut shown = self.read.tail();
            let reached = shown.wait_for(|tail| tail.last >= durable).await;
            drop(reached.expect("the log lives"));
        }
        self.read.open_reader(start).await
    }

    fn tail(&self) -> watch::Receiver<Tail> {
        self.written.tail()
    }

    fn health(&self) -> watch::Receiver<LogHealth> {
        self.written.health()
    }

    fn extent(&self) -> LogExtent {
        self.written.extent()
    }
}
