//! `bench log`: from a full log to one consumer in another process. No PostgreSQL is needed.

use std::{path::Path, sync::Arc};

use clap::{Args, ValueEnum};
use pgcapture_actors::log::{ChangeLog, embedded::EmbeddedLog};
use pgcapture_engine::{
    batch::{BatchBuilder, EntryKind},
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::pgcapture::{Change, Field, Message, field, message};
use prost::Message as _;

use super::{
    Global,
    child::{Child, Task},
    consumer::{self, ClientKind, Done, Opened},
    measure::{Spread, own_cpu, resident_mib},
    node_side::{STREAM, Served, open_log},
    progress::Progress,
    report::{Report, What},
    scratch,
};

/// Changes of a transaction in the log.
pub(super) const TRANSACTION_CHANGES: u64 = 1_000;

/// WAL between two transactions.
const TRANSACTION_WAL_BYTES: u64 = 256 << 10;

/// Changes in a message of batched delivery.
pub(super) const BATCH_SIZE: u32 = 1_000;

/// How the consumer gets its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Delivery {
    /// A message a change, acknowledged one by one, as old clients do.
    Single,
    /// Many changes in a message, acknowledged together.
    Batch,
}

impl Delivery {
    /// Returns the word of the command line.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Batch => "batch",
        }
    }
}

/// Arguments of `bench log` and `bench remote`.
#[derive(Args, Debug)]
pub(super) struct LogArgs {
    /// How the consumer gets its changes.
    #[arg(long, value_enum, default_value_t = Delivery::Single)]
    pub(super) delivery: Delivery,
    /// What the consumer is made of.
    #[arg(long, value_enum, default_value_t = ClientKind::Generated)]
    pub(super) client: ClientKind,
    /// Changes of a run.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) rows: u64,
    /// Rounds; the result is their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
}

pub(super) async fn run(global: &Global, args: &LogArgs, data: &Path) -> anyhow::Result<()> {
    let progress = Progress::new(global);
    progress.step(format!("writing {} changes", args.rows));
    let directory = scratch(data)?;
    let log = open_log(directory.path())?;
    fill(log.as_ref(), args.rows).await?;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    let shared: Arc<dyn ChangeLog> = Arc::<EmbeddedLog>::clone(&log);
    let served = Served::start(shared, &directory.path().join("node")).await?;
    for round in 1..=args.runs {
        progress.step(format!("round {round} of {}", args.runs));
        let (done, cpu) = read(&served, args, round).await?;
        let rate = args.rows as f64 / done.seconds;
        let cpu = cpu / (args.rows as f64 / 1e6);
        progress.result(&format!(
            "{rate:.0} changes/s, {cpu:.2} s of CPU per 1 M, the consumer's {:.2}",
            done.cpu_seconds / (args.rows as f64 / 1e6)
        ));
        rates.push(rate);
        costs.push(cpu);
    }
    served.stop().await?;
    log.close().await;
    drop(progress);
    let report = Report {
        benchmark: "log",
        what: What {
            delivery: Some(args.delivery.as_str()),
            client: Some(args.client.as_str()),
            rows: Some(args.rows),
            transaction_rows: Some(TRANSACTION_CHANGES),
            ..What::of_runs(args.runs)
        },
        cpu_seconds_per_million: Spread::of(costs).map(|spread| spread.median),
        rss_mib: Some(resident_mib()),
        ..Report::default()
    };
    report.with_rates(&rates, &[]).print(global)?;
    Ok(())
}

/// One consumer reads everything; returns what it says and what that cost us.
pub(super) async fn read(
    served: &Served,
    args: &LogArgs,
    round: u32,
) -> anyhow::Result<(Done, f64)> {
    let order = consumer::Order {
        address: served.address.clone(),
        // A subscription of its own, which starts at the begin.
        uri: format!("{STREAM}/{round}"),
        changes: args.rows,
        batch: match args.delivery {
            Delivery::Single => 0,
            Delivery::Batch => BATCH_SIZE,
        },
        client: args.client,
        latency_from: None,
        wants: consumer::Wants::Log,
    };
    let cpu = own_cpu();
    let mut child = Child::start(&Task::Consume(order)).await?;
    let Opened {} = child.answer().await?;
    let done = child.answer().await?;
    let cpu = own_cpu().saturating_sub(cpu).as_secs_f64();
    child.end().await?;
    Ok((done, cpu))
}

/// Writes inserts of six columns, some 150 bytes.
pub(super) async fn fill(log: &dyn ChangeLog, count: u64) -> anyhow::Result<()> {
    let mut writer = log.open_writer(Epoch(1)).await?;
    let field = |name: &str, oid, value: &[u8]| Field {
        name: name.to_owned(),
        oid,
        value: Some(field::Value::Binary(value.to_vec().into())),
    };
    let mut builder = BatchBuilder::default();
    for index in 0..count {
        let number = index.to_be_bytes();
        let change = Change {
            schema: "public".to_owned(),
            table: "t".to_owned(),
            new: vec![
                field("id", 20, &number),
                field("branch", 23, &[0, 0, 0, 1]),
                field("balance", 23, &[0, 0, 0, 7]),
                field("changed_at", 1184, &number),
                field("filler", 25, &[b'x'; 80]),
                field("label", 1043, b"v1234567"),
            ],
            ..Change::default()
        };
        let payload = Message {
            r#type: Some(message::Type::Change(change)),
        };
        let lsn = Lsn((1 + index / TRANSACTION_CHANGES) * TRANSACTION_WAL_BYTES);
        let seq = u32::try_from(index % TRANSACTION_CHANGES)? + 1;
        let checkpoint = Checkpoint::new(lsn, seq);
        builder.push(checkpoint, EntryKind::Change, &payload.encode_to_vec());
        if builder.is_full() || index + 1 == count {
            writer.append(builder.finish(lsn, PgTime(1))).await?;
        }
    }
    writer.flush().await?;
    Ok(())
}
