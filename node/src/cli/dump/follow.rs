//! Follows a dump to its end: a bar on a terminal, plain lines elsewhere.
//!
//! Only looks: Ctrl-C, a lost node or a closed terminal leave the dump as it is. A node that is away
//! for a moment is asked again.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use pgcapture_engine::codes;
use pgcapture_proto::admin::v1::{Dump, WatchDumpRequest};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::DumpView;
use crate::cli::{
    Failure, Global, connect,
    output::{self, Format},
};

/// Between two plain lines: a log should not fill with them.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Before a node that is away is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Steps of the bar.
const STEPS: u64 = 1_000;

/// Shows a dump until it ends.
pub(super) async fn run(global: &Global, id: &str) -> Result<(), Failure> {
    let mut screen = Screen::new(global);
    let ended = tokio::select! {
        ended = follow(global, id, &mut screen) => ended,
        _ = tokio::signal::ctrl_c() => Err(None),
    };
    screen.clear();
    match ended {
        Ok(dump) => finish(global, &dump),
        Err(Some(failure)) => Err(failure),
        Err(None) => {
            output::talk(&format!(
                "dump {id} goes on; watch it again with: pgcapture dump watch {id}\n  \
                 or end it with: pgcapture dump cancel {id} --yes\n"
            ));
            Err(Failure::interrupted())
        }
    }
}

/// Reads until the dump has ended. `None` stands for an interruption, which the caller notices.
async fn follow(
    global: &Global,
    id: &str,
    screen: &mut Screen<'_>,
) -> Result<DumpView, Option<Failure>> {
    let mut seen_at = Instant::now();
    loop {
        let failure = match open(global, id).await {
            Ok(mut stream) => match read(&mut stream, screen, &mut seen_at).await {
                Ok(dump) => return Ok(dump),
                Err(status) => Failure::from(status),
            },
            Err(failure) => failure,
        };
        // Exit code 6 is a node that cannot be reached; everything else is an answer.
        if failure.exit != 6 {
            return Err(Some(failure));
        }
        if seen_at.elapsed() >= global.timeout.0 {
            let next = format!("the dump goes on with its node; then: pgcapture dump watch {id}");
            return Err(Some(failure.next(next)));
        }
        screen.away(&failure.text);
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

async fn open(global: &Global, id: &str) -> Result<Streaming<Dump>, Failure> {
    let request = WatchDumpRequest { id: id.to_owned() };
    let stream = connect::dump_watch(global)
        .await?
        .watch_dump(request)
        .await?;
    Ok(stream.into_inner())
}

async fn read(
    stream: &mut Streaming<Dump>,
    screen: &mut Screen<'_>,
    seen_at: &mut Instant,
) -> Result<DumpView, Status> {
    let broken = |status: Status| {
        // A connection that breaks in the middle of an answer.
        let is_cut = matches!(
            status.code(),
            Code::Unknown | Code::Internal | Code::Cancelled
        ) && status.metadata().is_empty();
        if is_cut {
            Status::unavailable(status.message())
        } else {
            status
        }
    };
    while let Some(dump) = stream.message().await.map_err(broken)? {
        *seen_at = Instant::now();
        let view = DumpView::from(dump);
        if view.has_ended() {
            return Ok(view);
        }
        screen.show(&view);
    }
    Err(Status::unavailable("the node has ended the watch"))
}

/// The data, and the exit code that says how it ended.
fn finish(global: &Global, dump: &DumpView) -> Result<(), Failure> {
    match global.output {
        Format::Table | Format::Wide => {
            let text = format!("dump {} {}\n", dump.id, dump.end_text());
            output::data(&text)?;
        }
        Format::Json | Format::Ndjson | Format::Yaml | Format::Env => output::one(global, dump)?,
    }
    if dump.state == "finished" {
        return Ok(());
    }
    let text = match dump.trouble() {
        Some(trouble) => trouble.text.clone(),
        None => format!("dump {} was {}", dump.id, dump.state),
    };
    let explanation = dump
        .trouble()
        .and_then(|trouble| codes::find(&trouble.code));
    let next = match dump.trouble() {
        Some(trouble) => format!("{}; then: pgcapture dump retry {}", trouble.next, dump.id),
        None => format!("look at it: pgcapture dump show {}", dump.id),
    };
    let code = explanation.map_or("", |known| known.code).to_owned();
    Err(Failure {
        exit: 1,
        code,
        text,
        next,
    })
}

/// Where progress goes: never to stdout, but with `-o ndjson`, whose lines are the data.
#[derive(Debug)]
struct Screen<'a> {
    global: &'a Global,
    bar: Option<ProgressBar>,
    line_at: Option<Instant>,
    /// What the last line said that it waits for.
    waits_for: Option<String>,
    is_headed: bool,
    is_away: bool,
}

impl<'a> Screen<'a> {
    fn new(global: &'a Global) -> Self {
        let is_terminal = io::stderr().is_terminal() && !global.quiet;
        let bar = is_terminal.then(|| ProgressBar::new(STEPS));
        if let Some(bar) = &bar {
            let style = ProgressStyle::with_template("  [{bar:20}]  {wide_msg}");
            bar.set_style(
                style
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=>."),
            );
        }
        Self {
            global,
            bar,
            line_at: None,
            waits_for: None,
            is_headed: false,
            is_away: false,
        }
    }

    fn show(&mut self, dump: &DumpView) {
        self.is_away = false;
        if !self.is_headed {
            self.is_headed = true;
            self.line(&format!("dump {}  {}", dump.id, dump.uri));
        }
        if self.global.output == Format::Ndjson {
            // A reader that left ends the command when the result is written.
            drop(output::value(self.global, dump));
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position((dump.progress_ratio() * STEPS as f64) as u64);
                bar.set_message(dump.progress_text());
            }
            None => {
                let is_due = self.line_at.is_none_or(|at| at.elapsed() >= LINE_EVERY);
                // Nothing may follow for a long time: another reason to wait is told at once.
                if is_due || self.waits_for != dump.waiting_for {
                    self.waits_for.clone_from(&dump.waiting_for);
                    self.line_at = Some(Instant::now());
                    self.line(&format!("  {}", dump.progress_text()));
                }
            }
        }
    }

    fn away(&mut self, text: &str) {
        if !self.is_away {
            self.is_away = true;
            self.line(&format!("  the node is away ({text}); asking again"));
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            _ if self.global.quiet => (),
            Some(bar) => bar.println(text),
            None => output::talk(&format!("{text}\n")),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
