//! A reader that reads what a script says, and an agreed state in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Answer, Command, OnGap, Origin, Replica, ReplicaKind, Source, State, TableLayout},
    dump::{Extent, Heap, ReplicaFacts, TableName},
    lsn::{Lsn, PgTime},
};
use tokio::sync::{Notify, watch};

use super::super::{
    DumpError, FoundTable, OpenedRows, RangeOrder, ReadTarget, RowBatch, RowReader, RowSource,
    TablesFound,
};
use crate::consensus::{Consensus, Leadership, ProposeError};

/// What happens to the next range that is opened.
#[derive(Debug)]
pub(super) enum Fault {
    /// It cannot be opened.
    Open(DumpError),
    /// It fails after its first row.
    Midway(DumpError),
    /// The reader panics while it opens.
    PanicOpening,
    /// The reader panics after the first row.
    PanicMidway,
    /// It never opens.
    Hang,
    /// It opens and never says anything.
    Silence,
}

/// A replica with one table, `public.orders`, of one row a page.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) found: Mutex<Vec<FoundTable>>,
    pub(super) problems: Mutex<Vec<DumpError>>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    /// Errors of looking at tables, by replica.
    pub(super) away: Mutex<BTreeMap<String, DumpError>>,
    /// What is said of the health of every replica.
    pub(super) health: Mutex<Result<ReplicaFacts, DumpError>>,
    orders: Mutex<Vec<RangeOrder>>,
    /// Readings under way.
    reading: Arc<AtomicUsize>,
    ended: Arc<Notify>,
}

pub(super) fn orders_name() -> TableName {
    TableName {
        schema: "public".to_owned(),
        table: "orders".to_owned(),
    }
}

pub(super) fn copy(error: &DumpError) -> DumpError {
    DumpError {
        explanation: error.explanation,
        what: error.what.clone(),
        remedy: error.remedy,
    }
}

pub(super) fn found(oid: u32, filenode: u32, pages_end: u32) -> FoundTable {
    FoundTable {
        heap: Heap {
            name: orders_name(),
            label: orders_name(),
            oid,
            filenode,
        },
        layout: TableLayout {
            filenode,
            pages_end,
            bytes: u64::from(pages_end) * 8_192,
            row_estimate: u64::from(pages_end),
            since_xid: 700,
            planned_at: Lsn(50),
        },
        has_toast: true,
    }
}

impl Script {
    pub(super) fn new(pages_end: u32) -> Self {
        Self {
            found: Mutex::new(vec![found(1, 1, pages_end)]),
            problems: Mutex::default(),
            faults: Mutex::default(),
            away: Mutex::default(),
            health: Mutex::new(Ok(ReplicaFacts::default())),
            orders: Mutex::default(),
            reading: Arc::default(),
            ended: Arc::default(),
        }
    }

