//! A dump on a cluster of real processes and servers: every node reads its part, and whichever dies, what was
//! finished never runs again and every row arrives.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "end_to_end/process.rs"]
#[expect(dead_code, reason = "shared with the tests of one node")]
mod process;

#[path = "end_to_end/consumer.rs"]
#[expect(dead_code, reason = "shared with the tests of one node")]
mod consumer;

#[path = "failover/trio.rs"]
#[expect(dead_code, reason = "shared with the tests of streams")]
mod trio;

#[path = "dump_nodes/work.rs"]
mod work;

use work::{PARALLEL, TABLE_COUNT, Work};

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_outlives_a_node_that_reads_and_a_new_node_takes_its_part() {
    let mut work = Work::start().await;
    let (leader, home) = (work.leader, work.home);
    let victim = (0..3)
        .find(|index| ![leader, home].contains(index))
        .unwrap();
    work.start_dump().await;
    work.until_read_by(victim).await;
    work.kill(victim).await;
    work.until_nodes(2).await;
    work.trio.start_another().await;
    work.until_nodes(3).await;
    work.until_read_by(3).await;
    let ended = work.take_all().await;
    work.check(&ended, 2);
    let metrics = work.metrics(leader).await;
    for node in ["n1", "n2", "n3", "n4"] {
        let counted = format!("pgcapture_dump_node_chunks_total{{node=\"{node}\"}}");
        assert!(metrics.contains(&counted), "{node} read nothing: {metrics}");
    }
    let read = work.metrics(3).await;
    assert!(
        read.contains("pgcapture_dump_rows_read_total{replica=\"r1\"}"),
        "{read}"
    );
    let lost = "pgcapture_dump_chunks_total{result=\"failed\"}";
    assert!(metrics.contains(lost), "no range was lost: {metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_goes_on_at_the_next_leader() {
    let mut work = Work::start().await;
    let leader = work.leader;
    work.start_dump().await;
    work.take_some(TABLE_COUNT / 4).await;
    work.until_recorded().await;
    work.kill(leader).await;
    let next = work.trio.leader(work.home).await;
    assert_ne!(next, leader);
    let ended = work.take_all().await;
    // Those that were delivered and opened when the leader died.
    work.check(&ended, PARALLEL);
}
