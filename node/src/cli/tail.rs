//! `pgcapture tail STREAM`: looks into a stream.
//!
//! Opens a Capture stream with `Peek`: no subscription, nothing to acknowledge, no consumer
//! disturbed. Prints one line a change; Ctrl-C ends it. With several endpoints it goes on at the next
//! node when one goes away, after the last change that it has shown; before the first one `--from now`
//! means the now of whichever node answers.

mod decode;
mod line;

use std::time::Duration;

use clap::Args;
use pgcapture_engine::codes;
use pgcapture_proto::pgcapture::{
    CaptureInit, CaptureMessage, CaptureRequest, Checkpoint, capture_request,
};
use pgcapture_proto::status::CODE_KEY;
use prost_types::{ListValue, Struct, Value, value::Kind};

use tonic::{Code, Status};

use self::line::{Lines, Template};
use super::{
    Failure, Global, connect,
    output::{self, Format},
};

/// Changes in one message: fewer wake-ups, still no delay a person could see.
const BATCH_SIZE: f64 = 256.0;

/// Rounds over all endpoints, without one change, before tail gives up: with the pauses about half a
/// minute, in which a cluster has long found another leader and another owner.
const ROUNDS_MAX: usize = 10;

/// The pause before the next endpoint grows by this much with each that brought nothing.
const PAUSE_STEP: Duration = Duration::from_millis(100);

/// The longest pause: a person waits.
const PAUSE_MAX: Duration = Duration::from_secs(1);

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
    let mut shown = Shown {
        lines: Lines::new(template),
        left: args.count.unwrap_or(u64::MAX),
        last: None,
        failures: 0,
    };
    let places = connect::places(global)?;
    let mut place = places.iter().cycle();
    while shown.left > 0 {
        let Some(node) = place.next() else {
            return Err(Failure::usage("no endpoint"));
        };
        let failure = match follow(global, node, &args, &mut shown).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        // Exit code 6 is a node that cannot be reached or went away; everything else is an answer.
        let rounds = usize::try_from(shown.failures).unwrap_or(usize::MAX) / places.len().max(1);
        if failure.exit != 6 || places.len() == 1 || rounds >= ROUNDS_MAX {
            return Err(failure);
        }
        if !global.quiet {
            output::talk(&format!(
                "{}: {}; asking the next node\n",
                node.name, failure.text
            ));
        }
        let pause = PAUSE_STEP.saturating_mul(shown.failures).min(PAUSE_MAX);
        shown.failures += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => (),
            _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
        }
    }
    Ok(())
}

/// What was shown so far, whichever node it came from.
struct Shown {
    lines: Lines,
    /// How many changes may follow.
    left: u64,
    /// The last place that was seen; another node is asked for what comes after it.
    last: Option<(u64, u32)>,
    /// Nodes in a row that brought nothing.
    failures: u32,
}

impl Shown {
    /// Shows what is new in a message.
    fn show(&mut self, message: CaptureMessage) -> Result<(), Failure> {
        let mut out = String::new();
        for message in unpack(message) {
            let place = message.checkpoint.as_ref().map(|it| (it.lsn, it.seq));
            // The transaction where another node left off comes whole.
            if place.is_some() && place <= self.last {
                continue;
            }
            self.last = place.or(self.last);
            self.failures = 0;
            if self.left > 0 && self.lines.write(&mut out, &message) {
                self.left -= 1;
            }
        }
        Ok(output::data(&out)?)
    }
}

/// Shows changes from one node until there are enough, or it can bring no more.
async fn follow(
    global: &Global,
    node: &connect::Place,
    args: &TailArgs,
    shown: &mut Shown,
) -> Result<(), Failure> {
    let mut client = connect::gateway(global, node).await?;
    let init = CaptureRequest {
        r#type: Some(capture_request::Type::Init(CaptureInit {
            uri: args.stream.clone(),
            parameters: Some(parameters(args, shown.last)),
        })),
    };
    // The request side stays open for as long as we listen.
    let requests = futures_util::StreamExt::chain(
        futures_util::stream::once(std::future::ready(init)),
        futures_util::stream::pending(),
    );
    let opened = client.capture(requests).await.map_err(cut)?;
    let mut messages = opened.into_inner();
    while shown.left > 0 {
        let message = tokio::select! {
            message = messages.message() => message.map_err(cut)?,
            _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
        };
        let Some(message) = message else {
            return ended(args);
        };
        shown.show(message)?;
    }
    Ok(())
}

/// A connection that breaks is a node that went away; a status of the node's own is its answer.
fn cut(status: Status) -> Failure {
    let is_own = status.metadata().contains_key(CODE_KEY);
    let breaks = matches!(
        status.code(),
        Code::Unknown | Code::Internal | Code::Cancelled
    );
    if breaks && !is_own {
        return Failure::from(Status::unavailable(status.message()));
    }
    Failure::from(status)
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

/// What is asked for; `last` is where another node left off.
fn parameters(args: &TailArgs, last: Option<(u64, u32)>) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let text = |text: &str| value(Kind::StringValue(text.to_owned()));
    let list = |texts: &[String]| {
        let values = texts.iter().map(|item| text(item)).collect();
        value(Kind::ListValue(ListValue { values }))
    };
    let yes = || value(Kind::BoolValue(true));
    let from = match (last, args.from.as_str()) {
        (Some((lsn, _)), _) => pgcapture_engine::lsn::Lsn(lsn).to_string(),
        (None, "now") => "latest".to_owned(),
        (None, from) => from.to_owned(),
    };
    let mut fields = std::collections::BTreeMap::from([
        ("Peek".to_owned(), yes()),
        ("CommitTime".to_owned(), yes()),
        ("Truncate".to_owned(), yes()),
        ("Gaps".to_owned(), yes()),
        ("BatchSize".to_owned(), value(Kind::NumberValue(BATCH_SIZE))),
        ("Start".to_owned(), text(&from)),
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
