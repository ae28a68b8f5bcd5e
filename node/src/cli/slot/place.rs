//! `pgcapture slot move|rebalance`: which node reads what.

use clap::Args;
use pgcapture_engine::codes;
use pgcapture_proto::admin::v1::{MoveSourceRequest, RebalanceRequest, SourceMove};
use serde::Serialize;

use super::SlotView;
use crate::cli::{
    Failure, Global, connect,
    output::{self, Column, Format, View},
};

/// Arguments of `slot move`.
#[derive(Args, Debug)]
pub struct MoveArgs {
    /// The slot, or the source that it belongs to.
    slot: String,
    /// The node that shall read it.
    node: String,
}

/// Arguments of `slot rebalance`.
#[derive(Args, Debug)]
pub struct RebalanceArgs {
    /// Only say what would move.
    #[arg(long)]
    dry_run: bool,
}

/// What moved.
#[derive(Clone, Debug, Serialize)]
struct MoveView {
    source: String,
    from: String,
    to: String,
    epoch: Option<u64>,
}

impl From<SourceMove> for MoveView {
    fn from(moved: SourceMove) -> Self {
        let SourceMove { source, from, to } = moved;
        Self {
            source,
            from,
            to,
            epoch: None,
        }
    }
}

impl View for MoveView {
    const COLUMNS: &'static [Column] = &[("SOURCE", false), ("FROM", false), ("TO", false)];

    fn cells(&self) -> Vec<String> {
        vec![self.source.clone(), self.from.clone(), self.to.clone()]
    }
}

/// Returns the source that `wanted` means: by its slot first, then by its own name.
fn source_of<'a>(slots: &'a [SlotView], wanted: &str) -> Result<&'a str, Failure> {
    let by_slot = slots.iter().find(|slot| slot.slot == wanted);
    let found = by_slot.or_else(|| slots.iter().find(|slot| slot.source == wanted));
    found.map(|slot| slot.source.as_str()).ok_or_else(|| {
        let known: Vec<&str> = slots.iter().map(|slot| slot.slot.as_str()).collect();
        let text = format!(
            "unknown slot \"{wanted}\"; known slots: {}",
            known.join(", ")
        );
        Failure::new(4, &codes::node::NOT_FOUND, text)
    })
}

pub(super) async fn move_slot(
    global: &Global,
    args: MoveArgs,
    slots: &[SlotView],
) -> Result<(), Failure> {
    let source = source_of(slots, &args.slot)?.to_owned();
    let mut client = connect::cluster(global).await?;
    let request = MoveSourceRequest {
        source: source.clone(),
        node: args.node.clone(),
    };
    let moved = client.move_source(request).await?.into_inner();
    let view = MoveView {
        source,
        from: moved.from,
        to: args.node,
        epoch: Some(moved.epoch),
    };
    if !matches!(global.output, Format::Table | Format::Wide) {
        return Ok(output::one(global, &view)?);
    }
    if !global.quiet {
        let MoveView {
            source, from, to, ..
        } = &view;
        let said = match (moved.changed, from.is_empty()) {
            (false, _) => format!("{source} is read by {to} already\n"),
            (true, true) => format!("{source} goes to {to}, epoch {}\n", moved.epoch),
            (true, false) => format!("{source} goes from {from} to {to}, epoch {}\n", moved.epoch),
        };
        output::talk(&said);
    }
    Ok(())
}

pub(super) async fn rebalance(global: &Global, args: RebalanceArgs) -> Result<(), Failure> {
    let mut client = connect::cluster(global).await?;
    let dry_run = args.dry_run;
    let answer = client
        .rebalance(RebalanceRequest { dry_run })
        .await?
        .into_inner();
    let moves: Vec<MoveView> = answer.moves.into_iter().map(MoveView::from).collect();
    if moves.is_empty() && matches!(global.output, Format::Table | Format::Wide) {
        if !global.quiet {
            output::talk("the slots are spread evenly already\n");
        }
        return Ok(());
    }
    if dry_run && !global.quiet {
        output::talk("would move:\n");
    }
    Ok(output::list(global, &moves)?)
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::admin::v1::{Source, SourceDefinition};

    use super::*;

    #[test]
    fn a_slot_is_meant_before_a_source_of_the_same_name() {
        let slot = |name: &str, slot: &str| {
            SlotView::from(Source {
                definition: Some(SourceDefinition {
                    name: name.to_owned(),
                    slot: slot.to_owned(),
                    ..SourceDefinition::default()
                }),
                ..Source::default()
            })
        };
        let slots = [slot("shop", "shop_pgcapture"), slot("audit", "shop")];
        assert_eq!(source_of(&slots, "shop_pgcapture").unwrap(), "shop");
        assert_eq!(source_of(&slots, "shop").unwrap(), "audit");
        assert_eq!(source_of(&slots, "audit").unwrap(), "audit");
        let failure = source_of(&slots, "other").unwrap_err();
        assert_eq!(failure.exit, 4);
        assert!(failure.text.contains("shop_pgcapture, shop"), "{failure:?}");
    }
}
