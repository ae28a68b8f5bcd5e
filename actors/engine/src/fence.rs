//! Says who an agent is to PostgreSQL, and whom it may end there.
//!
//! Every connection of an agent calls itself `pgcapture/<node>/<epoch>/<cluster>`. Whoever wants the
//! slot reads the name of its holder: an older epoch of the same cluster is ended, everything else
//! is left alone. A name proves nothing against malice; it keeps honest clients from ending one
//! another. Never talks to a server.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Epoch;

/// How the name of every connection of ours begins.
pub const APPLICATION_PREFIX: &str = "pgcapture/";

/// PostgreSQL cuts `application_name` after this many bytes, which would take the epoch away.
const NAME_BYTES_MAX: usize = 63;

/// Tells clusters on one PostgreSQL apart. Zero is a single node without a cluster.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ClusterId(pub u32);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Who an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentName {
    node: String,
    epoch: Epoch,
    cluster: ClusterId,
}

/// What the holder of a slot is to the agent that wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An older epoch of ours, or an earlier life of this agent: it is ended.
    Older,
    /// A newer epoch of ours: this agent has been replaced.
    Newer(Epoch),
    /// Somebody else: another client, another cluster. Never ended.
    Foreign,
}

impl AgentName {
    /// Makes the name. What a server would change in the node's name (anything but printable ASCII)
    /// or what would be mistaken for a part is replaced, and the node is cut so that epoch and
    /// cluster always fit.
    #[must_use]
    pub fn new(node: &str, epoch: Epoch, cluster: ClusterId) -> Self {
        let taken = APPLICATION_PREFIX.len() + format!("/{epoch}/{cluster}").len();
        let plain = node.chars().map(|char| match char {
            '/' => '_',
            '!'..='~' => char,
            _ => '_',
        });
        let node = plain.take(NAME_BYTES_MAX.saturating_sub(taken)).collect();
        Self {
            node,
            epoch,
            cluster,
        }
    }

    /// Returns the epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Reads a name; `None` for one that no agent has. Names without a cluster are those of single
    /// nodes before there were clusters.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(APPLICATION_PREFIX)?;
        let mut parts = rest.split('/');
        let (node, epoch) = (parts.next()?, parts.next()?);
        let cluster = match parts.next() {
            Some(cluster) if cluster.len() == 8 => u32::from_str_radix(cluster, 16).ok()?,
            Some(_) => return None,
            None => 0,
        };
        let is_whole = parts.next().is_none() && epoch.bytes().all(|byte| byte.is_ascii_digit());
        is_whole.then_some(Self {
            node: node.to_owned(),
            epoch: Epoch(epoch.parse().ok()?),
            cluster: ClusterId(cluster),
        })
    }

    /// Says what the client that calls itself `name` is to this agent.
    #[must_use]
    pub fn judge(&self, name: &str) -> Holder {
        match Self::parse(name) {
            Some(other) if other.cluster != self.cluster => Holder::Foreign,
            Some(other) if other.epoch < self.epoch => Holder::Older,
            Some(other) if other.epoch > self.epoch => Holder::Newer(other.epoch),
            // One epoch belongs to one node: another one that claims it is none of ours.
            Some(other) if other.node == self.node => Holder::Older,
            Some(_) | None => Holder::Foreign,
        }
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            epoch,
            cluster,
        } = self;
        write!(f, "{APPLICATION_PREFIX}{node}/{epoch}/{cluster}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_older_and_ours_is_ended() {
        let me = AgentName::new("n1", Epoch(5), ClusterId(0xABCD));
        assert_eq!(me.to_string(), "pgcapture/n1/5/0000abcd");
        for (holder, wanted) in [
            ("pgcapture/n2/4/0000abcd", Holder::Older),
            ("pgcapture/n1/5/0000abcd", Holder::Older),
            ("pgcapture/n2/5/0000abcd", Holder::Foreign),
            ("pgcapture/n2/6/0000abcd", Holder::Newer(Epoch(6))),
            ("pgcapture/n2/4/0000abce", Holder::Foreign),
            ("pgcapture/n2/4", Holder::Foreign),
            ("pgcapture/dump/d-41", Holder::Foreign),
            ("pgcapture dev", Holder::Foreign),
            ("pg_recvlogical", Holder::Foreign),
            ("", Holder::Foreign),
        ] {
            assert_eq!(me.judge(holder), wanted, "{holder}");
        }
    }

    #[test]
    fn a_single_node_knows_its_older_version() {
        let me = AgentName::new("n1", Epoch(5), ClusterId::default());
        assert_eq!(me.judge("pgcapture/n1/4"), Holder::Older);
        assert_eq!(me.judge("pgcapture/n1/4/00000000"), Holder::Older);
        assert_eq!(me.judge("pgcapture/n1/4/00000001"), Holder::Foreign);
    }

    proptest! {
        #[test]
        fn a_name_fits_and_comes_back(node in ".{0,80}", epoch: u64, cluster: u32) {
            let name = AgentName::new(&node, Epoch(epoch), ClusterId(cluster));
            let text = name.to_string();
            prop_assert!(text.len() <= NAME_BYTES_MAX && text.is_ascii(), "{}", text);
            prop_assert_eq!(AgentName::parse(&text), Some(name));
        }
    }
}
