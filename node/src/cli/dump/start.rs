//! `pgcapture dump start`: asks for existing rows and follows the dump to its end.

use std::str::FromStr;

use clap::Args;
use pgcapture_proto::admin::v1::{PageRange, StartDumpRequest};

use super::{DumpView, follow};
use crate::{
    cli::{Failure, Global, connect, output},
    units::{Rate, Span},
};

/// Arguments of `dump start`.
#[derive(Args, Debug)]
pub struct StartArgs {
    /// The stream on which the rows are delivered.
    stream: String,
    /// Tables, or patterns of tables such as 'public.*'.
    #[arg(
        long = "table",
        value_name = "TABLE",
        value_delimiter = ',',
        required = true
    )]
    tables: Vec<String>,
    /// Heap pages of the one table: 0-999, or 1000- to its end.
    #[arg(long, value_name = "FIRST-LAST")]
    pages: Option<Pages>,
    /// The consumer that shall get the rows; default: the one named as the stream.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Ranges read at a time, two when not said; at most eight are open for a consumer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    parallel: Option<u32>,
    /// Read no faster than this, such as 50MiB/s.
    #[arg(long)]
    rate: Option<Rate>,
    /// Before others when higher, after them when lower.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,
    /// Rest this long after each range.
    #[arg(long, value_name = "TIME")]
    cool_down: Option<Span>,
    /// Do not wait for the end.
    #[arg(long)]
    detach: bool,
}

/// Heap pages as they are typed, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pages {
    first: u32,
    last: Option<u32>,
}

impl FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is no page range; write 0-999, 1000- or 7");
        let number = |text: &str| text.trim().parse().map_err(|_| bad());
        let pages = match text.split_once('-') {
            None => {
                let page = number(text)?;
                Self {
                    first: page,
                    last: Some(page),
                }
            }
            Some((first, "")) => Self {
                first: number(first)?,
                last: None,
            },
            Some((first, last)) => Self {
                first: number(first)?,
                last: Some(number(last)?),
            },
        };
        match pages.last {
            Some(last) if last < pages.first => {
                let first = pages.first;
                Err(format!("\"{text}\" is backwards; write {last}-{first}"))
            }
            _ => Ok(pages),
        }
    }
}

pub(super) async fn run(global: &Global, args: StartArgs) -> Result<(), Failure> {
    let uri = match &args.consumer {
        Some(consumer) => format!("{}/{consumer}", args.stream),
        None => args.stream.clone(),
    };
    let cool_down = args.cool_down.map_or(0, |span| span.0.as_micros());
    let request = StartDumpRequest {
        uri,
        tables: args.tables,
        pages: args.pages.map(|pages| PageRange {
            first: pages.first,
            last: pages.last,
        }),
        parallel: args.parallel.unwrap_or(0),
        bytes_per_second: args.rate.map_or(0, |rate| rate.0),
        priority: args.priority,
        cool_down_micros: i64::try_from(cool_down).unwrap_or(i64::MAX),
    };
    let mut client = connect::dumps(global).await?;
    let dump = DumpView::from(client.start_dump(request).await?.into_inner());
    if args.detach {
        if !global.quiet {
            output::talk(&format!(
                "follow it with: pgcapture dump watch {}\n",
                dump.id
            ));
        }
        return Ok(output::one(global, &dump)?);
    }
    follow::run(global, &dump.id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_parse_as_written() {
        let pages = |first, last| Ok(Pages { first, last });
        assert_eq!("0-999".parse(), pages(0, Some(999)));
        assert_eq!("1000-".parse(), pages(1_000, None));
        assert_eq!("7".parse(), pages(7, Some(7)));
        for bad in ["", "-", "-5", "a-b", "1-2-3", "0-4294967296"] {
            let refused = bad.parse::<Pages>().unwrap_err();
            assert!(refused.contains("no page range"), "{bad}: {refused}");
        }
        let backwards = "9-3".parse::<Pages>().unwrap_err();
        assert_eq!(backwards, "\"9-3\" is backwards; write 3-9");
    }
}
