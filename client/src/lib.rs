//! Consume changes of PostgreSQL tables from a pgcapture cluster, as typed values.
//!
//! ```
//! use pgcapture::{Change, Client, Field, Row};
//!
//! #[derive(Debug, Row)]
//! #[pgcapture(table = "public.orders")]
//! struct Order {
//!     #[pgcapture(key)]
//!     id: i64,
//!     customer: Option<String>, // may be NULL
//!     note: Field<String>,      // Value, Null, or Unchanged: TOAST that was not sent
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> pgcapture::Result<()> {
//! # let gateway = pgcapture::testkit::Gateway::start().await;
//! # let row = pgcapture::testkit::row("public.orders").set("id", 7_i64);
//! # gateway.insert(row.set("customer", "ann").null("note")).commit();
//! # let endpoints = gateway.endpoints(); // "https://n1:7700,n2:7700,n3:7700"
//! let client = Client::builder(endpoints).connect().await?;
//! let mut orders = client
//!     .consumer("search-indexer")
//!     .stream("orders")
//!     .dedup(true)
//!     .subscribe::<Order>()
//!     .await?;
//! while let Some(event) = orders.try_next().await? {
//!     match event.change() {
//!         Change::Insert(order) | Change::Snapshot(order) => assert_eq!(order.id, 7),
//!         Change::Update { new, changed, .. } if changed.contains("note") => drop(&new.note),
//!         Change::Update { .. } => {}
//!         Change::Delete { key } => drop(key.get::<i64>("id")?),
//!         Change::Truncate => {}
//!     }
//!     event.ack().await?;
//! #   break;
//! }
//! orders.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Existing rows
//!
//! ```
//! # use pgcapture::{Client, DumpState, Row};
//! # #[derive(Debug, Row)]
//! # #[pgcapture(table = "public.orders")]
//! # struct Order { id: i64 }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> pgcapture::Result<()> {
//! # let gateway = pgcapture::testkit::Gateway::start().await;
//! # gateway.existing([pgcapture::testkit::row("public.orders").set("id", 7_i64)]);
//! # let client = Client::builder(gateway.endpoints()).connect().await?;
//! # let mut orders = client.consumer("search-indexer").stream("orders").subscribe::<Order>().await?;
//! let dump = client.dump("orders").table::<Order>().into("search-indexer").start().await?;
//! # orders.try_next().await?.expect("a row").ack().await?;
//! # tokio::spawn(async move { orders.next().await });
//! let mut progress = dump.progress();
//! while let Some(now) = progress.try_next().await? {
//!     println!("{} rows, {:.0} %", now.rows, now.ratio * 100.0);
//! }
//! assert_eq!(dump.get().await?.state, DumpState::Finished);
//! # Ok(())
//! # }
//! ```
//!
//! # What you can rely on
//!
//! - **At least once.** A change is delivered until it is acknowledged. Dropping an event means
//!   that it comes again, after the acknowledgement time-out or with the next connection.
//!   `dedup` hides repetitions of what this process acknowledged.
//! - **Existing rows** that a dump reads come between the changes as [`Change::Snapshot`], each
//!   behind every change that the reading saw and before every later one: write them over what
//!   is there. A row that is asked for again, or a lost connection, brings the row's whole range
//!   again, read anew; rows of a range that is acknowledged to its end do not come again.
//! - **Reconnects** go to the next node when one dies, drains or refuses, with growing jittered
//!   pauses (a tenth of a second to ten), and continue where acknowledgements ended; for ever, or as
//!   long as [`ClientBuilder::give_up_after`] says. [`ClientBuilder::connect`] learns the other nodes
//!   from the first that answers, so that one address is enough to begin with. Answers that would stay the same (unknown stream, no permission,
//!   a position that is gone) are returned instead; see [`Error::is_retryable`].
//! - **Rows that do not fit** go to `on_decode_error` and are acknowledged. Changes of tables
//!   without a handler are acknowledged.
//! - **Cancellation.** `next`, `try_next` lose nothing when their future is dropped; an `ack`
//!   that is dropped before it is ready may not have acknowledged.
//! - **Back-pressure.** Nothing is read ahead but flow-control windows; every queue is bounded.
//! - Nothing here panics on what the network brings, and values of rows are never logged.
//!
//! [`Subscribe::on`] runs handlers for several tables, in parallel with order kept per key;
//! [`Events::debounce`] delivers only the newest change of a key; `subscribe_raw` shows
//! everything undecoded. The feature `testkit` brings a mock gateway for tests; `native-roots`
//! trusts the system's certificate authorities.

extern crate self as pgcapture;

mod backoff;
mod change;
mod checkpoint;
mod client;
mod codec;
mod columns;
mod debounce;
pub mod decode;
mod dedup;
mod dump;
mod error;
mod event;
mod events;
mod field;
mod handlers;
mod link;
mod lsn;
mod members;
mod options;
mod raw;
mod raw_events;
mod row;
mod session;
mod subscribe;
#[cfg(feature = "testkit")]
pub mod testkit;
mod trust;
mod wire;

pub use crate::{
    change::{Change, Changed},
    checkpoint::Checkpoint,
    client::{Client, ClientBuilder, Consumer},
    columns::Columns,
    debounce::Debounced,
    decode::DecodeError,
    dump::{DumpEvents, DumpHandle, DumpProgress, DumpState, DumpTrouble, StartDump},
    error::{Error, Gap},
    event::{Event, Unanswered},
    events::{Events, OnGap},
    field::Field,
    handlers::{Ack, Handlers, IntoAnswer},
    lsn::{Lsn, ParseLsnError},
    options::Start,
    raw::{Operation, RawChange, RawRow, Value},
    raw_events::{RawEvent, RawEvents, RawMessage},
    row::Row,
    subscribe::Subscribe,
};
pub use pgcapture_derive::Row;
pub use tonic::Code;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
