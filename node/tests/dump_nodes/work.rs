//! Three nodes, tables of large rows, a standby to read them from, and a consumer that says when it goes on.
//!
//! A range is larger than all that may be under way, so that its reader stands still while the consumer
//! does: who reads what can be looked at for as long as it takes.

use std::collections::BTreeMap;

use pgcapture_actors::postgres::{LocalServer, StandbyOptions};
use pgcapture_proto::pgcapture::{CaptureMessage, field};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    consumer::{Consumer, id},
    process::{eventually, run},
    trio::Trio,
};

/// Tables, each one range.
pub(crate) const TABLE_COUNT: usize = 16;

/// Rows of a table, of 256 KiB each; the server keeps them compressed.
const ROW_COUNT: i64 = 48;
const ROW_BYTES: usize = 256 << 10;

/// Ranges that are read at once.
pub(crate) const PARALLEL: usize = 4;

/// Less than a range by far: the consumer holds the reader up.
const LIMITS: &str = "[limits]\nin_flight = \"1MiB\"\n";

/// A delivery of the rows of one range.
#[derive(Debug)]
struct Delivery {
    table: String,
    range: u32,
    ids: Vec<i64>,
    is_complete: bool,
}

pub(crate) struct Work {
    pub(crate) trio: Trio,
    /// Who leads when it begins.
    pub(crate) leader: usize,
    /// Where the consumer is.
    pub(crate) home: usize,
    consumer: Consumer,
    /// The id of the dump.
    dump: String,
    deliveries: Vec<Delivery>,
    _standby: LocalServer,
}

fn names() -> impl Iterator<Item = String> {
    (1..=TABLE_COUNT).map(|number| format!("t{number:02}"))
}

/// What row `id` of a table holds.
fn body(id: i64) -> Vec<u8> {
    let letter = b'a' + u8::try_from(id % 26).unwrap();
    vec![letter; ROW_BYTES]
}

impl Work {
    pub(crate) async fn start() -> Self {
        let trio = Trio::start_with(LIMITS).await;
        for name in names() {
            trio.sql(&format!(
                "CREATE TABLE {name} (id bigint PRIMARY KEY, body text); \
                 INSERT INTO {name} SELECT n, repeat(chr(97 + n % 26), {ROW_BYTES}) \
                 FROM generate_series(1, {ROW_COUNT}) AS n; ANALYZE {name}"
            ))
            .await;
        }
        trio.add_source(&[]).await;
        trio.owner().await;
        let options = StandbyOptions {
            hot_standby_feedback: true,
            ..StandbyOptions::default()
        };
        let standby = trio.server.start_standby(options).await.unwrap();
        standby.catch_up_with(&trio.server).await.unwrap();
        let leader = trio.leader(0).await;
        let home = (0..3).find(|index| *index != leader).unwrap();
        let url = standby.url("postgres");
        let args = ["replica", "add", "r1", "--source", "shop", "--url", &url];
        run(trio.listen(home), &args).await.expect(0);
        let consumer = Consumer::open(trio.listen(home), "shop", &[]).await;
        trio.joined(home, "shop").await;
        let work = Self {
            trio,
            leader,
            home,
            consumer,
            dump: String::new(),
            deliveries: Vec::new(),
            _standby: standby,
        };
        work.until_nodes(3).await;
        work
    }

    /// Starts a dump of all tables.
    pub(crate) async fn start_dump(&mut self) {
        let tables = ["--table", "public.t0*", "--table", "public.t1*"];
        let args = [
            "dump",
            "start",
            "shop",
            "--detach",
            "--parallel",
            &PARALLEL.to_string(),
            "-o",
            "json",
        ];
        let args = [&args[..], &tables].concat();
        let started = run(self.trio.listen(self.home), &args).await.json();
        started["id"].as_str().unwrap().clone_into(&mut self.dump);
    }

    pub(crate) async fn kill(&mut self, index: usize) {
        self.trio.kill(index).await;
    }

    /// The dump as the node of the consumer tells it.
    async fn dump(&self) -> Value {
        let args = ["dump", "show", &self.dump, "-o", "json"];
        let shown = run(self.trio.listen(self.home), &args).await;
        // Between two leaders there may be no answer.
        serde_json::from_str(&shown.data).unwrap_or(Value::String(shown.talk))
    }

    /// Waits until as many ranges as are wanted stand still, and returns the nodes that read them.
    async fn readers(&self) -> Vec<String> {
        eventually("ranges that are read", async || {
            let dump = self.dump().await;
            let reading = dump["reading"].as_array().into_iter().flatten();
            let reading = reading.filter(|range| range["is_read"] == false);
            let nodes = reading.map(|range| range["node"].as_str().unwrap_or("?").to_owned());
            let nodes: Vec<_> = nodes.collect();
            (nodes.len() == PARALLEL)
                .then_some(nodes)
                .ok_or(dump.to_string())
        })
        .await
    }

