//! PostgreSQL, its processes and the way to it break under load: an old consumer gets every row at
//! least once, the log holds every row once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use pgcapture_actors::{
    postgres::{Config, Connection, Replication, StopMode},
    supervise::{Task, TaskKind, spawn},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{process::eventually, world::World};

/// Writes rows 1, 2, 3 … one by one until told to stop; a row whose fate is unknown is tried again.
struct Writer {
    written: watch::Receiver<i64>,
    stop: watch::Sender<bool>,
    task: Task<()>,
}

impl Writer {
    fn start(config: Config) -> Self {
        let (written_tx, written) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let task = spawn(TaskKind::Tool, "writer", async move {
            let mut next = 1;
            while !*stopped.borrow() {
                let Ok(mut connection) = Connection::connect(&config, Replication::Off).await
                else {
                    tokio::task::yield_now().await;
                    continue;
                };
                while !*stopped.borrow() {
                    let row = format!("INSERT INTO t VALUES ({next}) ON CONFLICT DO NOTHING");
                    if connection.query(&row).await.is_err() {
                        break;
                    }
                    written_tx.send_replace(next);
                    next += 1;
                }
            }
        });
        Self {
            written,
            stop,
            task,
        }
    }

    /// Waits until some more rows are written.
    async fn goes_on(&mut self) {
        let wanted = *self.written.borrow() + 50;
        let reached = self.written.wait_for(|written| *written >= wanted);
        let reached = tokio::time::timeout(crate::process::PATIENCE, reached).await;
        reached.expect("rows are written").unwrap();
    }

    /// Stops and returns the last row.
    async fn stop(mut self) -> i64 {
        self.stop.send_replace(true);
        self.task.join().await.unwrap();
        *self.written.borrow()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_whatever_happens_to_the_server() {
    let mut world = World::new().await;
    let mut consumer = world.joined("shop").await;
    let mut writer = Writer::start(world.server.config("postgres"));
    writer.goes_on().await;
    world
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        .await;
    writer.goes_on().await;
    for mode in [StopMode::Fast, StopMode::Immediate] {
        world.server.stop(mode).await.unwrap();
        world.server.restart().await.unwrap();
        writer.goes_on().await;
    }
    kill_walsender(&world).await;
    writer.goes_on().await;
    world.server.kill_postmaster();
    world.server.restart().await.unwrap();
    writer.goes_on().await;
    let last = writer.stop().await;
    let mut seen = consumer.take_until(last).await;
    seen.sort_unstable();
    seen.dedup();
    let all: Vec<i64> = (1..=last).collect();
    assert_eq!(seen, all, "the consumer got each at least once");
    assert_eq!(
        world.logged_ids().await,
        all,
        "the log has each once, in order"
    );
    assert!(world.status().await.rebuild_count >= 4);
}

/// Kills the walsender as `kill -9` does; the server goes through crash recovery then.
async fn kill_walsender(world: &World) {
    let pid = eventually("a walsender", async || {
        let rows = world.sql("SELECT pid FROM pg_stat_replication").await;
        let pid = rows.first().and_then(|row| row[0].as_ref()?.parse().ok());
        pid.ok_or_else(|| "none".to_owned())
    });
    let pid = rustix::process::Pid::from_raw(pid.await).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Passes connections on and cuts one each time so many bytes have come from the server in all.
struct CuttingProxy {
    port: u16,
    cut_count: Arc<AtomicUsize>,
    _task: Task<()>,
}

/// Where to cut: in small messages, in large ones, early and late.
const CUTS: [usize; 5] = [100_003, 1_000_007, 2_500_001, 2_600_500, 6_000_013];

impl CuttingProxy {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut_count = Arc::new(AtomicUsize::new(0));
        let (passed, cuts) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&cut_count));
        let task = spawn(TaskKind::Tool, "proxy", async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (passed, cuts) = (Arc::clone(&passed), Arc::clone(&cuts));
                connections.spawn(pass(client, server, passed, cuts));
            }
        });
        Self {
            port,
            cut_count,
            _task: task,
        }
    }
}

async fn pass(
    mut client: TcpStream,
    server: u16,
    passed: Arc<AtomicUsize>,
    cuts: Arc<AtomicUsize>,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (mut from_server, mut to_server) = server.into_split();
    let (mut from_client, mut to_client) = client.split();
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let before = passed.fetch_add(count, Ordering::SeqCst);
            let cut = CUTS
                .iter()
                .find(|cut| (before..before + count).contains(cut));
            let kept = cut.map_or(count, |cut| cut - before);
            if to_client.write_all(&buffer[..kept]).await.is_err() {
                return;
            }
            if cut.is_some() {
                cuts.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    };
    tokio::select! {
        () = down => (),
        copied = tokio::io::copy(&mut from_client, &mut to_server) => drop(copied),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_inside_messages_loses_and_doubles_nothing() {
    let world = World::bare(&[], "").await;
    world
        .sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
        .await;
    let proxy = CuttingProxy::start(world.server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port);
    world.add_at(&url, &[]).await.expect(0);
    let mut consumer = world.joined("shop").await;
    for first in [1, 5_001] {
        world
            .sql(&format!(
                "INSERT INTO t SELECT i, repeat('x', 700) FROM generate_series({first}, {}) i",
                first + 4_999
            ))
            .await;
    }
    world
        .sql("INSERT INTO t VALUES (10001, repeat('y', 3000000))")
        .await;
    let mut seen = consumer.take_until(10_001).await;
    seen.sort_unstable();
    seen.dedup();
    let all: Vec<i64> = (1..=10_001).collect();
    assert_eq!(seen, all);
    assert_eq!(world.logged_ids().await, all);
    assert_eq!(proxy.cut_count.load(Ordering::SeqCst), CUTS.len());
}
