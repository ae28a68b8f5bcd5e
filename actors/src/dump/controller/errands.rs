//! Errands of the schedule, run beside the mailbox: plan a rewritten table anew, fail one for good.

use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use pgcapture_engine::{
    cluster::{Command, Dump, DumpCommand, NewLayout, State, TableFailure},
    codes,
    dump::{DumpId, schedule::Errand},
};

use super::DumpController;
use crate::{
    clock,
    dump::{
        DumpError, FoundTable, RangeRemedy, ReadTarget,
        hub::Hub,
        targets::{self, TargetError},
    },
};

impl DumpController {
    pub(super) fn run_errands(&mut self, ctx: &mut Context<Self>) {
        let now = self.hub.now();
        while let Some(errand) = self.schedule.next_errand(now) {
            let first = self.replica_to_ask(&errand);
            let doing = run(Arc::clone(&self.hub), errand.clone(), first);
            ctx.spawn(doing.into_actor(self).map(move |outcome, controller, ctx| {
                controller.look();
                let now = controller.hub.now();
                if let Err(error) = &outcome {
                    let (dump, table, _) = errand.about();
                    tracing::warn!(
                        %dump,
                        table,
                        %error,
                        code = error.explanation.code,
                        "a dump waits to plan or fail a table; trying again"
                    );
                }
                controller
                    .schedule
                    .errand_done(&errand, outcome.is_ok(), now);
                controller.follow_up(ctx);
            }));
        }
    }

    fn replica_to_ask(&self, errand: &Errand) -> Option<String> {
        let state = self.state.borrow();
        let source = &state.dumps.get(&errand.about().0)?.source;
        self.schedule.replica_to_ask(source).map(str::to_owned)
    }
}

/// Does an errand. What it is about may be gone meanwhile; then there is nothing to do.
async fn run(hub: Arc<Hub>, errand: Errand, first: Option<String>) -> Result<(), DumpError> {
    let state = hub.state();
    let (id, index, generation) = errand.about();
    let Some(dump) = state.dumps.get(&id) else {
        return Ok(());
    };
    let command = match errand {
        Errand::Fail { failure, .. } => fail((id, index, generation), failure),
        Errand::Replan { .. } => {
            let Some(table) = dump.table(index) else {
                return Ok(());
            };
            let looked = look_again(&hub, &state, dump, table.heap.oid, &table.heap.name, first);
            match looked.await {
                Ok(found) => replan((id, index, generation), found),
                Err(error) if error.remedy == RangeRemedy::Fail => {
                    fail((id, index, generation), error.into())
                }
                Err(error) => return Err(error),
            }
        }
    };
    hub.consensus.propose(Command::Dump(command)).await?;
    Ok(())
}

/// Finds the same table again.
async fn look_again(
    hub: &Hub,
    state: &State,
    dump: &Dump,
    oid: u32,
    name: &pgcapture_engine::dump::TableName,
    first: Option<String>,
) -> Result<FoundTable, DumpError> {
    let targets: Vec<ReadTarget> = targets::of_source(state, &dump.source, first.as_deref())
        .map_err(|error| match error {
            // It may be added again; the dump waits.
            TargetError::NoReplica(error) => DumpError {
                remedy: RangeRemedy::Retry,
                ..error
            },
            TargetError::NoSource(error) => error,
        })?;
    let mut found = targets::look(hub, &targets, &[name.to_string()]).await?;
    let same = found.tables.iter().position(|table| table.heap.oid == oid);
    if let Some(index) = same {
        return Ok(found.tables.swap_remove(index));
    }
    let problem = found.problems.into_iter().next();
    Err(problem.unwrap_or_else(|| DumpError {
        explanation: &codes::dump::DROPPED,
        what: format!("table {name} is gone; another one has its name"),
        remedy: RangeRemedy::Fail,
    }))
}

fn replan((dump, table, generation): (DumpId, u32, u32), found: FoundTable) -> DumpCommand {
    tracing::info!(
        %dump,
        table = %found.heap.name,
        pages = found.layout.pages_end,
        filenode = found.layout.filenode,
        "dump table planned anew"
    );
    DumpCommand::ReplanTable {
        dump,
        table,
        generation,
        plan: Box::new(NewLayout {
            heap: found.heap,
            layout: found.layout,
            needs_sweep: found.has_toast,
        }),
        at: clock::now(),
    }
}

fn fail((dump, table, generation): (DumpId, u32, u32), failure: TableFailure) -> DumpCommand {
    tracing::warn!(
        %dump,
        table,
        code = failure.code,
        error = failure.text,
        "dump table failed; the others go on"
    );
    DumpCommand::FailTable {
        dump,
        table,
        generation,
        failure,
        at: clock::now(),
    }
}
