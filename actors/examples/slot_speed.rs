//! Measures reading a slot beside `pg_recvlogical`: `cargo run --release --example slot_speed`.
//!
//! Starts its own PostgreSQL, writes rows, and reads the same backlog in alternation, every time
//! from a fresh copy of the slot. Nothing is decoded. Arguments: number of changes, rounds, `naps`
//! (values in microseconds to try instead of the default).

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pgcapture_actors::{
    postgres::{
        Config, Connection, LocalServer, LocalServerOptions, PgError, Replication,
        ReplicationEvent, ReplicationOptions, SlotCopy, SlotCopyOptions,
    },
    supervise::{self, TaskKind},
};
use pgcapture_engine::{lsn::Lsn, read_pace::ReadPaceOptions};

type Failure = Box<dyn std::error::Error>;

const SLOT: &str = "base";
const PUBLICATION: &str = "speed";

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let changes: u64 = arguments
        .next()
        .map_or(Ok(1_000_000), |text| text.parse())?;
    let rounds: u32 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let naps: Vec<u64> = arguments
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let settings = [("max_wal_size", "8GB"), ("checkpoint_timeout", "1h")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let server = LocalServer::start(LocalServerOptions {
        settings: settings.to_vec(),
        ..LocalServerOptions::default()
    })
    .await?;
    let tcp = server.config("postgres");
    let unix = server.unix_config("postgres");
    let end = fill(&tcp, changes).await?;
    say(&format!("{changes} changes, end of WAL {end}"));
    for _ in 0..rounds {
        let rate = |seconds: f64| changes as f64 / seconds / 1e3;
        let peer = peer(&server, &tcp, end, "127.0.0.1").await?;
        say(&format!("pg_recvlogical tcp   {:7.0} k/s", rate(peer)));
        let options: Vec<ReadPaceOptions> = if naps.is_empty() {
            vec![ReadPaceOptions::TCP]
        } else {
            naps.iter().map(|nap| pace(*nap)).collect()
        };
        for pace in options {
            let (seconds, receives, bytes) = follow(&tcp, end, pace).await?;
            say(&format!(
                "follow tcp {:5}us   {:7.0} k/s  x{:.2}  {:.0} MB/s {} kB/receive",
                pace.nap_min.as_micros(),
                rate(seconds),
                peer / seconds,
                bytes as f64 / seconds / 1e6,
                bytes / receives.max(1) / 1000
            ));
        }
        let (seconds, ..) = follow(&unix, end, ReadPaceOptions::TCP).await?;
        let host = server.socket_dir().display().to_string();
        let peer_unix = self::peer(&server, &tcp, end, &host).await?;
        say(&format!("pg_recvlogical unix  {:7.0} k/s", rate(peer_unix)));
        say(&format!(
            "follow unix          {:7.0} k/s  x{:.2}",
            rate(seconds),
            peer_unix / seconds
        ));
        for (name, config) in [("tcp", &tcp), ("unix", &unix)] {
            for chunk in [64 << 20, 128 << 20] {
                let (seconds, bytes) = catch_up(config, end, chunk).await?;
                say(&format!(
                    "copy {:4} {:4} MiB   {:7.0} k/s  x{:.2} of tcp  {:.0} MB/s",
                    name,
                    chunk >> 20,
                    rate(seconds),
                    peer / seconds,
                    bytes as f64 / seconds / 1e6
                ));
            }
        }
    }
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn say(text: &str) {
    println!("{text}");
}

fn pace(nap: u64) -> ReadPaceOptions {
    ReadPaceOptions {
        nap_min: Duration::from_micros(nap),
        nap_max: Duration::from_micros(nap),
        ..ReadPaceOptions::TCP
    }
}

/// Half of the changes in transactions of 1,000 rows, the other half of one row.
async fn fill(config: &Config, changes: u64) -> Result<Lsn, Failure> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    let statements = [
        "CREATE TABLE speed (id bigint PRIMARY KEY, a int, b int, c timestamptz, d text, e varchar)",
        "CREATE PUBLICATION speed FOR TABLE speed",
        "SELECT pg_create_logical_replication_slot('base', 'pgoutput')",
        "CREATE PROCEDURE fill(first bigint, rows bigint, step bigint) LANGUAGE plpgsql AS $$
         BEGIN
           FOR n IN 0..rows / step - 1 LOOP
             INSERT INTO speed SELECT first + n * step + i, i, 7, now(), repeat('x', 80), 'v' || i
               FROM generate_series(1, step) i;
             COMMIT;
             IF n * step % 50000 = 0 THEN CHECKPOINT; END IF;
           END LOOP;
         END $$",
        "SET synchronous_commit = off",
    ];
    for statement in statements {
        connection.query(statement).await?;
    }
    let half = changes / 2;
    connection
        .query(&format!("CALL fill(0, {half}, 1000)"))
        .await?;
    connection
        .query(&format!("CALL fill({half}, {half}, 1)"))
        .await?;
    connection.query("CHECKPOINT").await?;
    let rows = connection
        .query("SELECT pg_current_wal_insert_lsn()")
        .await?;
    let text = rows.first().and_then(|row| row.first()?.as_deref());
    Ok(text.ok_or("no position")?.parse()?)
}

