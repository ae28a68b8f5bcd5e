//! A node whose disk takes long for every sync stays what it is: the others do not vote because of it.

use std::fs;

use crate::{process::run, shim::Refusal, trio::Trio};

/// A sync of a bad disk; longer than the time after which followers look for a new leader.
const SLOW_MS: &str = "700";

/// Changes that are agreed on under it, one after the other.
const CHANGES: usize = 12;

/// More elections than this are a storm.
const ELECTIONS_MAX: u64 = 2;

/// Has changes agreed on, asked of one node.
async fn change(trio: &Trio, asked: usize) {
    for word in ["pause", "resume"].into_iter().cycle().take(CHANGES) {
        run(trio.listen(asked), &["source", word, "shop"])
            .await
            .expect(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_of_the_leader_causes_no_storm_of_elections() {
    let shims = [Refusal::build(), Refusal::build(), Refusal::build()];
    let environments = [0, 1, 2].map(|index| shims[index].environment().to_vec());
    let trio = Trio::start_in("", &environments).await;
    trio.add_source(&[]).await;
    let (leading, before) = trio.leader_and_term(0).await;
    let asked = (leading + 1) % 3;
    fs::write(shims[leading].order("slow"), SLOW_MS).unwrap();
    change(&trio, asked).await;
    let (_, after) = trio.leader_and_term(asked).await;
    assert!(shims[leading].order("was_slow").exists());
    let terms = after - before;
    assert!(terms <= ELECTIONS_MAX, "{terms} terms with a slow leader");
    // Nor when every disk is.
    for shim in &shims {
        fs::write(shim.order("slow"), "150").unwrap();
    }
    change(&trio, asked).await;
    let (_, last) = trio.leader_and_term(asked).await;
    for shim in &shims {
        assert!(shim.order("was_slow").exists(), "every disk was slow");
    }
    let terms = last - after;
    assert!(terms <= ELECTIONS_MAX, "{terms} terms with slow disks");
}
