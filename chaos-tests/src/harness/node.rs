//! One node of the product: the built binary, its configuration, its data directory.
//!
//! Speaks to it as an operator would: configuration file, command line, HTTP.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    ports::free_ports,
    postgres::tail,
    process::Process,
    wait::{Look, until},
};

/// How long a node may take from its start until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long a request to its HTTP port may take.
const HTTP_WITHIN: Duration = Duration::from_secs(2);

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// The metric that says up to where the log is durable.
const DURABLE_METRIC: &str = "pgcapture_log_durable_lsn_bytes";

/// A node that was started at least once.
#[derive(Debug)]
pub struct Node {
    process: Process,
    binary: PathBuf,
    dir: PathBuf,
    address: NodeAddress,
}

/// Where a node listens; the same after each restart.
#[derive(Clone, Copy, Debug)]
pub struct NodeAddress {
    grpc_port: u16,
    http_port: u16,
}

impl Node {
    /// Writes a configuration below `dir`, starts the node and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready; shows its log.
    pub async fn start(binary: &Path, dir: &Path) -> Result<Self> {
        let mut node = Self::launch_first(binary, &dir.join("node"), "n1", free_ports()?, &[])?;
        node.ready().await?;
        Ok(node)
    }

    /// Writes a configuration into `dir`, which it makes, and starts the node without waiting. The ports
    /// are those of gRPC and HTTP; the peers, when there are any, are the nodes of its cluster.
    ///
    /// # Errors
    ///
    /// When the directory or the process cannot be made.
    pub fn launch_first(
        binary: &Path,
        dir: &Path,
        name: &str,
        [grpc_port, http_port]: [u16; 2],
        peers: &[String],
    ) -> Result<Self> {
        fs::create_dir(dir).context("create the node's directory")?;
        let address = NodeAddress {
            grpc_port,
            http_port,
        };
        let config = config(&dir.join("data"), name, address, peers);
        fs::write(dir.join("pgcapture.toml"), config).context("write the configuration")?;
        Ok(Self {
            process: spawn(binary, dir)?,
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            address,
        })
    }

    /// Returns where it listens.
    #[must_use]
    pub const fn address(&self) -> NodeAddress {
        self.address
    }

    /// Declares a source as an operator would, by the command line.
    ///
    /// # Errors
    ///
    /// When the command fails; shows what it said.
    pub fn add_source(&self, name: &str, url: &str, tables: &str) -> Result<()> {
        self.command(&["source", "add", name, "--url", url, "--tables", tables])
            .map(|_| ())
    }

    /// Runs `pgcapture` with these arguments against the node; returns what it printed.
    ///
    /// # Errors
    ///
    /// When the command fails; shows what it said.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.arg("--endpoint").arg(self.address.endpoint());
        command.args(arguments);
        let output = command.output().context("run pgcapture")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let words = arguments.join(" ");
        ensure!(output.status.success(), "pgcapture {words} failed: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `pgcapture -o json` with these arguments against the node; returns what it printed.
    ///
    /// # Errors
    ///
    /// When the command fails, or prints something else.
    pub fn ask(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let words = [&["-o", "json"], arguments].concat();
        let printed = self.command(&words)?;
        serde_json::from_str(&printed).with_context(|| format!("no JSON: {printed}"))
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.ended(Duration::from_secs(10)).await?;
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    ///
    /// When it does not run, or still runs after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.ended(limit).await
    }

    /// Asks it to end, kills it when it does not, and returns what was wrong with how it ended.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled or killed.
    pub async fn end_politely(&mut self, limit: Duration) -> Result<Option<String>> {
        match self.terminate(limit).await {
            Ok(status) if status.success() => Ok(None),
            Ok(status) => Ok(Some(format!("it ended with {status} after SIGTERM"))),
            Err(error) => {
                self.kill().await?;
                Ok(Some(format!("{error:#}")))
            }
        }
    }

    /// Freezes or thaws it.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn freeze(&self, is_frozen: bool) -> Result<()> {
        let signal = if is_frozen {
            Signal::STOP
        } else {
            Signal::CONT
        };
        self.process.signal(signal)
    }

