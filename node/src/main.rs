//! The binary `pgcapture`: builds the runtime and runs one command.
//!
//! A node runs under an actix `System` on a multi-thread tokio runtime: actors live on the main
//! thread, everything else on the workers. A command that only asks gets a small runtime, so that
//! it starts in milliseconds.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use pgcapture_node::cli::{self, Cli};

fn main() -> anyhow::Result<ExitCode> {
    // Two TLS libraries could be linked in; say which one before anybody asks.
    let installed = rustls::crypto::ring::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing has installed a provider before");
    let cli = Cli::parse();
    if cli.command.runs_node() {
        // Built here, because the closure below cannot report an error.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("build the runtime")?;
        let system = actix_rt::System::with_tokio_rt(move || runtime);
        return Ok(system.block_on(cli::run(cli)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("build the runtime")?;
    Ok(runtime.block_on(cli::run(cli)))
}
