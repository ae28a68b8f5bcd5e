//! The nodes of a `dev` cluster and what can be done to them.
//!
//! Real processes on loopback; the ways between them are [`Links`]. Everything lies in one folder,
//! which belongs to whoever starts the cluster. Decides nothing about PostgreSQL or sources.

pub(in crate::cli) mod api;
mod member;
mod ports;
mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pgcapture_engine::codes::{self, Explanation};
use rustix::process::Signal;

pub(in crate::cli) use self::member::name;
use self::{
    member::{Addresses, Member},
    ports::Ports,
};
use super::{
    control::{NodeState, NodeView},
    links::Links,
};
use crate::cli::Failure;

/// At most this many nodes; each is a process with some 40 MiB.
pub(in crate::cli) const NODES_MAX: u8 = 9;

/// All nodes of a new cluster must be ready within this time; a busy machine takes a few seconds.
const READY_MAX: Duration = Duration::from_secs(60);

/// Nodes may drain for this long; then they are killed, as nothing of them is kept.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Links that are closed when a node's process ends, by a task of its own.
type SharedLinks = Arc<Mutex<Links>>;

/// A running cluster. Its nodes are killed when it is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Cluster {
    folder: PathBuf,
    ports: Ports,
    flags: Vec<String>,
    members: BTreeMap<u8, Member>,
    links: SharedLinks,
    /// Whether the ways between nodes can be cut; else they reach each other without a proxy.
    has_links: bool,
    /// Groups that do not reach each other; none, or at least two.
    groups: Vec<BTreeSet<u8>>,
}

