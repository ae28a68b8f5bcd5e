//! `pgcapture replica add`: check first, then register.

use clap::{Args, ValueEnum};
use pgcapture_proto::admin::v1::{AddReplicaRequest, ReplicaDefinition, check::Severity};

use super::ReplicaView;
use crate::{
    cli::{
        Failure, Global, connect,
        output::{self, Format},
        source::{check_lines, checks_value, count},
    },
    units::{Rate, Span},
};

/// Arguments of `replica add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// Name of the replica.
    name: String,
    /// The source whose rows it holds.
    #[arg(long)]
    source: String,
    /// Where it is: postgres://user@host/database. A password in it is kept by the node in a file
    /// of its own and never shown again.
    #[arg(long, env = "PGCAPTURE_REPLICA_URL", hide_env_values = true)]
    url: String,
    /// Where the node finds the password: env:NAME or file:/path.
    #[arg(long, value_name = "REF")]
    password: Option<String>,
    /// What it is.
    #[arg(long, value_enum, default_value_t = Kind::Standby)]
    kind: Kind,
    /// Ranges that may be read from it at a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_ranges: Option<u32>,
    /// Begin no range while it is further behind the source than this.
    #[arg(long, value_name = "TIME")]
    max_lag: Option<Span>,
    /// Read no more rows from it than so many bytes a second, all dumps together, such as 50MiB/s; none
    /// takes the limit away. For a replica that exists the limit is changed.
    #[arg(long, value_name = "SIZE/s", value_parser = limit)]
    rate: Option<u64>,
    /// Only check.
    #[arg(long)]
    dry_run: bool,
}

/// Reads a rate; 0 is none.
fn limit(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    text.parse().map(|Rate(rate)| rate)
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A physical standby: the source feels nothing of a dump.
    Standby,
    /// The source itself, for small set-ups: its reads cost the source.
    Source,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Source => "source",
        }
    }
}

pub(super) async fn run(global: &Global, args: AddArgs) -> Result<(), Failure> {
    let max_lag = args.max_lag.map_or(0, |span| span.0.as_micros());
    let definition = ReplicaDefinition {
        name: args.name,
        source: args.source,
        url: args.url,
        password: args.password.unwrap_or_default(),
        kind: args.kind.as_str().to_owned(),
        max_ranges: args.max_ranges.unwrap_or(0),
        max_lag_micros: i64::try_from(max_lag).unwrap_or(i64::MAX),
        bytes_per_second: args.rate,
    };
    let mut client = connect::replicas(global).await?;
    let request = AddReplicaRequest {
        definition: Some(definition),
        dry_run: args.dry_run,
    };
    let answer = client.add_replica(request).await?.into_inner();
    let is_text = matches!(global.output, Format::Table | Format::Wide);
    if args.dry_run && !is_text {
        output::value(global, &checks_value(&answer.checks))?;
    } else if args.dry_run {
        output::data(&check_lines(&answer.checks))?;
    } else if !global.quiet {
        output::talk(&check_lines(&answer.checks));
    }
    let errors = count(&answer.checks, Severity::Error);
    if errors > 0 {
        return Err(Failure {
            exit: 3,
            code: String::new(),
            text: format!("{errors} check(s) failed; nothing was changed"),
            next: "do what the lines above say and run the command again".to_owned(),
        });
    }
    match answer.replica {
        Some(replica) => Ok(output::one(global, &ReplicaView::from(replica))?),
        None => Ok(()),
    }
}
