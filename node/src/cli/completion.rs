//! `pgcapture completion SHELL`.

use clap::{Args, CommandFactory as _};

use super::{Cli, Failure, output};

/// Arguments of `completion`.
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pgcapture", &mut script);
    output::data(&String::from_utf8_lossy(&script))?;
    Ok(())
}
