//! Existing rows on the consumer's own stream: `dump ENDPOINT STREAM [--count N]`.

#[path = "support/arguments.rs"]
pub mod arguments;

use arguments::Arguments;
use pgcapture::{Client, Result, Row};

#[derive(Debug, Row)]
#[pgcapture(table = "public.orders")]
struct Order {
    #[pgcapture(key)]
    #[expect(dead_code, reason = "shown by Debug only")]
    id: i64,
}

/// Asks for all rows and takes `--count` of what comes, rows and changes as they are spliced.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::builder(&arguments.endpoint).connect().await?;
    let consumer = client.consumer("search-indexer");
    let stream = consumer.stream(&arguments.stream);
    let mut orders = stream.subscribe::<Order>().await?;
    let dump = client
        .dump(&arguments.stream)
        .table::<Order>()
        .into("search-indexer")
        .start()
        .await?;
    for _ in 0..arguments.count {
        let Some(event) = orders.try_next().await? else {
            break;
        };
        arguments.print(&format!("{:?}", event.change()));
        event.ack().await?;
    }
    orders.stop().await?;
    let now = dump.get().await?;
    arguments.print(&format!(
        "{}: {} rows, {:?}",
        dump.id(),
        now.rows,
        now.state
    ));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    run(Arguments::read()).await
}
