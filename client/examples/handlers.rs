//! A handler per table, in order per key: `handlers ENDPOINT STREAM [--count N]`.

#[path = "support/arguments.rs"]
pub mod arguments;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arguments::Arguments;
use pgcapture::{Ack, Client, Event, Result, Row};
use tokio::sync::Notify;

#[derive(Debug, Row)]
#[pgcapture(table = "public.orders")]
struct Order {
    #[pgcapture(key)]
    #[expect(dead_code, reason = "shown by Debug only")]
    id: i64,
}

#[derive(Debug, Row)]
#[pgcapture(table = "public.items")]
struct Item {
    #[pgcapture(key)]
    #[expect(dead_code, reason = "shown by Debug only")]
    id: i64,
}

/// Counts the changes of both tables and returns after `--count` of them.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::builder(&arguments.endpoint).connect().await?;
    let (seen, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let report = {
        let (arguments, enough) = (arguments.clone(), Arc::clone(&enough));
        move |line: String| {
            arguments.print(&line);
            if seen.fetch_add(1, Ordering::Relaxed) + 1 >= arguments.count {
                enough.notify_one();
            }
        }
    };
    let report_item = report.clone();
    client
        .consumer("counter")
        .stream(&arguments.stream)
        .on(move |event: Event<Order>| {
            let report = report.clone();
            async move {
                report(format!("{}: {:?}", event.table(), event.change()));
                Ok::<_, pgcapture::Error>(Ack)
            }
        })
        .on(move |event: Event<Item>| {
            let report = report_item.clone();
            async move { report(format!("{}: {:?}", event.table(), event.change())) }
        })
        .parallel_by_key(16)
        .run_until(enough.notified())
        .await
}

#[tokio::main]
async fn main() -> Result<()> {
    run(Arguments::read()).await
}
