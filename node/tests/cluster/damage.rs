//! Files of a node that are damaged: refused with what to do, or replaced by what others have; never
//! applied.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pgcapture_actors::consensus::Consensus as _;

use super::harness::{Place, add_source, addresses, soon, three_nodes, voters};

/// The files of snapshots that a node has, in the order of their names.
fn snapshots(place: &Place) -> Vec<PathBuf> {
    let folder = fs::read_dir(place.folder.path().join("snapshots")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    files
}

fn flip_in_the_middle(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_damaged_is_refused_and_the_node_joins_anew() {
    let (mut places, mut nodes) = three_nodes().await;
    nodes[0].propose(add_source("shop")).await.unwrap();
    nodes.pop().unwrap().kill().await;
    let place = places.pop().unwrap();
    let store = place.folder.path().join("node.redb");
    let bytes = fs::read(&store).unwrap();
    // The end is gone; then, other bytes of the same length.
    let peers = addresses(&places);
    for damaged in [
        bytes[..bytes.len() - 4_097].to_vec(),
        vec![0x5a; bytes.len()],
    ] {
        fs::write(&store, damaged).unwrap();
        let error = place.start(&peers).refused().await;
        assert!(error.to_string().starts_with("PGC-N05: "), "{error}");
        let file = store.display().to_string();
        assert!(error.to_string().contains(&file), "{error}");
        let next = error.explanation().next;
        assert!(next.contains("pgcapture cluster remove NAME"), "{next}");
    }
    // As the message says.
    nodes[1]
        .run(|raft| Box::pin(async move { raft.remove("n3").await }))
        .await
        .unwrap();
    let anew = Place {
        folder: tempfile::tempdir().unwrap(),
        ..place
    };
    let back = anew.start(&peers).ready().await;
    assert!(back.raft.state().borrow().sources.contains_key("shop"));
    back.wait("three vote again", |status| voters(status) == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_snapshots_are_damaged_still_brings_others_up() {
    let first = Place::new("n1");
    let places = [first, Place::new("n2"), Place::new("n3")];
    let alone = places[0].start(&[]).ready().await;
    alone.propose(add_source("shop")).await.unwrap();
    alone.kill().await;
    let peers = addresses(&places);
    let first = places[0].start(&peers);
    let second = places[1].start(&peers).ready().await;
    let first = first.ready().await;
    // The second one learnt from a snapshot what is in no log.
    let files = snapshots(&places[0]);
    assert!(!files.is_empty());
    first.kill().await;
    second.kill().await;
    let halves = |place: &Place| {
        for file in snapshots(place) {
            flip_in_the_middle(&file);
        }
        // Newer by its name than any, and half of one.
        let newest = place
            .folder
            .path()
            .join("snapshots/99999999999999999999.snapshot");
        fs::write(newest, b"PGCSNAP\x01half").unwrap();
    };
    halves(&places[0]);
    halves(&places[1]);
    let first = places[0].start(&peers);
    let second = places[1].start(&peers).ready().await;
    let first = first.ready().await;
    let third = places[2].start(&peers).ready().await;
    let mut state = third.raft.state();
    let known = state.wait_for(|state| state.sources.contains_key("shop"));
    soon("the third learns it", known).await.map(drop).unwrap();
    assert!(first.raft.state().borrow().sources.contains_key("shop"));
    assert!(second.raft.state().borrow().sources.contains_key("shop"));
}