async fn copy_slot(config: &Config, name: &str) -> Result<(), Failure> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    let sql = format!("SELECT pg_copy_logical_replication_slot('{SLOT}', '{name}')");
    connection.query(&sql).await?;
    Ok(())
}

async fn drop_slot(config: &Config, name: &str) -> Result<(), Failure> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    let sql = format!("SELECT pg_drop_replication_slot('{name}')");
    // The walsender of a stream that was just cut needs a moment to notice.
    while let Err(error) = connection.query(&sql).await {
        if !error.has_sqlstate("55006") {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn peer(server: &LocalServer, config: &Config, end: Lsn, host: &str) -> Result<f64, Failure> {
    copy_slot(config, "peer").await?;
    let mut command = Command::new(server.bin_dir().join("pg_recvlogical"));
    command.args([
        "-h",
        host,
        "-p",
        &server.port().to_string(),
        "-U",
        "postgres",
    ]);
    command.args([
        "-d",
        "postgres",
        "--slot",
        "peer",
        "--start",
        "-f",
        "/dev/null",
    ]);
    command.args(["-o", "proto_version=1", "-o", "publication_names=speed"]);
    command.args(["-o", "binary=true", "-o", "messages=true"]);
    command.arg(format!("--endpos={end}")).stderr(Stdio::null());
    let began = Instant::now();
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    let seconds = began.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("pg_recvlogical: {status}").into());
    }
    drop_slot(config, "peer").await?;
    Ok(seconds)
}

async fn follow(
    config: &Config,
    end: Lsn,
    pace: ReadPaceOptions,
) -> Result<(f64, usize, usize), Failure> {
    copy_slot(config, "ours").await?;
    let connection = Connection::connect(config, Replication::Database).await?;
    let mut options = ReplicationOptions::new("ours", PUBLICATION);
    options.pace = pace;
    // On a worker, as in the product: the first thread would be woken by another one each time.
    let mut task = supervise::spawn(TaskKind::Tool, "follow", async move {
        let began = Instant::now();
        let mut stream = connection.start_replication(&options).await?;
        let (mut receives, mut bytes, mut reached) = (0, 0, Lsn::ZERO);
        while reached < end {
            let received = stream.receive().await?;
            receives += 1;
            bytes += received.byte_count();
            for event in received {
                reached = reached.max(match event {
                    ReplicationEvent::Data { wal_start, .. } => wal_start,
                    ReplicationEvent::KeepAlive { server_end, .. } => server_end,
                });
            }
        }
        Ok::<_, PgError>((began.elapsed().as_secs_f64(), receives, bytes))
    });
    let (seconds, receives, bytes) = task.join().await??;
    drop_slot(config, "ours").await?;
    Ok((seconds, receives, bytes))
}

async fn catch_up(config: &Config, end: Lsn, chunk: u64) -> Result<(f64, usize), Failure> {
    let began = Instant::now();
    let options = SlotCopyOptions::new(SLOT, PUBLICATION);
    let mut copy = SlotCopy::open(config, options).await?;
    let mut bytes = 0;
    while copy.position() < end {
        let upto = Lsn((copy.position().0 + chunk).min(end.0));
        let mut reader = copy.chunk(upto).await?;
        while let Some(rows) = reader.receive().await? {
            bytes += rows.byte_count();
        }
    }
    Ok((began.elapsed().as_secs_f64(), bytes))
}
