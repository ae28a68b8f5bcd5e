//! Tasks that run handlers, one change after the other each.

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::Call;
use crate::{error::Error, events::Hooks, raw_events::RawEvent};

/// Changes that wait in a lane: enough to keep it busy while the stream fills the others.
const LANE_QUEUE: usize = 64;

enum Job {
    Handle(Call, Box<RawEvent>),
    /// Answered when everything before it is done.
    Barrier(oneshot::Sender<()>),
}

pub(super) struct Lanes {
    queues: Vec<mpsc::Sender<Job>>,
    tasks: JoinSet<Result<(), Error>>,
}

impl Lanes {
    pub(super) fn start(count: usize, hooks: &Hooks) -> Self {
        let mut lanes = Self {
            queues: Vec::with_capacity(count),
            tasks: JoinSet::new(),
        };
        for _ in 0..count {
            let (queue, jobs) = mpsc::channel(LANE_QUEUE);
            lanes.queues.push(queue);
            lanes.tasks.spawn(run(jobs, hooks.clone()));
        }
        lanes
    }

    /// Waits for a lane to end before its time. Cancellation-safe.
    pub(super) async fn failed(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(())) | Err(_)) | None => Error::HandlerPanicked,
        }
    }

    pub(super) async fn send(
        &mut self,
        hash: u64,
        call: Call,
        event: RawEvent,
    ) -> Result<(), Error> {
        let lane = usize::try_from(hash % self.queues.len().max(1) as u64).unwrap_or_default();
        let queue = self.queues.get(lane).ok_or(Error::Closed)?;
        if queue
            .send(Job::Handle(call, Box::new(event)))
            .await
            .is_err()
        {
            return Err(self.failed().await);
        }
        Ok(())
    }

    /// Waits until every lane has done what it was given.
    pub(super) async fn barrier(&mut self) -> Result<(), Error> {
        let mut done = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let (sender, receiver) = oneshot::channel();
            // A lane that is gone drops the sender, which shows below.
            if queue.send(Job::Barrier(sender)).await.is_ok() {
                done.push(receiver);
            }
        }
        let lanes = done.len();
        for receiver in done {
            if receiver.await.is_err() {
                return Err(self.failed().await);
            }
        }
        if lanes < self.queues.len() {
            Err(self.failed().await)
        } else {
            Ok(())
        }
    }

    /// Lets the lanes finish what they were given.
    pub(super) async fn finish(mut self) -> Result<(), Error> {
        self.queues.clear();
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            result = result.and(ended.unwrap_or(Err(Error::HandlerPanicked)));
        }
        result
    }
}

async fn run(mut jobs: mpsc::Receiver<Job>, hooks: Hooks) -> Result<(), Error> {
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Handle(call, event) => call(*event, hooks.clone()).await?,
            Job::Barrier(done) => {
                // Nobody waits any more when the runner has ended.
                done.send(()).unwrap_or(());
            }
        }
    }
    Ok(())
}
