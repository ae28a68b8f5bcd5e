//! Prints every change of a stream, undecoded: `follow ENDPOINT STREAM [--count N]`.

#[path = "support/arguments.rs"]
pub mod arguments;

use arguments::Arguments;
use pgcapture::{Client, RawMessage, Result};

/// Follows the stream and returns after `--count` changes.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::builder(&arguments.endpoint).connect().await?;
    let mut events = client.stream(&arguments.stream).subscribe_raw().await?;
    let mut seen = 0;
    while seen < arguments.count {
        let Some(event) = events.try_next().await? else {
            break;
        };
        if let RawMessage::Change(change) = event.message() {
            let columns: Vec<_> = change.identity().columns().map(|(name, _)| name).collect();
            let (schema, table) = (change.schema(), change.table());
            let line = if event.is_existing_row() {
                format!("existing row of {schema}.{table} {columns:?}")
            } else {
                let (at, op) = (event.checkpoint(), change.operation());
                format!("{at} {op:?} {schema}.{table} {columns:?}")
            };
            arguments.print(&line);
            seen += 1;
        }
        event.ack().await?;
    }
    events.stop().await
}

#[tokio::main]
async fn main() -> Result<()> {
    run(Arguments::read()).await
}
