//! What can be done to nodes, without any process.

use super::*;

/// Three nodes that do not run.
fn placed() -> (tempfile::TempDir, Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster {
        folder: folder.path().to_owned(),
        ports: Ports::Free,
        flags: Vec::new(),
        members: BTreeMap::new(),
        links: SharedLinks::default(),
        has_links: true,
        groups: Vec::new(),
    };
    for number in 1..=3 {
        let addresses = cluster.ports.of(number).unwrap();
        cluster
            .place(number, addresses, &[addresses.listen])
            .unwrap();
    }
    (folder, cluster)
}

fn groups(of: &[&[u8]]) -> Vec<BTreeSet<u8>> {
    of.iter()
        .map(|group| group.iter().copied().collect())
        .collect()
}

fn cut_off(cluster: &Cluster) -> Vec<Vec<u8>> {
    let nodes = cluster.view().into_iter();
    nodes.map(|node| node.cut_off_from).collect()
}

#[tokio::test]
async fn every_node_has_a_detour_to_every_other() {
    let (folder, cluster) = placed();
    for number in 1..=3_u8 {
        let file = folder.path().join(name(number)).join("routes");
        let routes = std::fs::read_to_string(file).unwrap();
        assert_eq!(routes.lines().count(), 2, "{routes}");
        for other in (1..=3).filter(|other| *other != number) {
            let address = cluster.address(other).unwrap().to_string();
            assert!(routes.contains(&address), "{routes}");
        }
    }
}

#[tokio::test]
async fn a_partition_holds_between_groups_only_and_heals() {
    let (_folder, mut cluster) = placed();
    let said = cluster.partition(groups(&[&[1], &[2, 3]])).unwrap();
    assert!(said.ends_with("n1 | n2,n3"), "{said}");
    assert_eq!(cut_off(&cluster), [vec![2, 3], vec![1], vec![1]]);
    cluster.heal();
    assert_eq!(cut_off(&cluster), [vec![], vec![], Vec::<u8>::new()]);
    // Who is not named is one more group.
    let said = cluster.partition(groups(&[&[2]])).unwrap();
    assert!(said.ends_with("n2 | n1,n3"), "{said}");
}

#[tokio::test]
async fn a_partition_that_is_none_is_refused_and_changes_nothing() {
    let (_folder, mut cluster) = placed();
    for (bad, exit) in [
        (groups(&[&[1, 2, 3]]), 2),
        (groups(&[&[1], &[1, 2]]), 2),
        (groups(&[]), 2),
        (groups(&[&[7]]), 4),
    ] {
        let failure = cluster.partition(bad).unwrap_err();
        assert_eq!(failure.exit, exit, "{failure:?}");
        assert!(!failure.next.is_empty());
    }
    assert_eq!(cut_off(&cluster), [vec![], vec![], Vec::<u8>::new()]);
}

#[tokio::test]
async fn nobody_joins_a_cluster_in_parts() {
    let (_folder, mut cluster) = placed();
    cluster.partition(groups(&[&[1]])).unwrap();
    let failure = cluster.add().await.unwrap_err();
    assert_eq!(failure.next, "pgcapture dev heal");
    assert_eq!(cluster.view().len(), 3);
}

#[tokio::test]
async fn what_is_dead_or_unknown_is_told_with_what_to_do() {
    let (_folder, mut cluster) = placed();
    let failure = cluster.kill(2).await.unwrap_err();
    assert_eq!((failure.exit, failure.code.as_str()), (7, "PGC-N17"));
    assert_eq!(failure.text, "n2 is dead");
    assert_eq!(failure.next, "pgcapture dev start 2");
    for failure in [
        cluster.kill(9).await.unwrap_err(),
        cluster.pause(9).await.unwrap_err(),
        cluster.resume(0).await.unwrap_err(),
        cluster.start_node(4).await.unwrap_err(),
    ] {
        assert_eq!(failure.exit, 4);
        assert!(failure.text.contains("there are 1, 2, 3"), "{failure:?}");
    }
}
