//! A disk that refuses an fsync once: the log stops there, and nothing is lost or doubled.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pgcapture_actors::{
    agent::AgentState,
    log::{
        LogHealth,
        embedded::{Disk, RealDisk},
    },
};
use pgcapture_engine::codes;
use rustix::io::Errno;

use crate::world::{PATIENCE, World, on_node_runtime, wait_for};

/// Refuses the next sync when told so, as a device with a bad block: what was written stays in the
/// page cache and looks well. Every later sync succeeds, which proves nothing.
#[derive(Debug, Default)]
struct LyingDisk {
    refuses: AtomicBool,
}

impl Disk for LyingDisk {
    fn sync(&self, file: &File) -> io::Result<()> {
        if self.refuses.swap(false, Ordering::SeqCst) {
            return Err(Errno::IO.into());
        }
        RealDisk.sync(file)
    }
}

#[test]
fn a_refused_fsync_ends_the_log_and_nothing_behind_it_counts() {
    on_node_runtime(async {
        let disk = Arc::new(LyingDisk::default());
        let mut world = World::on(Arc::<LyingDisk>::clone(&disk)).await;
        let agent = world.start(World::spec());
        world
            .sql("INSERT INTO t SELECT generate_series(1, 50)")
            .await;
        world.caught_up().await;

        disk.refuses.store(true, Ordering::SeqCst);
        world
            .sql("INSERT INTO t SELECT generate_series(51, 100)")
            .await;
        let mut health = world.log.health();
        let failed = health.wait_for(|health| matches!(health, LogHealth::Failed { .. }));
        let failed = tokio::time::timeout(PATIENCE, failed).await;
        let LogHealth::Failed { reason } = failed.expect("it fails").expect("it lives").clone()
        else {
            panic!("it has failed")
        };
        assert!(reason.starts_with("PGC-L02: "), "{reason}");
        let tail = *world.log.tail().borrow();
        let mut status = agent.status();
        let told = status.wait_for(|status| {
            let trouble = status.trouble.as_ref();
            trouble.is_some_and(|trouble| trouble.code == codes::log::WRITE_FAILED.code)
        });
        let told = tokio::time::timeout(PATIENCE, told).await;
        let told = told.expect("it is told").expect("it lives").clone();
        let trouble = told.trouble.expect("a reason");
        assert!(trouble.next.contains("kernel log"), "{trouble:?}");
        assert!(trouble.text.contains("cannot sync"), "{trouble:?}");

        // Whatever came meanwhile: durable and confirmed stay where the last good sync was.
        world
            .sql("INSERT INTO t SELECT generate_series(101, 150)")
            .await;
        assert_eq!(world.log.tail().borrow().resume_lsn, tail.resume_lsn);
        assert!(world.confirmed().await <= tail.resume_lsn);
        assert_eq!(world.inserted_ids().await, (1..=50).collect::<Vec<i64>>());
        agent.drain().await;
        assert!(world.confirmed().await <= tail.resume_lsn);

        world.reopen().await;
        let agent = world.start(World::spec());
        wait_for(&agent, AgentState::Following).await;
        world.caught_up().await;
        assert_eq!(world.inserted_ids().await, (1..=150).collect::<Vec<i64>>());
        agent.drain().await;
    });
}
