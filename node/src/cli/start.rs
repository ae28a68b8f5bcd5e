//! `pgcapture start`: runs a node until SIGTERM or Ctrl-C.

mod parent;

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use pgcapture_engine::codes::{self, Explanation};
use tokio::signal::unix::{SignalKind, signal};

use self::parent::Parent;
use super::{Failure, Global, config::FileArgs, output};
use crate::{app, raft::RaftError, telemetry};

/// Arguments of `start`.
#[derive(Args, Debug)]
pub struct StartArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Only check the configuration.
    #[arg(long)]
    check: bool,
    /// Listen beyond loopback without TLS and token.
    #[arg(long)]
    insecure: bool,
    /// Name of the node.
    #[arg(long)]
    name: Option<String>,
    /// Where logs, cursors and state lie.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for clients.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address for metrics and health, loopback only.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// End at once when stdin does; for the nodes of `dev`.
    #[arg(long, hide = true)]
    end_with_stdin: bool,
}

pub(super) async fn run(global: &Global, args: StartArgs) -> Result<(), Failure> {
    start_telemetry(global, "info");
    let mut flags = Vec::new();
    let mut set = |flag: &str, path: &str, value: Option<String>| {
        flags.extend(value.map(|value| (flag.to_owned(), path.to_owned(), value)));
    };
    set("--name", "node.name", args.name);
    let data_dir = args.data_dir.map(|path| path.display().to_string());
    set("--data-dir", "node.data_dir", data_dir);
    set(
        "--listen",
        "node.listen",
        args.listen.map(|it| it.to_string()),
    );
    set(
        "--metrics",
        "node.metrics",
        args.metrics.map(|it| it.to_string()),
    );
    let config = args.files.load(&flags)?;
    if let Err(error) = app::refuse_open_listener(&config, args.insecure) {
        output::talk(&format!("{error}\n"));
        return Err(Failure::silent(2));
    }
    if args.check {
        if !global.quiet {
            output::talk("the configuration is good\n");
        }
        return Ok(());
    }
    let mut terminate = terminate()?;
    let mut parent = Parent::watch(args.end_with_stdin)
        .map_err(|error| Failure::usage(format!("--end-with-stdin needs a pipe: {error}")))?;
    let stopped = async {
        terminate.recv().await;
    };
    let started = tokio::select! {
        started = app::start_unless(&config, stopped) => started,
        () = parent.gone() => return Err(Failure::interrupted()),
    };
    let Some(node) = started.map_err(|error| cannot_start(&error))? else {
        tracing::info!("stopped before it was ready");
        return Ok(());
    };
    if !global.quiet {
        output::talk(&format!(
            "node {} is ready: gRPC {}, metrics http://{}/metrics\n",
            config.node.name, node.listen, node.metrics
        ));
    }
    tokio::select! {
        _ = terminate.recv() => (),
        _ = tokio::signal::ctrl_c() => (),
        // Whatever was to be saved is thrown away with the parent's folder.
        () = parent.gone() => return Err(Failure::interrupted()),
        // What the disk holds is not known any more: nothing that a drain would save could be
        // trusted. The next start finds out.
        reason = node.failed() => {
            return Err(Failure::new(1, &codes::node::STORE_FAILED, reason));
        }
    }
    if node.stop().await {
        Ok(())
    } else {
        let unclean = &codes::node::UNCLEAN_STOP;
        Err(Failure::new(1, unclean, unclean.title))
    }
}

/// Starts logging as the flags say; `default` is the level without `-v`.
pub(super) fn start_telemetry(global: &Global, default: &str) {
    let filter = match global.verbose {
        0 if global.quiet => "error",
        0 => default,
        1 => "debug",
        _ => "trace",
    };
    telemetry::start(
        filter,
        global.no_color || std::env::var_os("NO_COLOR").is_some(),
    );
}

/// Listens for SIGTERM from now on.
pub(super) fn terminate() -> Result<tokio::signal::unix::Signal, Failure> {
    signal(SignalKind::terminate()).map_err(Failure::from)
}

/// Turns a failed start into code and next step: the error's own when it has one.
pub(super) fn cannot_start(error: &anyhow::Error) -> Failure {
    let text = format!("{error:#}");
    let explanation: Option<&Explanation> = match error.downcast_ref::<RaftError>() {
        Some(error) => Some(error.explanation()),
        None => text
            .split_once(": ")
            .and_then(|(code, _)| codes::find(code)),
    };
    let Some(explanation) = explanation else {
        return Failure {
            exit: 1,
            code: String::new(),
            text,
            next: "look at the lines before this one".to_owned(),
        };
    };
    let text = text.strip_prefix(explanation.code).unwrap_or(&text);
    let text = text.strip_prefix(": ").unwrap_or(text);
    Failure::new(1, explanation, text)
}