    /// Takes ranges until a node is in the middle of reading one.
    pub(crate) async fn until_read_by(&mut self, index: usize) {
        let name = format!("n{}", index + 1);
        // Each node has its turn.
        for _ in 0..4 {
            if self.readers().await.contains(&name) {
                return;
            }
            self.take_some(1).await;
        }
        panic!("{name} has read nothing");
    }

    /// Takes and acknowledges rows until so many ranges more were delivered whole.
    pub(crate) async fn take_some(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let message = self.consumer.next().await;
            left -= usize::from(self.take(&message));
            self.consumer.ack(&message).await;
        }
    }

    /// Takes the rest; returns the dump.
    pub(crate) async fn take_all(&mut self) -> Value {
        let left = names().filter(|name| self.complete(name) == 0).count();
        self.take_some(left).await;
        self.dump_when(|dump| dump["state"] == "finished").await
    }

    /// Waits until every range that was delivered whole is agreed on to be finished.
    pub(crate) async fn until_recorded(&self) {
        let whole = self.deliveries.iter().filter(|it| it.is_complete).count();
        let is_recorded = |dump: &Value| dump["ranges_finished"] == whole;
        self.dump_when(is_recorded).await;
    }

    async fn dump_when(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        eventually("the dump", async || {
            let dump = self.dump().await;
            let is_there = is_wanted(&dump);
            is_there.then(|| dump.clone()).ok_or(dump.to_string())
        })
        .await
    }

    /// Notes a row; returns whether it was the last of its range.
    fn take(&mut self, message: &CaptureMessage) -> bool {
        let checkpoint = message.checkpoint.as_ref().unwrap();
        assert_eq!(checkpoint.lsn, 0, "an existing row: {checkpoint:?}");
        let change = message.change.as_ref().unwrap();
        let Some(field::Value::Binary(bytes)) = &change.new[1].value else {
            panic!("no body: {:?}", change.new[1].name)
        };
        let (id, range) = (id(message), checkpoint.seq);
        assert!(*bytes == body(id), "row {id} is another one");
        let is_last = !checkpoint.data.is_empty();
        match self.deliveries.last_mut() {
            Some(last) if last.range == range => {
                assert_eq!(last.table, change.table);
                last.ids.push(id);
                last.is_complete = is_last;
            }
            _ => self.deliveries.push(Delivery {
                table: change.table.clone(),
                range,
                ids: vec![id],
                is_complete: is_last,
            }),
        }
        is_last
    }

    /// How often a table was delivered whole.
    fn complete(&self, table: &str) -> usize {
        let all = self.deliveries.iter();
        all.filter(|it| it.is_complete && it.table == table).count()
    }

    /// Checks that every table came whole exactly once, each row once and as it is, and that at most so many
    /// ranges were begun in vain.
    pub(crate) fn check(&self, ended: &Value, in_flight: usize) {
        let wanted: Vec<_> = (1..=ROW_COUNT).collect();
        for whole in self.deliveries.iter().filter(|it| it.is_complete) {
            assert_eq!(whole.ids, wanted, "{whole:?}");
        }
        let counts: BTreeMap<_, _> = names().map(|name| (self.complete(&name), name)).collect();
        let only_once = counts.keys().eq([&1]);
        assert!(
            only_once,
            "a finished range ran again: {:?}",
            self.deliveries
        );
        let begun = self.deliveries.len() - TABLE_COUNT;
        assert!(begun <= in_flight, "{begun} in vain: {:?}", self.deliveries);
        assert_eq!(ended["ranges_finished"], TABLE_COUNT, "{ended}");
        let rows = names().map(|_| ROW_COUNT).sum::<i64>();
        assert_eq!(ended["rows"], rows, "{ended}");
    }

    /// The metrics of a node.
    pub(crate) async fn metrics(&self, index: usize) -> String {
        let address = &self.trio.node(index).metrics;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until the leader knows of so many nodes that may read.
    pub(crate) async fn until_nodes(&self, count: usize) {
        let wanted = format!("pgcapture_replica_nodes{{replica=\"r1\"}} {count}");
        eventually("nodes that read", async || {
            let metrics = self.metrics(self.leader).await;
            let lines = metrics
                .lines()
                .filter(|line| line.contains("replica_nodes"));
            let said = lines.collect::<Vec<_>>().join("; ");
            let is_there = metrics.lines().any(|line| line == wanted);
            is_there.then_some(()).ok_or(said)
        })
        .await;
    }
}
