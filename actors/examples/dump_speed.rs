//! Measures reading existing rows: `cargo run --release --example dump_speed [WHAT] [ROWS]`.
//!
//! Starts its own PostgreSQL and standby. `rows`: our reader beside `psql` copying the same table
//! to /dev/null over the same kind of socket, in alternation, narrow and wide. `snapshots`: what a
//! snapshot costs and how often it is exact, idle and under 8 clients of pgbench, on the standby
//! (also with replay paused) and on the source. `pages`: many small ranges.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use pgcapture_actors::{
    postgres::{
        Connection, LocalServer, LocalServerOptions, Replication, StandbyOptions, catalog,
        dump::{
            DumpTable, Place, RangeRequest, ReadError, ReadLimits, Replica, ReplicaKind,
            ReplicaOptions,
        },
    },
    supervise::{self, TaskKind},
};
use pgcapture_engine::{
    dump::{DumpId, Extent, PageRange},
    lsn::Lsn,
};

type Failure = Box<dyn std::error::Error>;

const ROUNDS: u32 = 5;

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "rows".to_owned());
    let rows: u64 = arguments
        .next()
        .map_or(Ok(2_000_000), |text| text.parse())?;
    let settings = [("max_wal_size", "8GB"), ("shared_buffers", "1GB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let source = LocalServer::start(LocalServerOptions {
        settings: settings.to_vec(),
        ..LocalServerOptions::default()
    })
    .await?;
    let config = source.config("postgres");
    let mut sql = Connection::connect(&config, Replication::Off).await?;
    for statement in [
        "CREATE TABLE narrow (id bigint, a int, b int)",
        "CREATE TABLE wide (id bigint, a int, b timestamptz, c numeric, d text, e text, f jsonb)",
        "CREATE PUBLICATION p FOR ALL TABLES WITH (publish = 'insert')",
    ] {
        sql.query(statement).await?;
    }
    match what.as_str() {
        "rows" => {
            fill(&mut sql, rows).await?;
            let source_options = options(&source, ReplicaKind::Source, &mut sql).await?;
            for table in ["narrow", "wide"] {
                beside_psql(&source, &Replica::new(source_options.clone()), table).await?;
            }
        }
        "pages" => {
            fill(&mut sql, 200_000).await?;
            let standby = source.start_standby(StandbyOptions::default()).await?;
            for (server, kind) in [
                (&standby, ReplicaKind::Standby),
                (&source, ReplicaKind::Source),
            ] {
                let replica = Replica::new(options(server, kind, &mut sql).await?);
                small_ranges(&replica, kind).await?;
            }
        }
        "snapshots" => snapshots(&source, &mut sql).await?,
        other => return Err(format!("unknown measurement {other}").into()),
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

async fn fill(sql: &mut Connection, rows: u64) -> Result<(), Failure> {
    let wide = rows / 4;
    for statement in [
        format!("INSERT INTO narrow SELECT i, i, 7 FROM generate_series(1, {rows}) i"),
        format!(
            "INSERT INTO wide SELECT i, i, now(), i / 7.0, repeat('x', 60), md5(i::text), \
             jsonb_build_object('k', i, 't', repeat('y', 80)) FROM generate_series(1, {wide}) i"
        ),
        "VACUUM ANALYZE narrow, wide".to_owned(),
    ] {
        sql.query(&statement).await?;
    }
    Ok(())
}

async fn options(
    server: &LocalServer,
    kind: ReplicaKind,
    sql: &mut Connection,
) -> Result<ReplicaOptions, Failure> {
    Ok(ReplicaOptions {
        config: server.config("postgres"),
        kind,
        system_identifier: catalog::server_info(sql).await?.system_identifier,
        publication: "p".to_owned(),
        binary: true,
        connections_max: 2,
        limits: ReadLimits::default(),
    })
}

async fn table(replica: &Replica, name: &str) -> Result<DumpTable, Failure> {
    let plan = replica.plan(&[format!("public.{name}")]).await?;
    Ok(plan.tables.into_iter().next().ok_or("no such table")?)
}

fn request(table: &DumpTable, first: u32, last: u32) -> RangeRequest {
    RangeRequest {
        dump: DumpId(1),
        heap: table.heap.clone(),
        extent: Extent::Pages(PageRange { first, last }),
        at_least: Lsn::ZERO,
        is_paced: false,
    }
}

/// Reads on a worker, as in the product; returns rows and encoded bytes.
async fn read(replica: &Replica, request: RangeRequest) -> Result<(u64, u64), Failure> {
    let replica = replica.clone();
    let mut task = supervise::spawn(TaskKind::Tool, "read", async move {
        let mut reader = replica.open(request).await?;
        while let Some(batch) = reader.next().await? {
            std::hint::black_box(&batch);
        }
        Ok::<_, ReadError>((reader.row_count(), reader.byte_count()))
    });
    Ok(task.join().await??)
}

async fn beside_psql(server: &LocalServer, replica: &Replica, name: &str) -> Result<(), Failure> {
    let t = table(replica, name).await?;
    let whole = || request(&t, 0, PageRange::OPEN);
    read(replica, whole()).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut size = (0, 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        size = read(replica, whole()).await?;
        ours.push(began.elapsed().as_secs_f64());
        theirs.push(psql(server, name).await?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let rate = |seconds: f64| size.0 as f64 / seconds / 1e3;
    say(&format!(
        "{name}: {} rows; ours {:.0} k rows/s, {:.0} MB/s encoded; psql {:.0} k rows/s; ratio {:.2}",
        size.0,
        rate(ours),
        size.1 as f64 / ours / 1e6,
        rate(theirs),
        theirs / ours
    ));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn psql(server: &LocalServer, table: &str) -> Result<f64, Failure> {
    let mut command = Command::new(server.bin_dir().join("psql"));
    command.args(["-h", "127.0.0.1", "-p", &server.port().to_string()]);
    command.args(["-U", "postgres", "-d", "postgres", "-q", "-c"]);
    command.arg(format!(
        "COPY (SELECT * FROM {table}) TO STDOUT (FORMAT binary)"
    ));
    command.stdout(Stdio::null());
    let began = Instant::now();
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    if !status.success() {
        return Err(format!("psql: {status}").into());
    }
    Ok(began.elapsed().as_secs_f64())
}

async fn small_ranges(replica: &Replica, kind: ReplicaKind) -> Result<(), Failure> {
    let t = table(replica, "narrow").await?;
    for pages in [1, 8, 64] {
        let mut times = Vec::new();
        for first in (0..t.page_count.saturating_sub(pages)).step_by(8).take(100) {
            let began = Instant::now();
            read(replica, request(&t, first, first + pages - 1)).await?;
            times.push(began.elapsed().as_secs_f64());
        }
        say(&format!(
            "{kind:?}: ranges of {pages} pages, {:.2} ms each",
            median(times) * 1e3
        ));
    }
    Ok(())
}

async fn snapshots(source: &LocalServer, sql: &mut Connection) -> Result<(), Failure> {
    pgbench(source, &["-i", "-s", "5", "-q"])?.wait()?;
    let standby = source.start_standby(StandbyOptions::default()).await?;
    let on_standby = Replica::new(options(&standby, ReplicaKind::Standby, sql).await?);
    let on_source = Replica::new(options(source, ReplicaKind::Source, sql).await?);
    standby.catch_up_with(source).await?;
    for load in ["idle", "8 clients"] {
        let clients = match load {
            "idle" => None,
            _ => Some(pgbench(source, &["-c", "8", "-j", "2", "-T", "40"])?),
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        say(&format!("{load}: {} tps", rate(sql).await?));
        let t = table(&on_standby, "pgbench_branches").await?;
        opened(&on_standby, &t, 2_000, &format!("{load}: standby")).await?;
        paused(&standby, 300, &format!("{load}: standby, replay paused")).await?;
        opened(&on_source, &t, 300, &format!("{load}: source")).await?;
        if let Some(mut clients) = clients {
            clients.kill()?;
            clients.wait()?;
        }
    }
    Ok(())
}

fn pgbench(server: &LocalServer, arguments: &[&str]) -> Result<Child, Failure> {
    let mut command = Command::new(server.bin_dir().join("pgbench"));
    command.args(["-h", &server.socket_dir().display().to_string()]);
    command.args(["-p", &server.port().to_string(), "-U", "postgres"]);
    command.args(arguments).arg("postgres");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}

/// Transactions a second, over half a second.
async fn rate(sql: &mut Connection) -> Result<u64, Failure> {
    let mut counts = [0_u64; 2];
    for count in &mut counts {
        let rows = sql.query("SELECT txid_current()").await?;
        let text = rows.first().and_then(|row| row.first()?.as_deref());
        *count = text.ok_or("no number")?.parse()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let [before, after] = counts;
    Ok((after - before) * 2)
}

/// Opens a table of five rows many times.
async fn opened(replica: &Replica, t: &DumpTable, count: u32, what: &str) -> Result<(), Failure> {
    let mut tries = [0_u32; 9];
    let (mut times, mut probable, mut not_exact, mut failed) = (Vec::new(), 0, 0, 0);
    for _ in 0..count {
        let began = Instant::now();
        let mut reader = match replica.open(request(t, 0, PageRange::OPEN)).await {
            Ok(reader) => reader,
            Err(error) => {
                say(&error.what());
                failed += 1;
                continue;
            }
        };
        while reader.next().await?.is_some() {}
        times.push(began.elapsed().as_secs_f64() * 1e3);
        if let Some(count) = tries.get_mut(reader.snapshot_tries() as usize) {
            *count += 1;
        }
        probable += u32::from(reader.place() == Place::Probable);
        not_exact += u32::from(reader.place() == Place::LowerBound);
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| {
        times
            .get(times.len() * part / 100)
            .copied()
            .unwrap_or_default()
    };
    say(&format!(
        "{what}: {count} ranges, tries {tries:?}, probably exact {probable}, not exact {not_exact}, failed {failed}; ms p50 {:.2} p90 {:.2} p99 {:.2}",
        at(50),
        at(90),
        at(99)
    ));
    Ok(())
}

/// What pausing and resuming replay around a snapshot costs.
async fn paused(standby: &LocalServer, count: u32, what: &str) -> Result<(), Failure> {
    let config = standby.config("postgres");
    let mut sql = Connection::connect(&config, Replication::Off).await?;
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        sql.query("SELECT pg_wal_replay_pause()").await?;
        while sql.query("SELECT pg_get_wal_replay_pause_state()").await?
            != [[Some("paused".to_owned())]]
        {}
        sql.query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_last_wal_replay_lsn()")
            .await?;
        sql.query("SELECT pg_wal_replay_resume(); COMMIT").await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| {
        times
            .get(times.len() * part / 100)
            .copied()
            .unwrap_or_default()
    };
    say(&format!(
        "{what}: {count} snapshots; ms p50 {:.2} p90 {:.2} p99 {:.2}",
        at(50),
        at(90),
        at(99)
    ));
    Ok(())
}
