//! Proposals of the Raft group while changes are written at several rates and a consumer acknowledges
//! all of them: the data path itself asks the group for nothing, so that they should not grow.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use pgcapture_proto::admin::v1::SourceDefinition;
use tokio::time::{Instant, sleep_until, timeout};

use super::{ClusterArgs, report::Load, server::Server, told, trio::Trio};
use crate::cli::{
    bench::{
        child::{Child, Task},
        consumer::{ClientKind, Done, Opened, Order, Wants},
        progress::Progress,
        workload::{SCHEMA, Table},
    },
    dev::cluster::api,
};

/// The source, its stream, its slot and its publication.
const STREAM: &str = "pgcapture_bench_sload";

/// Transactions a second, at every rate.
const TRANSACTIONS_A_SECOND: u32 = 100;

/// Changes in a message to the consumer.
const BATCH: u32 = 1_024;

/// A consumer that has not got everything this long after the last commit is too slow to count.
const CATCH_UP_MAX: Duration = Duration::from_secs(120);

/// Measures every rate.
pub(super) async fn measure(
    args: &ClusterArgs,
    server: &Server,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<Vec<Load>> {
    server.database.make_table(Table::Narrow).await?;
    progress.step("starting three nodes");
    let trio = Trio::start(data).await?;
    let source = SourceDefinition {
        name: STREAM.to_owned(),
        url: server.database.peer_url.clone(),
        slot: STREAM.to_owned(),
        publication: STREAM.to_owned(),
        tables: vec![format!("{SCHEMA}.t")],
        ..SourceDefinition::default()
    };
    let added = api::add_source(trio.first()?, source).await;
    added.map_err(told)?;
    let mut measured = Vec::new();
    let mut written = 0;
    for rate in &args.rates {
        progress.step(format!("{rate} changes/s"));
        let load = one(args, server, &trio, *rate, &mut written).await?;
        progress.result(&load.text());
        measured.push(load);
    }
    let removed = api::remove_source(trio.first()?, STREAM).await;
    removed.map_err(told)?;
    trio.cluster.stop().await;
    Ok(measured)
}

/// Measures one rate; `written` are the rows that are there already.
async fn one(
    args: &ClusterArgs,
    server: &Server,
    trio: &Trio,
    rate: u32,
    written: &mut u64,
) -> anyhow::Result<Load> {
    let rows = u64::from(rate / TRANSACTIONS_A_SECOND);
    let transactions = args.seconds * u64::from(TRANSACTIONS_A_SECOND);
    let task = Task::Consume(Order {
        address: trio.first()?.to_string(),
        uri: STREAM.to_owned(),
        changes: rows * transactions,
        batch: BATCH,
        client: ClientKind::Raw,
        latency_from: None,
        wants: Wants::Log,
    });
    let mut consumer = Child::start(&task).await?;
    let Opened {} = consumer.answer().await?;
    let mut connection = server.database.connect().await?;
    let (before, cpu) = (trio.agreed().await?, trio.cpu());
    let began = Instant::now();
    let pause = Duration::from_secs(1) / TRANSACTIONS_A_SECOND;
    let mut due = began;
    for _ in 0..transactions {
        sleep_until(due).await;
        due += pause;
        let (from, to) = (*written, *written + rows - 1);
        let sql = format!(
            "INSERT INTO {SCHEMA}.t SELECT i, 1, 7, clock_timestamp(), repeat('x', 80), 'v' \
             FROM generate_series({from}, {to}) i"
        );
        connection.query(&sql).await?;
        *written += rows;
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = trio.agreed().await?;
    let costs = trio.costs(&cpu, began.elapsed());
    let done = timeout(CATCH_UP_MAX, consumer.answer::<Done>()).await;
    done.context("the consumer did not get everything in time")??;
    let behind = began.elapsed().as_secs_f64() - seconds;
    consumer.end().await?;
    let proposals = after.applied.saturating_sub(before.applied);
    Ok(Load {
        wanted_per_second: rate,
        changes_per_second: (rows * transactions) as f64 / seconds,
        proposals_per_second: proposals as f64 / seconds,
        behind_seconds: behind,
        nodes: costs,
    })
}
