//! A leader that cannot write does not keep the others from agreeing.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command as Process,
};

use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::cluster::{Command, Source};

use super::harness::{Place, add_source, leader, soon, start_all};

/// A small filesystem over a folder, unmounted when dropped. Mounting takes root.
struct Disk(PathBuf);

impl Disk {
    fn over(folder: &Path) -> Self {
        let mount = ["-t", "tmpfs", "-o", "size=24m", "tmpfs"];
        done(Process::new("mount").args(mount).arg(folder));
        Self(folder.to_owned())
    }

    /// Takes all space that is left.
    fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4_096]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        done(Process::new("umount").arg("--lazy").arg(&self.0));
    }
}

fn done(command: &mut Process) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {output:?} (this test runs as root)"
    );
}

/// A source that takes some space.
fn large_source(name: &str) -> Command {
    let Command::AddSource(source) = add_source(name) else {
        unreachable!("it adds a source");
    };
    Command::AddSource(Box::new(Source {
        tables: vec!["x".repeat(60_000)],
        ..*source
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_yields_and_catches_up_later() {
    let places: Vec<Place> = ["n1", "n2", "n3"].map(Place::new).into();
    let disks: Vec<Disk> = places
        .iter()
        .map(|place| Disk::over(place.folder.path()))
        .collect();
    let nodes = start_all(&places).await;
    let full = leader(&nodes).await;
    let other = &nodes[(full + 1) % 3];
    disks[full].fill();
    let mut number = 0;
    let yielded = async {
        // What is proposed while it happens may fail; its disk still holds some of it.
        loop {
            let proposed = other.propose(large_source(&format!("s{number}"))).await;
            number += 1;
            let status = other.raft.status();
            let leads = status
                .leader
                .is_some_and(|leads| leads != nodes[full].name());
            if leads && proposed.is_ok() {
                return;
            }
        }
    };
    soon("another one leads", yielded).await;
    // The others agree on, and go on without it.
    other.propose(add_source("after")).await.unwrap();
    assert!(
        !nodes[full]
            .raft
            .state()
            .borrow()
            .sources
            .contains_key("after")
    );

    disks[full].empty();
    let mut state = nodes[full].raft.state();
    let known = state.wait_for(|state| state.sources.contains_key("after"));
    soon("it catches up", known).await.map(drop).unwrap();
    for node in nodes {
        node.kill().await;
    }
}
