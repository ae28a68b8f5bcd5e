//! How old changes are when they reach another consumer, without a dump and beside one.

use anyhow::Context as _;

use super::{
    DumpArgs,
    world::{World, live},
};
use crate::cli::bench::{
    child::{Child, Task},
    consumer::{self, ClientKind, Done, Opened, Wants},
    measure::Spread,
    node_side::STREAM,
    progress::Progress,
    report::{Report, What},
    writer::{self, Written},
};

/// Seconds at the begin that are not measured.
const WARM_UP_SECONDS: u64 = 2;

/// Both, in alternation.
pub(super) async fn measure(
    args: &DumpArgs,
    world: &World,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 1..=args.runs {
        progress.step(format!("round {round} of {}: without a dump", args.runs));
        let without = latency(args, world, &format!("alone-{round}")).await?;
        progress.step(format!("round {round} of {}: beside a dump", args.runs));
        let name = format!("beside-{round}");
        let with = tokio::select! {
            with = latency(args, world, &name) => with?,
            error = dump_for_ever(args, world, round) => return Err(error),
        };
        let ([_, p99_alone, _], [p50, p99, max]) = (without, with);
        progress.result(&format!(
            "beside a dump p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms; p99 {p99_alone:.2} ms without"
        ));
        alone.push(without);
        beside.push(with);
    }
    let p99s =
        |rounds: &[[f64; 3]]| -> Vec<f64> { rounds.iter().map(|[_, p99, _]| *p99).collect() };
    let (p99, p99_alone) = (p99s(&beside), p99s(&alone));
    let ratios = p99
        .iter()
        .zip(&p99_alone)
        .map(|(with, without)| with / without);
    let median = |values: &mut dyn Iterator<Item = f64>| Spread::of(values).map(|all| all.median);
    Ok(Report {
        benchmark: "dump latency",
        what: What {
            written_rate: Some(f64::from(args.rate)),
            seconds: Some(args.seconds),
            limit_mib: (args.limit_mib > 0).then_some(args.limit_mib),
            ..args.what(world.server_version().await?)
        },
        p50_ms: median(&mut beside.iter().map(|[p50, ..]| *p50)),
        p99_ms: median(&mut p99.iter().copied()),
        max_ms: median(&mut beside.iter().map(|[.., max]| *max)),
        p99_alone_ms: median(&mut p99_alone.iter().copied()),
        p99_ratio: Spread::of(ratios),
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
