//! The node's own place: its configuration, its directory, its disk.

use std::{fs, path::Path, process::Command};

use pgcapture_actors::postgres::LocalServer;
use tempfile::TempDir;

use crate::{
    process::{Node, Place, run},
    world::World,
};

/// A small filesystem of its own, unmounted when dropped. Mounting takes root.
pub(crate) struct Disk {
    mount: TempDir,
}

impl Disk {
    pub(crate) fn new(size: &str) -> Self {
        let mount = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let command = ["-t", "tmpfs", "-o", &options, "tmpfs"];
        mounted(Command::new("mount").args(command).arg(mount.path()));
        Self { mount }
    }

    pub(crate) fn path(&self) -> &Path {
        self.mount.path()
    }

    fn make_read_only(&self) {
        mounted(
            Command::new("mount")
                .args(["-o", "remount,ro"])
                .arg(self.mount.path()),
        );
    }

    /// Takes all space that is left.
    pub(crate) fn fill(&self) {
        let mut filler = fs::File::create(self.mount.path().join("filler")).unwrap();
        while std::io::Write::write(&mut filler, &[0; 4_096]).is_ok() {}
    }

    pub(crate) fn empty(&self) {
        fs::remove_file(self.mount.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        mounted(Command::new("umount").arg("--lazy").arg(self.mount.path()));
    }
}

fn mounted(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {output:?} (this test runs as root)"
    );
}

/// A node on this disk with a server of its own.
async fn world_on(disk: &Disk, more: &str) -> World {
    let place = Place::at(disk.mount.path());
    let file = place.configure(more);
    let server: LocalServer = crate::world::server(&[]).await;
    let node = Node::start(&file).await;
    let world = World::of(server, node, place);
    world
        .sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
        .await;
    world.add(&[]).await.expect(0);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_blocks_the_source_and_loses_nothing() {
    let disk = Disk::new("24m");
    let more = "[log]\nsegment = \"1MiB\"\nqueue = \"1MiB\"\n";
    let world = world_on(&disk, more).await;
    world.sql("INSERT INTO t VALUES (1)").await;
    world.caught_up().await;
    disk.fill();
    world
        .sql("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 8000) i")
        .await;
    let status = world.until("blocked").await;
    let confirmed = status.confirmed_lsn;
    let streams = world.ask(&["stream", "show", "shop"]).await.expect(0);
    assert!(streams.data.contains("blocked"), "{streams:?}");
    assert_eq!(world.status().await.confirmed_lsn, confirmed);
    disk.empty();
    assert_eq!(world.logged_ids().await, (1..=8_000).collect::<Vec<i64>>());
    let (exit, log) = world.node.stop().await;
    assert_eq!(exit, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_directory_is_refused_with_its_path() {
    let disk = Disk::new("4m");
    let place = Place::at(disk.mount.path());
    let file = place.configure("");
    disk.make_read_only();
    let refused = run("", &["start", "-c", &file]).await.expect(1);
    refused.says(&["PGC-N03", &place.data().display().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_one_node_and_one_version() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::at(folder.path());
    let file = place.configure("");
    let first = Node::start(&file).await;
    run("", &["start", "-c", &file])
        .await
        .expect(1)
        .says(&["PGC-N01"]);
    let (exit, log) = first.stop().await;
    assert_eq!(exit, Some(0), "{log}");
    set_format(&place.data().join("node.redb"), 99);
    let refused = run("", &["start", "-c", &file]).await.expect(1);
    refused.says(&["PGC-N02", "99"]);
}

/// Marks the store as one of a newer version.
fn set_format(file: &Path, version: u32) {
    let database = redb::Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u32>::new("meta");
    transaction
        .open_table(meta)
        .unwrap()
        .insert("format", version)
        .unwrap();
    transaction.commit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_work_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::at(folder.path());
    for (more, says) in [
        ("[limits]\nsesions = 5\n", vec!["did you mean", "sessions"]),
        ("[limits]\nsessions = \"many\"\n", vec!["limits.sessions"]),
        (
            "[limits]\nmax_row = \"5 parsecs\"\n",
            vec!["limits.max_row"],
        ),
        (
            "[log]\nsegment = \"64MiB\"\n[log.retention]\nsize = \"64MiB\"\n",
            vec!["log.retention.size", "128MiB"],
        ),
        (
            "[agent]\ncatch_up_above = \"1MiB\"\nfollow_below = \"1MiB\"\n",
            vec!["agent.follow_below"],
        ),
        (
            "[source.shop]\nurl = \"postgres://u:canary@h/d\"\n",
            vec!["password", "env:NAME"],
        ),
        ("not toml", vec!["TOML"]),
    ] {
        let file = place.configure(more);
        for args in [["start", "-c", &file], ["config", "check", "-c"]] {
            let args = if args[0] == "config" {
                vec!["config", "check", "-c", &file]
            } else {
                args.to_vec()
            };
            let refused = run("", &args).await.expect(2);
            assert!(!refused.talk.contains("canary"), "{refused:?}");
            assert!(refused.talk.contains("pgcapture.toml:"), "{refused:?}");
            refused.says(&says);
        }
    }
    assert!(!place.data().exists(), "nothing was started");
}