    pub(super) fn add(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    pub(super) fn orders(&self) -> Vec<RangeOrder> {
        self.orders.lock().unwrap().clone()
    }

    /// Waits until nothing is being read.
    pub(super) async fn until_nothing_is_read(&self) {
        loop {
            let ended = self.ended.notified();
            if self.reading.load(Ordering::SeqCst) == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// Counts a reading for as long as it lives.
#[derive(Debug)]
struct Reading(Arc<AtomicUsize>, Arc<Notify>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.notify_waiters();
    }
}

#[async_trait]
impl RowReader for Script {
    async fn look(&self, target: &ReadTarget, names: &[String]) -> Result<TablesFound, DumpError> {
        if let Some(error) = self.away.lock().unwrap().get(&target.replica.name) {
            return Err(copy(error));
        }
        let is_asked = names.iter().any(|name| name == "public.orders");
        let tables = self.found.lock().unwrap().clone();
        let problems = self.problems.lock().unwrap();
        Ok(TablesFound {
            tables: if is_asked { tables } else { Vec::new() },
            problems: problems.iter().map(copy).collect(),
        })
    }

    async fn open(&self, _: &ReadTarget, order: &RangeOrder) -> Result<OpenedRows, DumpError> {
        self.reading.fetch_add(1, Ordering::SeqCst);
        let reading = Reading(Arc::clone(&self.reading), Arc::clone(&self.ended));
        self.orders.lock().unwrap().push(order.clone());
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            Some(Fault::Open(error)) => return Err(error),
            Some(Fault::PanicOpening) => panic!("on purpose"),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        let end = self
            .found
            .lock()
            .unwrap()
            .first()
            .map_or(0, |table| table.layout.pages_end);
        let row_count = match order.extent {
            Extent::Pages(pages) => {
                pages.last.min(end.saturating_sub(1)) + 1 - pages.first.min(end)
            }
            Extent::Sweep { .. } => 0,
        };
        Ok(OpenedRows {
            at: order.at_least,
            rows: Box::new(ScriptedRows {
                left: row_count,
                fault,
                _reading: reading,
            }),
        })
    }

    async fn health(&self, _: &ReadTarget) -> Result<ReplicaFacts, DumpError> {
        self.health.lock().unwrap().as_ref().copied().map_err(copy)
    }
}

#[derive(Debug)]
struct ScriptedRows {
    left: u32,
    fault: Option<Fault>,
    _reading: Reading,
}

#[async_trait]
impl RowSource for ScriptedRows {
    async fn next(&mut self) -> Result<Option<RowBatch>, DumpError> {
        if matches!(self.fault, Some(Fault::Silence)) {
            std::future::pending::<()>().await;
        }
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        match self.fault.take() {
            Some(Fault::Midway(error)) => return Err(error),
            Some(Fault::PanicMidway) => panic!("on purpose"),
            _ => {}
        }
        Ok(Some(RowBatch {
            bytes: Bytes::from_static(b"row"),
            rows: vec![(0, 3)],
        }))
    }
}

/// An agreed state in memory.
#[derive(Debug)]
pub(super) struct Agreed {
    state: watch::Sender<Arc<State>>,
    /// What the disk says, instead of keeping anything.
    pub(super) broken: Mutex<Option<String>>,
    proposals: AtomicUsize,
}

impl Agreed {
    pub(super) fn new(replicas: &[&str]) -> Self {
        let mut state = State::default();
        let source = Source {
            name: "shop".to_owned(),
            stream: "shop".to_owned(),
            url: "postgres://pgcapture@db/shop".to_owned(),
            password: None,
            slot: "shop_pgcapture".to_owned(),
            publication: "pgcapture_shop".to_owned(),
            tables: vec!["public.*".to_owned()],
            exclude: Vec::new(),
            paused: false,
            epoch: Epoch(0),
            created_at: PgTime(7),
            on_gap: OnGap::Halt,
            origin: Origin::Command,
            owns_publication: true,
        };
        state.apply(Command::AddSource(Box::new(source))).unwrap();
        for name in replicas {
            let replica = Box::new(replica(name));
            state.apply(Command::AddReplica(replica)).unwrap();
        }
        Self {
            state: watch::Sender::new(Arc::new(state)),
            broken: Mutex::default(),
            proposals: AtomicUsize::new(0),
        }
    }

    pub(super) fn proposal_count(&self) -> usize {
        self.proposals.load(Ordering::SeqCst)
    }

    pub(super) fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    pub(super) fn apply(&self, command: Command) -> Result<Answer, ProposeError> {
        let mut state = State::clone(&self.state.borrow());
        let answer = state.apply(command)?;
        self.state.send_replace(Arc::new(state));
        Ok(answer)
    }
}

pub(super) fn replica(name: &str) -> Replica {
    Replica {
        name: name.to_owned(),
        source: "shop".to_owned(),
        url: format!("postgres://pgcapture@{name}/shop"),
        password: None,
        kind: ReplicaKind::Standby,
        system_identifier: 7,
        ranges_max: 2,
        lag_max: std::time::Duration::from_secs(30),
        created_at: PgTime(1),
    }
}

#[async_trait]
impl Consensus for Agreed {
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        self.proposals.fetch_add(1, Ordering::SeqCst);
        // As on a disk, others run meanwhile.
        tokio::task::yield_now().await;
        if let Some(reason) = self.broken.lock().unwrap().clone() {
            return Err(ProposeError::Store { reason });
        }
        self.apply(command)
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        watch::channel(Leadership::alone("n1")).1
    }
}
