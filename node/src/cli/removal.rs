//! How a command removes something: it says what it would do, and does it when it is told so.

use clap::Args;

use super::{Failure, output};

/// Whether to do what cannot be undone.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Consent {
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
}

/// Asks the node for the plan, and with consent has it carried out. `remove` takes whether it is a dry
/// run and returns the actions; `what` is the thing, as in "source \"shop\"".
pub(super) async fn run(
    what: &str,
    consent: Consent,
    remove: impl AsyncFn(bool) -> Result<Vec<String>, Failure>,
) -> Result<(), Failure> {
    let plan = remove(true).await?;
    if consent.yes && !consent.dry_run {
        let done = remove(false).await?;
        return Ok(output::data(&output::bullets(&done))?);
    }
    output::talk("would:\n");
    output::data(&output::bullets(&plan))?;
    if consent.dry_run {
        return Ok(());
    }
    Err(Failure::needs_yes(&format!("{what} is still there")))
}