/// A panic under the lock leaves links that work: go on.
fn lock(links: &SharedLinks) -> MutexGuard<'_, Links> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Starts nodes 1 to `count` and waits until all are ready. Port 0 takes free ones.
    ///
    /// # Errors
    ///
    /// With the last lines of a node's output when that is the reason; nothing runs then.
    pub(in crate::cli) async fn start(
        folder: &Path,
        count: u8,
        port: u16,
        flags: Vec<String>,
    ) -> Result<Self, Failure> {
        Self::start_with(folder, (count, port), flags, true).await
    }

    /// The same for measurements: on free ports, and with nothing between the nodes.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub(in crate::cli) async fn start_direct(folder: &Path, count: u8) -> Result<Self, Failure> {
        Self::start_with(folder, (count, 0), Vec::new(), false).await
    }

    async fn start_with(
        folder: &Path,
        (count, port): (u8, u16),
        flags: Vec<String>,
        has_links: bool,
    ) -> Result<Self, Failure> {
        let mut cluster = Self {
            has_links,
            folder: folder.to_owned(),
            ports: match port {
                0 => Ports::Free,
                port => Ports::From(port),
            },
            flags,
            members: BTreeMap::new(),
            links: SharedLinks::default(),
            groups: Vec::new(),
        };
        let numbers = 1..=count;
        let addresses = numbers.map(|number| Ok((number, cluster.ports.of(number)?)));
        let addresses: io::Result<Vec<(u8, Addresses)>> = addresses.collect();
        let addresses = addresses.map_err(|error| port_failure(&error))?;
        let peers: Vec<SocketAddr> = addresses.iter().map(|(_, it)| it.listen).collect();
        for (number, addresses) in addresses {
            cluster
                .place(number, addresses, &peers)
                .map_err(io_failure)?;
        }
        let links = Arc::clone(&cluster.links);
        for member in cluster.members.values_mut() {
            member.start(&links).map_err(io_failure)?;
        }
        let numbers: Vec<u8> = cluster.members.keys().copied().collect();
        let ready = numbers.iter().map(|number| cluster.ready(*number));
        let ready = futures_util::future::try_join_all(ready).await;
        ready.map(|_| cluster)
    }

    /// Returns the address of a node.
    pub(in crate::cli) fn address(&self, number: u8) -> Option<SocketAddr> {
        let member = self.members.get(&number)?;
        Some(member.addresses.listen)
    }

    /// Returns what is known of all nodes.
    pub(in crate::cli) fn view(&self) -> Vec<NodeView> {
        let others = |of: u8| {
            let others = self
                .members
                .keys()
                .copied()
                .filter(move |other| *other != of);
            others.filter(|other| self.is_cut((of, *other))).collect()
        };
        let members = self.members.values();
        members
            .map(|member| member.view(others(member.number)))
            .collect()
    }

    /// Kills a node as `kill -9` does.
    pub(in crate::cli) async fn kill(&mut self, number: u8) -> Result<String, Failure> {
        let member = self.member_in(number, &[NodeState::Running, NodeState::Paused])?;
        member.end(Signal::KILL).await;
        Ok(format!("killed {}", member.name()))
    }

    /// Stops a node in order, as `systemctl stop` does.
    pub(in crate::cli) async fn stop_node(&mut self, number: u8) -> Result<String, Failure> {
        let member = self.member_in(number, &[NodeState::Running])?;
        member.end(Signal::TERM).await;
        Ok(format!("stopped {}", member.name()))
    }

    /// Freezes a node.
    pub(in crate::cli) async fn pause(&mut self, number: u8) -> Result<String, Failure> {
        let member = self.member_in(number, &[NodeState::Running])?;
        member.pause(true).await;
        Ok(format!("paused {}", member.name()))
    }

    /// Lets a frozen node go on.
    pub(in crate::cli) async fn resume(&mut self, number: u8) -> Result<String, Failure> {
        let member = self.member_in(number, &[NodeState::Paused])?;
        member.pause(false).await;
        Ok(format!("resumed {}", member.name()))
    }

    /// Starts a dead node on its data and waits until it is ready.
    pub(in crate::cli) async fn start_node(&mut self, number: u8) -> Result<String, Failure> {
        let links = Arc::clone(&self.links);
        let member = self.member_in(number, &[NodeState::Dead])?;
        member.start(&links).map_err(io_failure)?;
        let name = member.name();
        lock(&links).open_to(number, |pair| self.is_cut(pair));
        self.ready(number).await?;
        Ok(format!("{name} is ready again"))
    }

    /// Adds a node with the next number, which joins the others.
    pub(in crate::cli) async fn add(&mut self) -> Result<String, Failure> {
        let last = self.members.keys().next_back().copied().unwrap_or_default();
        let number = last + 1;
        if number > NODES_MAX {
            return Err(refused(format!("dev has at most {NODES_MAX} nodes")));
        }
        if !self.groups.is_empty() {
            let text = "a node that is in no group reaches nobody and cannot join".to_owned();
            return Err(refused(text).next("pgcapture dev heal"));
        }
        let addresses = self
            .ports
            .of(number)
            .map_err(|error| port_failure(&error))?;
        let members = self.members.values().map(|member| member.addresses.listen);
        let peers: Vec<SocketAddr> = members.chain([addresses.listen]).collect();
        self.place(number, addresses, &peers).map_err(io_failure)?;
        let links = Arc::clone(&self.links);
        if let Some(member) = self.members.get_mut(&number) {
            member.start(&links).map_err(io_failure)?;
        }
        self.ready(number).await?;
        Ok(format!(
            "{} has joined at {}",
            name(number),
            addresses.listen
        ))
    }

    /// Cuts all ways between groups of nodes; those that no group names are one more.
    pub(in crate::cli) fn partition(
        &mut self,
        mut groups: Vec<BTreeSet<u8>>,
    ) -> Result<String, Failure> {
        let mut named = BTreeSet::new();
        for number in groups.iter().flatten() {
            self.known(*number)?;
            if !named.insert(*number) {
                return Err(refused(format!("node {number} stands in two groups")));
            }
        }
        let rest: BTreeSet<u8> = self.members.keys().copied().collect();
        let rest: BTreeSet<u8> = rest.difference(&named).copied().collect();
        groups.retain(|group| !group.is_empty());
        groups.extend((!rest.is_empty()).then_some(rest));
        if groups.len() < 2 {
            return Err(refused("one group is no partition".to_owned()));
        }
        self.groups = groups;
        lock(&self.links).cut(|pair| self.is_cut(pair));
        let groups: Vec<String> = self.groups.iter().map(group_text).collect();
        Ok(format!(
            "these do not reach each other: {}",
            groups.join(" | ")
        ))
    }

    /// Makes every way whole again.
    pub(in crate::cli) fn heal(&mut self) -> String {
        self.groups.clear();
        lock(&self.links).cut(|_| false);
        "all nodes reach each other again".to_owned()
    }

    /// Stops all nodes in order; what does not end in time is killed. Returns the names of those.
    pub(in crate::cli) async fn stop(mut self) -> Vec<String> {
        self.heal();
        let stops = self.members.values_mut().map(|member| async move {
            let stopped = tokio::time::timeout(STOP_MAX, member.end(Signal::TERM)).await;
            if stopped.is_ok() {
                return None;
            }
            member.end(Signal::KILL).await;
            Some(member.name())
        });
        let killed = futures_util::future::join_all(stops).await;
        killed.into_iter().flatten().collect()
    }

    /// Makes the files of a node, and the ways between it and the others.
    fn place(&mut self, number: u8, addresses: Addresses, peers: &[SocketAddr]) -> io::Result<()> {
        let flags = self.flags.clone();
        let new = Member::create(&self.folder, number, addresses, peers, flags)?;
        let mut links = lock(&self.links);
        for other in self.members.values().filter(|_| self.has_links) {
            links.add((number, other.number), other.addresses.listen)?;
            links.add((other.number, number), addresses.listen)?;
        }
        self.members.insert(number, new);
        // Before the new one listens: nobody may reach it by another way first.
        let mut members = self.members.values();
        members.try_for_each(|member| member.write_routes(&links.routes(member.number)))
    }

    /// Waits until a node answers that it is ready.
    async fn ready(&self, number: u8) -> Result<(), Failure> {
        let member = self
            .members
            .get(&number)
            .ok_or_else(|| self.unknown(number))?;
        let is_alive = || member.state() != NodeState::Dead;
        let ready = api::wait_ready(member.addresses.listen, is_alive);
        let problem = match tokio::time::timeout(READY_MAX, ready).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(ended)) => ended,
            Err(_) => format!("is not ready after {} s", READY_MAX.as_secs()),
        };
        let text = format!("{} {problem}\n{}", member.name(), member.tail());
        Err(Failure::new(1, &codes::node::DEV_NODE, text.trim_end())
            .next("look at the lines of the node above; -v shows more of them"))
    }

    fn is_cut(&self, (from, to): (u8, u8)) -> bool {
        let group = |number: u8| self.groups.iter().position(|group| group.contains(&number));
        !self.groups.is_empty() && group(from) != group(to)
    }

    fn known(&self, number: u8) -> Result<(), Failure> {
        let is_known = self.members.contains_key(&number);
        is_known.then_some(()).ok_or_else(|| self.unknown(number))
    }

    fn unknown(&self, number: u8) -> Failure {
        let known: Vec<String> = self.members.keys().map(u8::to_string).collect();
        let text = format!("there is no node {number}; there are {}", known.join(", "));
        Failure::new(4, &codes::node::DEV_NODE, text)
    }

    /// Returns a node that is in one of these states.
    fn member_in(&mut self, number: u8, wanted: &[NodeState]) -> Result<&mut Member, Failure> {
        self.known(number)?;
        let unknown = self.unknown(number);
        let member = self.members.get_mut(&number).ok_or(unknown)?;
        let state = member.state();
        if wanted.contains(&state) {
            return Ok(member);
        }
        let next = match state {
            NodeState::Dead => format!("pgcapture dev start {number}"),
            NodeState::Paused => format!("pgcapture dev resume {number}"),
            NodeState::Running => "nothing is to be done".to_owned(),
        };
        let text = format!("{} is {}", member.name(), state.as_str());
        Err(Failure::new(7, &codes::node::DEV_NODE, text).next(next))
    }
}

fn group_text(group: &BTreeSet<u8>) -> String {
    let names: Vec<String> = group.iter().map(|number| name(*number)).collect();
    names.join(",")
}

fn refused(text: String) -> Failure {
    Failure::usage(text).next("pgcapture dev partition 1 2,3")
}

fn coded(explanation: &Explanation, error: &io::Error) -> Failure {
    Failure::new(1, explanation, error.to_string())
}

fn io_failure(error: io::Error) -> Failure {
    coded(&codes::node::DEV_NODE, &error).next("check the temporary folder and its disk")
}

fn port_failure(error: &io::Error) -> Failure {
    coded(&codes::node::ADDRESS_IN_USE, error).next("choose another --port, or --port 0")
}

#[cfg(test)]
mod tests;
