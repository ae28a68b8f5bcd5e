//! `pgcapture dev kill 2` and its like: what they ask of the running `dev`.

use std::{collections::BTreeSet, str::FromStr};

use clap::Args;

use super::{
    DevCommand,
    control::{self, Request},
    status,
};
use crate::cli::{
    Failure, Global,
    output::{self, Format},
};

/// Which `dev`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Port of its first node; without, the one of --endpoint.
    #[arg(long)]
    pub(super) port: Option<u16>,
}

/// A node of it.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct NodeArgs {
    /// The node: 2, or n2.
    node: NodeNumber,
    #[command(flatten)]
    target: Target,
}

/// Groups of nodes.
#[derive(Args, Clone, Debug)]
pub(crate) struct PartitionArgs {
    /// Nodes that still reach each other, such as 2,3; those in no group are one more. In quotes, |
    /// stands between groups as well.
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<Groups>,
    #[command(flatten)]
    target: Target,
}

/// A node's number as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NodeNumber(u8);

impl FromStr for NodeNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix('n').unwrap_or(text);
        let number = number.parse().ok().filter(|number| *number > 0);
        number
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is no node; write 2 or n2"))
    }
}

/// One argument: one group, or several with `|` between.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Groups(Vec<BTreeSet<u8>>);

impl FromStr for Groups {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let group = |text: &str| {
            let nodes = text.split(',').map(str::trim);
            nodes
                .map(|node| node.parse::<NodeNumber>().map(|number| number.0))
                .collect()
        };
        text.split('|')
            .map(group)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

pub(super) async fn run(global: &Global, command: DevCommand) -> Result<(), Failure> {
    let (target, request) = match command {
        DevCommand::Status(target) => return status::run(global, target).await,
        DevCommand::Kill(args) => (args.target, Request::Kill(args.node.0)),
        DevCommand::Stop(args) => (args.target, Request::Stop(args.node.0)),
        DevCommand::Pause(args) => (args.target, Request::Pause(args.node.0)),
        DevCommand::Resume(args) => (args.target, Request::Resume(args.node.0)),
        DevCommand::Start(args) => (args.target, Request::Start(args.node.0)),
        DevCommand::Add(target) => (target, Request::Add),
        DevCommand::Partition(args) => {
            let groups = args.groups.into_iter().flat_map(|groups| groups.0);
            (args.target, Request::Partition(groups.collect()))
        }
        DevCommand::Heal(target) => (target, Request::Heal),
    };
    let path = control::path(control::port(global, target.port)?);
    let answer = control::ask(&path, &request, global.timeout.0).await?;
    let (said, nodes) = answer.into_result()?;
    if matches!(global.output, Format::Table | Format::Wide) {
        if !global.quiet {
            output::talk(&format!("{said}\n"));
        }
        return Ok(());
    }
    Ok(output::list(global, &nodes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_by_number_or_name() {
        assert_eq!("2".parse(), Ok(NodeNumber(2)));
        assert_eq!("n2".parse(), Ok(NodeNumber(2)));
        for bad in ["", "0", "n", "two", "300", "-1"] {
            assert!(bad.parse::<NodeNumber>().is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_are_written_apart_or_with_a_bar() {
        let set = |nodes: &[u8]| nodes.iter().copied().collect::<BTreeSet<u8>>();
        assert_eq!("1|2,3".parse(), Ok(Groups(vec![set(&[1]), set(&[2, 3])])));
        assert_eq!("n1, n2".parse(), Ok(Groups(vec![set(&[1, 2])])));
        for bad in ["", "1|", ",", "1;2"] {
            assert!(bad.parse::<Groups>().is_err(), "{bad}");
        }
    }
}
