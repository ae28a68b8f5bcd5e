//! One node of a `dev` cluster: its files, its addresses, its process.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use rustix::process::Signal;

use super::{
    SharedLinks, lock,
    process::{Order, Process},
};
use crate::cli::{
    dev::control::{NodeState, NodeView},
    output,
};

/// Lines of a node's output that an error shows.
const TAIL_LINES: usize = 12;

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Addresses {
    /// Clients and peers.
    pub(in crate::cli) listen: SocketAddr,
    /// Metrics and health.
    pub(in crate::cli) metrics: SocketAddr,
}

/// A node.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) number: u8,
    pub(super) addresses: Addresses,
    folder: PathBuf,
    flags: Vec<String>,
    life: Option<Life>,
}

/// A process of it, running or ended.
#[derive(Debug)]
struct Life {
    process: Process,
    is_paused: bool,
    /// Whether its end is what somebody asked for.
    is_expected: Arc<AtomicBool>,
    /// Tells and closes what follows from its end.
    watch: Task<()>,
}

impl Member {
    /// Writes the files of a node that does not run yet; `peers` are the addresses of all.
    pub(super) fn create(
        parent: &Path,
        number: u8,
        addresses: Addresses,
        peers: &[SocketAddr],
        flags: Vec<String>,
    ) -> io::Result<Self> {
        let member = Self {
            number,
            addresses,
            folder: parent.join(name(number)),
            flags,
            life: None,
        };
        fs::create_dir_all(member.data_dir())?;
        let text = config_text(&name(number), &member.data_dir(), addresses, peers);
        fs::write(member.folder.join("pgcapture.toml"), text)?;
        Ok(member)
    }

    pub(super) fn name(&self) -> String {
        name(self.number)
    }

    /// Writes where its detours lead; in one step, because a running node reads the file.
    pub(super) fn write_routes(&self, routes: &str) -> io::Result<()> {
        let new = self.folder.join("routes.new");
        fs::write(&new, routes)?;
        fs::rename(new, self.routes())
    }

    /// Starts its process; connections to it are taken again, and refused when it has ended.
    pub(super) fn start(&mut self, links: &SharedLinks) -> io::Result<()> {
        let process = Process::start(&Order {
            config: self.folder.join("pgcapture.toml"),
            routes: self.routes(),
            output: self.log(),
            flags: self.flags.clone(),
        })?;
        let is_expected = Arc::new(AtomicBool::new(false));
        let mut ended = process.watch();
        let (links, number) = (Arc::clone(links), self.number);
        let (expected, log) = (Arc::clone(&is_expected), self.log());
        let watch = spawn(TaskKind::Tool, "node watch", async move {
            let Ok(status) = ended.wait_for(Option::is_some).await else {
                return;
            };
            lock(&links).close_to(number);
            if let Some(status) = *status
                && !expected.load(Ordering::Relaxed)
            {
                let name = name(number);
                output::talk(&format!(
                    "! {name} has ended by itself ({status})\n{}  next: pgcapture dev start {number}\n",
                    tail(&log)
                ));
            }
        });
        self.life = Some(Life {
            process,
            is_paused: false,
            is_expected,
            watch,
        });
        Ok(())
    }

    pub(super) fn state(&self) -> NodeState {
        match &self.life {
            Some(life) if life.process.ended().is_none() => {
                if life.is_paused {
                    NodeState::Paused
                } else {
                    NodeState::Running
                }
            }
            Some(_) | None => NodeState::Dead,
        }
    }

    /// Freezes it, or lets it go on.
    pub(super) async fn pause(&mut self, is_paused: bool) {
        if let Some(life) = &mut self.life {
            life.is_paused = is_paused;
            let signal = if is_paused {
                Signal::STOP
            } else {
                Signal::CONT
            };
            life.process.signal(signal).await;
        }
    }

    /// Ends it by a signal and waits until it is gone.
    pub(super) async fn end(&mut self, signal: Signal) {
        let Some(life) = &mut self.life else {
            return;
        };
        life.is_expected.store(true, Ordering::Relaxed);
        if life.is_paused && signal != Signal::KILL {
            life.process.signal(Signal::CONT).await;
        }
        life.process.signal(signal).await;
        // An error means that it can be waited for no more: it is gone.
        drop(life.process.watch().wait_for(Option::is_some).await);
        // Only then may it be started again: what follows from the end must not come after that.
        if !life.watch.is_finished()
            && let Err(end) = life.watch.join().await
        {
            tracing::warn!(%end, "the watch over a node did not end well");
        }
    }

    /// The last lines that it wrote.
    pub(super) fn tail(&self) -> String {
        tail(&self.log())
    }

    /// As it is shown; `cut_off` are the nodes that it does not reach.
    pub(super) fn view(&self, cut_off: Vec<u8>) -> NodeView {
        let state = self.state();
        let life = self.life.as_ref().filter(|_| state != NodeState::Dead);
        NodeView {
            node: self.number,
            name: self.name(),
            state,
            endpoint: self.addresses.listen.to_string(),
            metrics_url: format!("http://{}/metrics", self.addresses.metrics),
            pid: life.map(|life| life.process.id()),
            cut_off_from: cut_off,
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn routes(&self) -> PathBuf {
        self.folder.join("routes")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("node.log")
    }
}

/// What a node is called.
pub(in crate::cli) fn name(number: u8) -> String {
    format!("n{number}")
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
    lines
        .iter()
        .rev()
        .map(|line| format!("  | {line}\n"))
        .collect()
}

fn config_text(name: &str, data: &Path, addresses: Addresses, peers: &[SocketAddr]) -> String {
    // Strings of JSON are strings of TOML.
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let peers: Vec<String> = peers.iter().map(|peer| text(&peer.to_string())).collect();
    format!(
        "# Made by `pgcapture dev`.\n[node]\nname = {}\ndata_dir = {}\nlisten = {}\nmetrics = {}\npeers = [{}]\n",
        text(name),
        text(&data.display().to_string()),
        text(&addresses.listen.to_string()),
        text(&addresses.metrics.to_string()),
        peers.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_its_place_and_all_peers() {
        let addresses = Addresses {
            listen: "127.0.0.1:7701".parse().unwrap(),
            metrics: "127.0.0.1:7791".parse().unwrap(),
        };
        let peers = ["127.0.0.1:7700", "127.0.0.1:7701"].map(|peer| peer.parse().unwrap());
        let text = config_text("n2", Path::new("/tmp/a \"b\""), addresses, &peers);
        let table: toml::Table = text.parse().unwrap();
        let node = table["node"].as_table().unwrap();
        assert_eq!(node["name"].as_str(), Some("n2"));
        assert_eq!(node["data_dir"].as_str(), Some("/tmp/a \"b\""));
        assert_eq!(node["listen"].as_str(), Some("127.0.0.1:7701"));
        assert_eq!(node["metrics"].as_str(), Some("127.0.0.1:7791"));
        let peers = node["peers"].as_array().unwrap();
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].as_str(), Some("127.0.0.1:7700"));
    }

    #[test]
    fn an_error_shows_the_last_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("node.log");
        assert_eq!(tail(&log), "");
        let lines: String = (0..100).map(|line| format!("line {line}\n")).collect();
        fs::write(&log, lines).unwrap();
        let shown = tail(&log);
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("  | line 99\n"), "{shown}");
    }
}
