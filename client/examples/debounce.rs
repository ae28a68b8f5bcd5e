//! The newest state of each row, at most five times a second: `debounce ENDPOINT STREAM`.

#[path = "support/arguments.rs"]
pub mod arguments;

use std::time::Duration;

use arguments::Arguments;
use pgcapture::{Client, Result, Row};

#[derive(Debug, Row)]
#[pgcapture(table = "public.orders")]
struct Order {
    #[pgcapture(key)]
    #[expect(dead_code, reason = "shown by Debug only")]
    id: i64,
}

/// Prints the newest changes and returns after `--count` of them.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::builder(&arguments.endpoint).connect().await?;
    let mut orders = client
        .consumer("cache")
        .stream(&arguments.stream)
        .subscribe::<Order>()
        .await?
        .debounce(Duration::from_millis(200), |row| row.get::<i64>("id"));
    for _ in 0..arguments.count {
        let Some(event) = orders.try_next().await? else {
            break;
        };
        arguments.print(&format!("{:?}", event.change()));
        event.ack().await?;
    }
    orders.stop().await
}

#[tokio::main]
async fn main() -> Result<()> {
    run(Arguments::read()).await
}
