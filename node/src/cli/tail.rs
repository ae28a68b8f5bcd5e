//! `pgcapture tail STREAM`: looks into a stream.
//!
//! Opens a Capture stream with `Peek`: no subscription, nothing to acknowledge, no consumer
//! disturbed. Prints one line a change; Ctrl-C ends it.

mod decode;
mod line;

use clap::Args;
use pgcapture_engine::codes;
use pgcapture_proto::pgcapture::{
    CaptureInit, CaptureMessage, CaptureRequest, Checkpoint, capture_request,
};
use prost_types::{ListValue, Struct, Value, value::Kind};

use self::line::{Lines, Template};
use super::{
    Failure, Global, connect,
    output::{self, Format},
};

/// Changes in one message: fewer wake-ups, still no delay a person could see.
const BATCH_SIZE: f64 = 256.0;

/// Arguments of `tail`.
#[derive(Args, Debug)]
pub struct TailArgs {
    /// The stream.
    stream: String,
    /// Only these tables: orders, shop.orders, public.*
    #[arg(long, value_delimiter = ',')]
    table: Vec<String>,
    /// Only these operations: insert, update, delete.
    #[arg(long, value_delimiter = ',')]
    op: Vec<String>,
    /// Where to begin: now, earliest, an LSN, a time such as 2026-01-31T08:00:00Z, or -10m.
    #[arg(long, default_value = "now", allow_hyphen_values = true)]
    from: String,
    /// Stop after the last transaction that commits at or before this LSN.
    #[arg(long, value_name = "LSN")]
    to: Option<String>,
    /// Stop at the end of the log.
    #[arg(long, conflicts_with = "to")]
    exit_at_end: bool,
    /// Stop after this many changes.
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// Form of a line: %t time, %o operation, %T table, %k key, %j row, %O old values, %l LSN,
    /// %s place in the transaction, %c checkpoint, %% percent, \n and \t.
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,
}

pub(super) async fn run(global: &Global, args: TailArgs) -> Result<(), Failure> {
    let template = match (&args.format, global.output) {
        (Some(format), _) => Some(Template::parse(format).map_err(Failure::usage)?),
        (None, Format::Table | Format::Wide) => Some(Template::standard()),
        (None, Format::Json | Format::Ndjson | Format::Yaml | Format::Env) => None,
    };
    let mut lines = Lines::new(template);
    let mut client = connect::gateway(global).await?;
    let init = CaptureRequest {
        r#type: Some(capture_request::Type::Init(CaptureInit {
            uri: args.stream.clone(),
            parameters: Some(parameters(&args)),
        })),
    };
    // The request side stays open for as long as we listen.
    let requests = futures_util::StreamExt::chain(
        futures_util::stream::once(std::future::ready(init)),
        futures_util::stream::pending(),
    );
    let mut messages = client.capture(requests).await?.into_inner();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = tokio::select! {
            message = messages.message() => message?,
            _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
        };
        let Some(message) = message else {
            return ended(&args);
        };
        let mut out = String::new();
        for message in unpack(message) {
            if left > 0 && lines.write(&mut out, &message) {
                left -= 1;
            }
        }
        output::data(&out)?;
    }
    Ok(())
}

/// A stream with an end may end; one without was cut.
fn ended(args: &TailArgs) -> Result<(), Failure> {
    if args.exit_at_end || args.to.is_some() {
        return Ok(());
    }
    Err(Failure::new(
        6,
        &codes::node::UNREACHABLE,
        "the node ended the stream",
    ))
}

fn unpack(mut message: CaptureMessage) -> Vec<CaptureMessage> {
    match message.batch.take() {
        Some(batch) => batch.messages,
        None => vec![message],
    }
}

fn parameters(args: &TailArgs) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let text = |text: &str| value(Kind::StringValue(text.to_owned()));
    let list = |texts: &[String]| {
        let values = texts.iter().map(|item| text(item)).collect();
        value(Kind::ListValue(ListValue { values }))
    };
    let yes = || value(Kind::BoolValue(true));
    let from = if args.from == "now" {
        "latest"
    } else {
        &args.from
    };
    let mut fields = std::collections::BTreeMap::from([
        ("Peek".to_owned(), yes()),
        ("CommitTime".to_owned(), yes()),
        ("Truncate".to_owned(), yes()),
        ("Gaps".to_owned(), yes()),
        ("BatchSize".to_owned(), value(Kind::NumberValue(BATCH_SIZE))),
        ("Start".to_owned(), text(from)),
    ]);
    if !args.table.is_empty() {
        // `orders` means a table of that name in any schema.
        let patterns = args.table.iter().map(|table| match table.contains('.') {
            true => table.clone(),
            false => format!("*.{table}"),
        });
        fields.insert("Tables".to_owned(), list(&patterns.collect::<Vec<_>>()));
    }
    if !args.op.is_empty() {
        fields.insert("Operations".to_owned(), list(&args.op));
    }
    if args.exit_at_end {
        fields.insert("End".to_owned(), text("tail"));
    }
    if let Some(to) = &args.to {
        fields.insert("End".to_owned(), text(to));
    }
    Struct { fields }
}

/// Returns the checkpoint as everywhere: `16/B374D848|1f`.
fn checkpoint_text(checkpoint: &Checkpoint) -> String {
    let lsn = pgcapture_engine::lsn::Lsn(checkpoint.lsn);
    pgcapture_engine::checkpoint::Checkpoint::new(lsn, checkpoint.seq).to_string()
}
