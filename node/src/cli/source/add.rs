//! `pgcapture source add`: check first, show the SQL, then do it.

use clap::{Args, ValueEnum};
use pgcapture_engine::wal_guard::WalPolicy;
use pgcapture_proto::admin::v1::{
    AddSourceRequest, Check, PlanSourceRequest, SourceDefinition, SourcePlan, WalGuard,
    check::Severity,
};

use super::SourceView;
use crate::{
    cli::{
        Failure, Global, connect,
        output::{self, Format},
    },
    units::{Percent, Size},
};

/// Arguments of `source add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// Name of the source.
    name: String,
    /// Where PostgreSQL is: postgres://user@host/database. A password in it is kept by the node in
    /// a file of its own and never shown again.
    #[arg(long, env = "PGCAPTURE_SOURCE_URL", hide_env_values = true)]
    url: String,
    /// Where the node finds the password: env:NAME or file:/path.
    #[arg(long, value_name = "REF")]
    password: Option<String>,
    /// Patterns of tables to capture.
    #[arg(long, value_delimiter = ',', default_value = "public.*")]
    tables: Vec<String>,
    /// Patterns of tables to leave out.
    #[arg(long, value_delimiter = ',')]
    exclude: Vec<String>,
    /// Name of the stream; default: as the source.
    #[arg(long)]
    stream: Option<String>,
    /// Replication slot; default: NAME_pgcapture.
    #[arg(long)]
    slot: Option<String>,
    /// Publication; default: pgcapture_NAME.
    #[arg(long)]
    publication: Option<String>,
    /// How much WAL PostgreSQL may keep for the slot, such as 20GiB; 0B: no limit; default: as the
    /// node's configuration says ([agent] wal_guard). Given again for a source that is there, it
    /// changes the limit.
    #[arg(long, value_name = "SIZE")]
    wal_budget: Option<Size>,
    /// From which part of it on a warning is given, such as 50%.
    #[arg(long, value_name = "PERCENT")]
    wal_alert: Option<Percent>,
    /// What happens at the limit.
    #[arg(long, value_enum, value_name = "POLICY")]
    wal_policy: Option<PolicyArg>,
    /// Only check and show the SQL.
    #[arg(long)]
    dry_run: bool,
}

/// What happens when a source keeps as much WAL as it may.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyArg {
    /// Tell; the source's disk may fill.
    #[value(name = "alert", alias = "warn")]
    Alert,
    /// In a cluster: let the slot go as far as the owner's log goes. A consumer that has not read it gets
    /// a gap if the owner is lost before; on a single node the same as alert.
    #[value(name = "spill")]
    Spill,
    /// Let the slot go with a declared gap; the source halts until somebody accepts it.
    #[value(name = "drop_with_gap", alias = "drop-with-gap")]
    DropWithGap,
}

impl From<PolicyArg> for WalPolicy {
    fn from(policy: PolicyArg) -> Self {
        match policy {
            PolicyArg::Alert => Self::Alert,
            PolicyArg::Spill => Self::Spill,
            PolicyArg::DropWithGap => Self::DropWithGap,
        }
    }
}

impl AddArgs {
    /// What is said about kept WAL; `None` when nothing is.
    fn wal_guard(&self) -> Option<WalGuard> {
        let policy = self.wal_policy.map(WalPolicy::from);
        let guard = WalGuard {
            limit_bytes: self.wal_budget.map(|size| size.0),
            alert_percent: self.wal_alert.map(|alert| u32::from(alert.0)),
            policy: policy.map_or("", WalPolicy::as_str).to_owned(),
        };
        (guard != WalGuard::default()).then_some(guard)
    }
}

pub(super) async fn run(global: &Global, args: AddArgs) -> Result<(), Failure> {
    let wal_guard = args.wal_guard();
    let definition = SourceDefinition {
        name: args.name,
        stream: args.stream.unwrap_or_default(),
        url: args.url,
        password: args.password.unwrap_or_default(),
        slot: args.slot.unwrap_or_default(),
        publication: args.publication.unwrap_or_default(),
        tables: args.tables,
        exclude: args.exclude,
        wal_guard,
    };
    let mut client = connect::admin(global).await?;
    let request = PlanSourceRequest {
        definition: Some(definition.clone()),
    };
    let plan = client.plan_source(request).await?.into_inner();
    show_plan(global, &plan, args.dry_run)?;
    let errors = count(&plan.checks, Severity::Error);
    if errors > 0 {
        let text = format!("{errors} check(s) failed; nothing was changed");
        return Err(Failure {
            exit: 3,
            code: String::new(),
            text,
            next: "do what the lines above say and run the command again".to_owned(),
        });
    }
    if args.dry_run {
        return Ok(());
    }
    let request = AddSourceRequest {
        definition: Some(definition),
    };
    let source = client.add_source(request).await?.into_inner();
    let view = SourceView::from(source);
    if !global.quiet {
        output::talk(&format!(
            "source {} is being captured; see it with: pgcapture tail {}\n",
            view.name, view.name
        ));
    }
    Ok(output::one(global, &view)?)
}

/// Counts the checks of a severity.
pub(crate) fn count(checks: &[Check], severity: Severity) -> usize {
    let checks = checks.iter();
    checks.filter(|check| check.severity() == severity).count()
}

/// The checks for people: a line of totals, then what needs attention.
pub(crate) fn check_lines(checks: &[Check]) -> String {
    let mut out = format!(
        "checks: {} passed, {} warnings, {} errors\n",
        count(checks, Severity::Ok) + count(checks, Severity::Note),
        count(checks, Severity::Warning),
        count(checks, Severity::Error)
    );
    for check in checks {
        let sign = match check.severity() {
            Severity::Ok => continue,
            Severity::Note => "i",
            Severity::Warning => "!",
            Severity::Error => "✗",
        };
        out.push_str(&format!(" {sign} {} {}\n", check.code, check.text));
        if !check.next.is_empty() {
            out.push_str(&format!("   next: {}\n", check.next));
        }
    }
    out
}

/// The checks for machines.
pub(crate) fn checks_value(checks: &[Check]) -> Vec<serde_json::Value> {
    let value = |check: &Check| {
        serde_json::json!({
            "severity": check.severity().as_str_name().to_lowercase(),
            "code": check.code, "text": check.text, "next": check.next,
        })
    };
    checks.iter().map(value).collect()
}

/// A dry run's plan is the data; otherwise it is talk.
fn show_plan(global: &Global, plan: &SourcePlan, is_data: bool) -> Result<(), Failure> {
    let is_text = matches!(global.output, Format::Table | Format::Wide);
    if is_data && !is_text {
        let checks = checks_value(&plan.checks);
        let value = serde_json::json!({"checks": checks, "sql": plan.sql, "tables": plan.tables});
        return Ok(output::value(global, &value)?);
    }
    let mut out = check_lines(&plan.checks);
    if plan.sql.is_empty() {
        out.push_str("nothing to create: publication and slot are there\n");
    } else {
        out.push_str("SQL to run on the source, in this order:\n");
        for statement in &plan.sql {
            out.push_str(&format!("  {statement}\n"));
        }
    }
    if is_data {
        output::data(&out)?;
    } else if !global.quiet {
        output::talk(&out);
    }
    Ok(())
}
