//! How old changes are when they reach another consumer, without a dump and beside one.
//!
//! A round is three measurements: without, beside, without. What the machine does to the figures shows
//! in the two without a dump: their ratio is the noise that the ratio of interest has to be read with.
//! The same processes at the same priority in all three, but for the dump and its consumer.

use std::time::Instant;

use anyhow::Context as _;

use super::{
    DumpArgs, Measured as _,
    world::{World, live},
};
use crate::cli::bench::{
    child::{Child, Task},
    consumer::{self, ClientKind, Done, Opened, Wants},
    measure::{Spread, own_cpu},
    node_side::STREAM,
    progress::Progress,
    report::{Report, What},
    writer::{self, Written},
};

/// Seconds at the begin that are not measured.
const WARM_UP_SECONDS: u64 = 2;

/// A round.
struct Round {
    before: [f64; 3],
    beside: [f64; 3],
    after: [f64; 3],
    /// Processors that the node kept busy beside the dump.
    busy: f64,
}

impl Round {
    /// Without a dump: the mean of before and after.
    fn alone(&self, which: usize) -> f64 {
        f64::midpoint(at(&self.before, which), at(&self.after, which))
    }
}

/// p50, p99 and the largest.
const P50: usize = 0;
const P99: usize = 1;
const MAX: usize = 2;

fn at(values: &[f64; 3], which: usize) -> f64 {
    values.get(which).copied().unwrap_or_default()
}

/// Without, beside and without, so many times.
pub(super) async fn measure(
    args: &DumpArgs,
    world: &World,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let mut rounds = Vec::new();
    for number in 1..=args.runs {
        let step = |what| progress.step(format!("round {number} of {}: {what}", args.runs));
        step("without a dump");
        let before = latency(args, world, &format!("before-{number}")).await?;
        step("beside a dump");
        let (name, cpu, began) = (format!("beside-{number}"), own_cpu(), Instant::now());
        let beside = tokio::select! {
            beside = latency(args, world, &name) => beside?,
            error = dump_for_ever(args, world, number) => return Err(error),
        };
        let busy = (own_cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        step("without a dump");
        let after = latency(args, world, &format!("after-{number}")).await?;
        let round = Round {
            before,
            beside,
            after,
            busy,
        };
        let [p50, p99, max] = beside;
        progress.result(&format!(
            "beside a dump p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms; without p50 {:.2} ms, \
             p99 {:.2} and {:.2} ms",
            round.alone(P50),
            at(&before, P99),
            at(&after, P99),
        ));
        rounds.push(round);
    }
    let each = |value: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
    let beside = |which| each(&|round| at(&round.beside, which)).map(|all| all.median);
    let alone = |which| each(&|round| round.alone(which)).map(|all| all.median);
    Ok(Report {
        benchmark: "dump latency",
        what: What {
            written_rate: Some(f64::from(args.rate)),
            seconds: Some(args.seconds),
            limit_mib: (args.limit_mib > 0).then_some(args.limit_mib),
            ..args.what(world.server_version().await?)
        },
        p50_ms: beside(P50),
        p99_ms: beside(P99),
        max_ms: beside(MAX),
        p50_alone_ms: alone(P50),
        p99_alone_ms: alone(P99),
        p50_ratio: each(&|round| at(&round.beside, P50) / round.alone(P50)),
        p99_ratio: each(&|round| at(&round.beside, P99) / round.alone(P99)),
        p99_noise: each(&|round| at(&round.after, P99) / at(&round.before, P99)),
        processors_busy: each(&|round| round.busy).map(|all| all.median),
        ..Report::default()
    })
}

/// Dumps to one consumer after the other; returns only when one fails.
async fn dump_for_ever(args: &DumpArgs, world: &World, round: u32) -> anyhow::Error {
    for number in 1_u32.. {
        let name = format!("rows-{round}-{number}");
        if let Err(error) = world.dump(args, &name).await {
            return error.context("the dump beside failed");
        }
    }
    anyhow::anyhow!("more dumps than numbers")
}

/// One paced writer and a consumer of its changes; p50, p99 and the largest, in milliseconds.
async fn latency(args: &DumpArgs, world: &World, name: &str) -> anyhow::Result<[f64; 3]> {
    world.execute(&format!("TRUNCATE {}", live())).await?;
    let count = u64::from(args.rate) * (args.seconds + WARM_UP_SECONDS);
    let mut consumer = Child::start(&Task::Consume(consumer::Order {
        address: world.address(),
        uri: format!("{STREAM}/{name}"),
        changes: count,
        batch: 0,
        client: ClientKind::Generated,
        latency_from: Some(u64::from(args.rate) * WARM_UP_SECONDS),
        wants: Wants::Live(live()),
    }))
    .await?;
    let Opened {} = consumer.answer().await?;
    let mut writer = Child::start(&Task::Write(writer::Order {
        url: world.source_url(),
        password: None,
        rate: args.rate,
        count,
    }))
    .await?;
    let _: Written = writer.answer().await?;
    let done: Done = consumer.answer().await?;
    writer.end().await?;
    consumer.end().await?;
    done.latency.context("the consumer measured nothing")
}