    /// Starts it on the same directory and ports, without waiting.
    ///
    /// # Errors
    ///
    /// When the process cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        self.process = spawn(&self.binary, &self.dir)?;
        Ok(())
    }

    /// Returns how it ended; `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the system cannot say.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.process.status()
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends or is not ready in time; shows its log.
    pub async fn ready(&mut self) -> Result<()> {
        let address = self.address;
        let looked = until("the node to be ready", READY_WITHIN, async || {
            if let Ok(Some(status)) = self.process.status() {
                return Look::Ready(Err(format!("it ended with {status}")));
            }
            match address.get("/readyz").await {
                Ok((200, _)) => Look::Ready(Ok(())),
                Ok((code, body)) => Look::NotYet(format!("{code} {body}")),
                Err(error) => Look::NotYet(format!("{error:#}")),
            }
        })
        .await;
        let is_ready = looked.and_then(|ended| ended.map_err(anyhow::Error::msg));
        is_ready.with_context(|| format!("its log ends:\n{}", self.log_tail()))
    }

    /// Returns the last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.dir.join("log"))
    }
}

impl NodeAddress {
    /// Returns where clients connect.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc_port)
    }

    /// Returns the position up to which the log is durable; `None` while the node has not opened it.
    ///
    /// # Errors
    ///
    /// When the node cannot be asked.
    pub async fn durable_lsn(&self) -> Result<Option<u64>> {
        let (code, body) = self.get("/metrics").await?;
        ensure!(code == 200, "GET /metrics answered {code}");
        Ok(metric(&body, DURABLE_METRIC).filter(|lsn| *lsn > 0))
    }

    /// HTTP/1.0, so that the answer is never chunked.
    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let exchange = async {
            let mut socket = TcpStream::connect(("127.0.0.1", self.http_port)).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
            socket.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            let mut limited = socket.take(ANSWER_BYTES_MAX);
            limited.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = timeout(HTTP_WITHIN, exchange)
            .await
            .context("HTTP time-out")??;
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((code.context("an HTTP status")?, body.to_owned()))
    }
}

/// Small segments and a small catch-up threshold, so that kills also hit the change from one segment to
/// the next and from one way of reading the slot to the other.
fn config(data_dir: &Path, name: &str, address: NodeAddress, peers: &[String]) -> String {
    let NodeAddress {
        grpc_port,
        http_port,
    } = address;
    format!(
        r#"[node]
name = "{name}"
data_dir = "{}"
listen = "127.0.0.1:{grpc_port}"
metrics = "127.0.0.1:{http_port}"
peers = {peers:?}

[log]
segment = "1MiB"

[agent]
catch_up_above = "4MiB"
follow_below = "512KiB"
catch_up_chunk = "2MiB"
"#,
        data_dir.display()
    )
}

/// Reads one gauge; the largest of several series.
fn metric(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let is_whole_name = rest.starts_with('{') || rest.starts_with(' ');
        let value: f64 = rest.rsplit(' ').next()?.parse().ok()?;
        // Whole numbers below 2^53: exact in an f64.
        (is_whole_name && value >= 0.0).then_some(value as u64)
    };
    text.lines().filter_map(of_line).max()
}

fn spawn(binary: &Path, dir: &Path) -> Result<Process> {
    let open = || {
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"));
        log.context("open the node's log")
    };
    let mut command = Command::new(binary);
    command
        .arg("start")
        .arg("-c")
        .arg(dir.join("pgcapture.toml"));
    command.stdout(open()?).stderr(open()?);
    Process::spawn("pgcapture", &mut command, Signal::KILL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_read_by_its_whole_name() {
        let text = "# TYPE a gauge\na_longer 9\na{source=\"x\"} 41\na{source=\"y\"} 42\n";
        assert_eq!(metric(text, "a"), Some(42));
        assert_eq!(metric("b 1.5e1\n", "b"), Some(15));
        assert_eq!(metric(text, "c"), None);
    }
}
