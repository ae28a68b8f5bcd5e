//! Many sources with many subscriptions: adding them, letting them rest, and the death of a node.
//!
//! Every subscription has acknowledged a change and so has a cursor; some keep an idle session. The clock
//! of the take-over starts just before `kill -9` and stops, for each slot of the dead node, when the
//! server says that another node reads it. Consumers that lost their session do not come back.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ClusterArgs,
    report::{Idle, Many, Spans, TakeOver},
    server::Server,
    subscribers::{Kept, Opened, Order},
    told,
    trio::Trio,
};
use crate::cli::{
    bench::{
        child::{Child, Task},
        progress::Progress,
    },
    dev::cluster::api,
};

/// Sources that are added side by side.
const ADDS_MAX: usize = 16;

/// Every slot must be read within this time after it was added, and after the death of its reader.
const READ_MAX: Duration = Duration::from_secs(120);

/// How often the server is asked who reads what; the answer takes a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Cursors are saved, homes given back and caches filled within this time.
const SETTLE: Duration = Duration::from_secs(10);

/// Measures everything.
pub(super) async fn measure(
    args: &ClusterArgs,
    server: &Server,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<Many> {
    progress.step(format!("making {} tables", args.sources));
    server.make_tables(args.sources).await?;
    progress.step("starting three nodes");
    let mut trio = Trio::start(data).await?;
    progress.step(format!("adding {} sources", args.sources));
    let (adds, add_seconds) = add(&trio, server, args.sources).await?;
    progress.result(&format!(
        "{} sources added in {add_seconds:.1} s: {}",
        args.sources,
        adds.text()
    ));
    let began = Instant::now();
    let subscribers = subscribe(args, &trio, server, progress).await?;
    let subscribe_seconds = began.elapsed().as_secs_f64();
    progress.result(&format!(
        "{} subscriptions have a cursor after {subscribe_seconds:.1} s",
        args.subscriptions
    ));
    progress.step(format!("idle for {} s", args.seconds));
    sleep(SETTLE).await;
    let (began, before) = (Instant::now(), server.cpu());
    let idle = trio.rest(Duration::from_secs(args.seconds)).await?;
    let after = server.cpu();
    let server_cpu_percent = before.zip(after).map(|(before, after)| {
        let used = after.saturating_sub(before).as_secs_f64();
        used / began.elapsed().as_secs_f64() * 100.0
    });
    progress.result(&Idle::text(&idle));
    let take_over = kill(args, &mut trio, server, progress).await?;
    progress.result(&take_over.text());
    drop(subscribers);
    trio.cluster.stop().await;
    Ok(Many {
        sources: args.sources,
        subscriptions: args.subscriptions,
        sessions: args.sessions(),
        add_seconds,
        adds,
        subscribe_seconds,
        idle,
        server_cpu_percent,
        take_over,
    })
}

/// Adds all sources, through all nodes in turn; returns how long each took and all together, until
/// every slot is read.
async fn add(trio: &Trio, server: &Server, count: u32) -> anyhow::Result<(Spans, f64)> {
    let (nodes, began) = (trio.addresses()?, Instant::now());
    let mut nodes = nodes.iter().cycle();
    let adds = (1..=count).map(|number| {
        let (node, source) = (nodes.next().copied(), server.source(number));
        async move {
            let began = Instant::now();
            let node = node.context("a node")?;
            api::add_source(node, source).await.map_err(told)?;
            Ok::<_, anyhow::Error>(began.elapsed())
        }
    });
    let adds: Vec<Duration> = stream::iter(adds)
        .buffer_unordered(ADDS_MAX)
        .try_collect()
        .await?;
    let mut readers = server.readers().await?;
    let all_read = async {
        while readers.now().await?.len() < usize::try_from(count)? {
            sleep(LOOK_EVERY).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let all_read = timeout(READ_MAX, all_read).await;
    all_read.context("not every slot is read")??;
    Ok((Spans::of(&adds), began.elapsed().as_secs_f64()))
}

/// Gives every subscription a cursor; the kept sessions live as long as what is returned.
async fn subscribe(
    args: &ClusterArgs,
    trio: &Trio,
    server: &Server,
    progress: &Progress,
) -> anyhow::Result<Option<Child>> {
    if args.subscriptions == 0 {
        return Ok(None);
    }
    progress.step(format!("opening {} sessions", args.subscriptions));
    let mut child = Child::start(&Task::Subscribe(Order {
        nodes: trio.addresses()?,
        sources: args.sources,
        subscriptions: args.subscriptions,
        kept: args.sessions(),
    }))
    .await?;
    let Opened {} = child.answer().await?;
    progress.step("one change to each");
    server.write_row_each(args.sources).await?;
    let Kept {} = child.answer().await?;
    Ok(Some(child))
}

/// Kills a node and waits until others read all of its slots.
async fn kill(
    args: &ClusterArgs,
    trio: &mut Trio,
    server: &Server,
    progress: &Progress,
) -> anyhow::Result<TakeOver> {
    let leader = trio.leader().await?;
    let nodes = trio.cluster.view();
    let mut readers = server.readers().await?;
    let mut missing: BTreeMap<String, String> = readers.now().await?;
    // One that was given up meanwhile has none: slots do not go back by themselves.
    let slots = |name: &str| missing.values().filter(|node| *node == name).count();
    let victims = nodes.iter();
    let victims = victims.filter(|node| (node.name == leader) == args.with_raft_leader);
    let victim = victims.max_by_key(|node| slots(&node.name));
    let victim = victim.context("no node to kill")?;
    missing.retain(|_, node| *node == victim.name);
    if missing.is_empty() {
        bail!("{} reads no slot", victim.name);
    }
    let lost = u32::try_from(missing.len())?;
    progress.step(format!("killing {} with {lost} sources", victim.name));
    let began = Instant::now();
    trio.cluster.kill(victim.node).await.map_err(told)?;
    let mut taken = Vec::new();
    while !missing.is_empty() {
        if began.elapsed() > READ_MAX {
            bail!("{} slots are read by nobody: {missing:?}", missing.len());
        }
        let now = readers.now().await?;
        let took = began.elapsed();
        missing.retain(|slot, dead| {
            let is_dead = now.get(slot).is_none_or(|node| node == dead);
            taken.extend((!is_dead).then_some(took));
            is_dead
        });
        sleep(LOOK_EVERY).await;
    }
    Ok(TakeOver {
        node: victim.name.clone(),
        with_raft_leader: args.with_raft_leader,
        sources: lost,
        times: Spans::of(&taken),
    })
}
