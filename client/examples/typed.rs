//! Rows as a Rust type: `typed ENDPOINT STREAM [--count N]`.

#[path = "support/arguments.rs"]
pub mod arguments;

use arguments::Arguments;
use pgcapture::{Change, Client, Field, Result, Row};

#[derive(Debug, Row)]
#[pgcapture(table = "public.orders")]
struct Order {
    #[pgcapture(key)]
    id: i64,
    customer: Option<String>,
    note: Field<String>,
}

/// Keeps an index up to date and returns after `--count` changes.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::builder(&arguments.endpoint).connect().await?;
    let mut orders = client
        .consumer("search-indexer")
        .stream(&arguments.stream)
        .max_in_flight(1_000)
        .dedup(true)
        .truncates()
        .subscribe::<Order>()
        .await?;
    for _ in 0..arguments.count {
        let Some(event) = orders.try_next().await? else {
            break;
        };
        let line = match event.change() {
            Change::Insert(order) | Change::Snapshot(order) => {
                format!("index {} of {:?}", order.id, order.customer)
            }
            Change::Update { new, changed, .. } if changed.contains("note") => match &new.note {
                Field::Value(note) => format!("note of {} has {} bytes", new.id, note.len()),
                Field::Null | Field::Unchanged => format!("{} has no note", new.id),
            },
            Change::Update { new, .. } => format!("update {}", new.id),
            Change::Delete { key } => format!("remove {}", key.get::<i64>("id")?),
            Change::Truncate => "remove everything".to_owned(),
        };
        arguments.print(&line);
        event.ack().await?;
    }
    orders.stop().await
}

#[tokio::main]
async fn main() -> Result<()> {
    run(Arguments::read()).await
}
