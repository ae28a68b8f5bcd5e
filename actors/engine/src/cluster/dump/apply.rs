//! What the commands about dumps do to the agreed state.

use std::sync::Arc;

use super::{
    COOL_DOWN_MAX, COOL_DOWNS_MAX, DUMP_RANGES_MAX, DUMP_TABLES_MAX, DUMPS_KEPT_MAX,
    DUMPS_OPEN_MAX, Dump, DumpAction, DumpCommand, DumpOptions, DumpRefusal, DumpRule, DumpState,
    DumpTable, FinishedRange, NewDump, NewLayout, PageSet, REPLANS_MAX, TableFailure, WantedPages,
};
use crate::{
    cluster::{Answer, Refusal, State, changed},
    codes,
    dump::{DumpId, Extent, PageRange},
    lsn::PgTime,
};

impl State {
    /// Finds a dump.
    ///
    /// # Errors
    ///
    /// [`DumpRefusal::Unknown`].
    pub fn dump(&self, id: DumpId) -> Result<&Arc<Dump>, Refusal> {
        let unknown = DumpRefusal::Unknown { id };
        self.dumps.get(&id).ok_or_else(|| unknown.into())
    }

    pub(in crate::cluster) fn apply_dump(
        &mut self,
        command: DumpCommand,
    ) -> Result<Answer, Refusal> {
        match command {
            DumpCommand::Create { dump, rule } => self.create_dump(*dump, rule),
            DumpCommand::FinishRanges { ranges, at } => Ok(self.finish_ranges(&ranges, at)),
            DumpCommand::ReplanTable {
                dump,
                table,
                generation,
                plan,
                at,
            } => self.replan_table((dump, table, generation), *plan, at),
            DumpCommand::FailTable {
                dump,
                table,
                generation,
                failure,
                at,
            } => self.fail_table((dump, table, generation), failure, at),
            DumpCommand::Act { id, action, at } => self.act_on_dump(id, action, at),
            DumpCommand::Remove { id } => self.remove_dump(id),
            DumpCommand::SetCoolDown {
                stream,
                consumer,
                cool_down,
            } => self.set_cool_down((stream, consumer), cool_down),
        }
    }

    fn create_dump(&mut self, new: NewDump, rule: DumpRule) -> Result<Answer, Refusal> {
        self.source(&new.source)?;
        check(&new)?;
        self.check_rule(&new, rule)?;
        let count = self.dumps.values().filter(|dump| !dump.is_over()).count() + 1;
        at_most("open dumps", count, DUMPS_OPEN_MAX)?;
        self.last_dump = DumpId(self.last_dump.0 + 1);
        let id = self.last_dump;
        let tables = new.tables.into_iter();
        let dump = Dump {
            id,
            uri: new.uri,
            stream: new.stream,
            consumer: new.consumer,
            source: new.source,
            options: new.options,
            created_at: new.created_at,
            ended_at: None,
            state: DumpState::Active,
            tables: tables.map(DumpTable::new).map(Arc::new).collect(),
        };
        self.dumps.insert(id, Arc::new(dump));
        Ok(Answer::DumpCreated(id))
    }

    fn finish_ranges(&mut self, ranges: &[FinishedRange], at: PgTime) -> Answer {
        let mut is_changed = false;
        for range in ranges {
            let work = |table: &mut DumpTable| finish(table, range);
            is_changed |= self.change_table(range.dump, range.table, range.generation, at, work);
        }
        changed(is_changed)
    }

    fn replan_table(
        &mut self,
        (dump, table, generation): (DumpId, u32, u32),
        plan: NewLayout,
        at: PgTime,
    ) -> Result<Answer, Refusal> {
        self.dump(dump)?;
        let work = |table: &mut DumpTable| {
            replan(table, plan);
            true
        };
        let is_changed = self.change_table(dump, table, generation, at, work);
        Ok(changed(is_changed))
    }

    fn fail_table(
        &mut self,
        (dump, table, generation): (DumpId, u32, u32),
        failure: TableFailure,
        at: PgTime,
    ) -> Result<Answer, Refusal> {
        self.dump(dump)?;
        let work = |table: &mut DumpTable| {
            let is_new = table.failure.is_none() && !table.is_done();
            if is_new {
                table.failure = Some(failure);
            }
            is_new
        };
        let is_changed = self.change_table(dump, table, generation, at, work);
        Ok(changed(is_changed))
    }

    fn act_on_dump(
        &mut self,
        id: DumpId,
        action: DumpAction,
        at: PgTime,
    ) -> Result<Answer, Refusal> {
        let dump = self.dump(id)?;
        let state = dump.state;
        let wanted = match (action, state) {
            (DumpAction::Pause, DumpState::Active | DumpState::Paused) => DumpState::Paused,
            (DumpAction::Resume, DumpState::Active | DumpState::Paused)
            | (DumpAction::Retry, DumpState::Active | DumpState::Failed) => DumpState::Active,
            (DumpAction::Retry, DumpState::Paused) => DumpState::Paused,
            (DumpAction::Cancel, DumpState::Active | DumpState::Paused | DumpState::Cancelled) => {
                DumpState::Cancelled
            }
            _ => return Err(DumpRefusal::WrongState { id, action, state }.into()),
        };
        let is_retried =
            action == DumpAction::Retry && dump.tables.iter().any(|table| table.failure.is_some());
        if wanted == state && !is_retried {
            return Ok(Answer::Unchanged);
        }
        if action == DumpAction::Retry && state == DumpState::Failed {
            let new = as_new(dump);
            self.check_rule(&new, DumpRule::NoSharedTable)?;
        }
        self.change_dump(id, at, |dump| {
            dump.state = wanted;
            if is_retried {
                forget_failures(dump);
            }
        });
        Ok(Answer::Done)
    }

    fn remove_dump(&mut self, id: DumpId) -> Result<Answer, Refusal> {
        let dump = self.dump(id)?;
        if !dump.is_over() {
            let state = dump.state;
            return Err(DumpRefusal::NotOver { id, state }.into());
        }
        self.dumps.remove(&id);
        Ok(Answer::Done)
    }

    fn set_cool_down(
        &mut self,
        subscription: (String, String),
        cool_down: std::time::Duration,
    ) -> Result<Answer, Refusal> {
        check_cool_down(cool_down)?;
        if cool_down.is_zero() {
            return Ok(changed(self.cool_downs.remove(&subscription).is_some()));
        }
        let is_known = self.cool_downs.contains_key(&subscription);
        let count = self.cool_downs.len() + usize::from(!is_known);
        at_most("subscriptions with a cool-down", count, COOL_DOWNS_MAX)?;
        let before = self.cool_downs.insert(subscription, cool_down);
        Ok(changed(before != Some(cool_down)))
    }

    fn check_rule(&self, new: &NewDump, rule: DumpRule) -> Result<(), Refusal> {
        let oids: std::collections::BTreeSet<_> =
            new.tables.iter().map(|table| table.heap.oid).collect();
        for dump in self.dumps.values() {
            let is_same = dump.stream == new.stream && dump.consumer == new.consumer;
            if dump.is_over() || !is_same {
                continue;
            }
            let mut tables = dump.tables.iter().map(|table| &table.heap);
            let shared = tables.find(|heap| oids.contains(&heap.oid));
            if rule == DumpRule::Idle || shared.is_some() {
                let table = match rule {
                    DumpRule::Idle => None,
                    DumpRule::NoSharedTable => shared.map(|heap| heap.name.clone()),
                };
                let (uri, id) = (dump.uri.clone(), dump.id);
                return Err(DumpRefusal::Active { uri, id, table }.into());
            }
        }
        Ok(())
    }

    /// Changes a table if it is there in that generation; `work` tells whether it did anything.
    fn change_table(
        &mut self,
        id: DumpId,
        index: u32,
        generation: u32,
        at: PgTime,
        work: impl FnOnce(&mut DumpTable) -> bool,
    ) -> bool {
        let is_there = self
            .dumps
            .get(&id)
            .and_then(|dump| dump.table(index))
            .is_some_and(|table| table.generation == generation);
        let mut is_changed = false;
        if is_there {
            self.change_dump(id, at, |dump| {
                let table = usize::try_from(index)
                    .ok()
                    .and_then(|index| dump.tables.get_mut(index));
                is_changed = table.is_some_and(|table| work(Arc::make_mut(table)));
            });
        }
        is_changed
    }

    fn change_dump(&mut self, id: DumpId, at: PgTime, work: impl FnOnce(&mut Dump)) {
        if let Some(dump) = self.dumps.get_mut(&id) {
            let dump = Arc::make_mut(dump);
            work(dump);
            settle(dump, at);
        }
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        let over = self.dumps.values().filter(|dump| dump.is_over());
        let surplus = over.clone().count().saturating_sub(DUMPS_KEPT_MAX);
        let mut oldest: Vec<_> = over.map(|dump| (dump.ended_at, dump.id)).collect();
        oldest.sort_unstable();
        for (_, id) in oldest.into_iter().take(surplus) {
            self.dumps.remove(&id);
        }
    }
}

fn finish(table: &mut DumpTable, range: &FinishedRange) -> bool {
    let is_new = match range.extent {
        Extent::Pages(pages) => {
            let is_new = table.done.insert(pages);
            // One snapshot of all that is wanted: nothing can have moved between ranges.
            table.sweep_done |= match &table.wanted {
                WantedPages::Whole => pages == PageRange::ALL,
                WantedPages::Ranges(ranges) => ranges.as_slice() == [pages],
            };
            is_new
        }
        Extent::Sweep { .. } => {
            let is_new = table.is_read() && !table.sweep_done;
            table.sweep_done |= is_new;
            is_new
        }
    };
    if is_new {
        table.row_count = table.row_count.saturating_add(range.row_count);
        table.bytes = table.bytes.saturating_add(range.bytes);
        table.range_count += 1;
    }
    is_new
}

fn replan(table: &mut DumpTable, plan: NewLayout) {
    table.generation += 1;
    table.replan_count += 1;
    table.done = PageSet::new();
    table.sweep_done = false;
    table.heap = plan.heap;
    table.layout = plan.layout;
    table.needs_sweep = plan.needs_sweep;
    if table.replan_count > REPLANS_MAX {
        table.failure = Some(TableFailure {
            code: codes::dump::REWRITTEN_TOO_OFTEN.code.to_owned(),
            text: format!(
                "{} was rewritten {} times while it was read",
                table.heap.name, table.replan_count
            ),
        });
    }
}

fn forget_failures(dump: &mut Dump) {
    dump.ended_at = None;
    for table in &mut dump.tables {
        if table.failure.is_some() {
            let table = Arc::make_mut(table);
            table.failure = None;
            table.replan_count = 0;
        }
    }
}

/// Ends a dump of which nothing is left to do.
fn settle(dump: &mut Dump, at: PgTime) {
    if matches!(dump.state, DumpState::Active | DumpState::Paused) {
        let is_over = |table: &Arc<DumpTable>| table.failure.is_some() || table.is_done();
        if dump.tables.iter().all(is_over) {
            let has_failed = dump.tables.iter().any(|table| table.failure.is_some());
            dump.state = if has_failed {
                DumpState::Failed
            } else {
                DumpState::Finished
            };
        }
    }
    if dump.is_over() && dump.ended_at.is_none() {
        dump.ended_at = Some(at);
    }
}

/// Returns what a failed dump would be as a new one, as far as the rules look.
fn as_new(dump: &Dump) -> NewDump {
    let plan = |table: &Arc<DumpTable>| super::PlannedTable {
        heap: table.heap.clone(),
        wanted: WantedPages::Whole,
        layout: table.layout,
        needs_sweep: table.needs_sweep,
    };
    NewDump {
        uri: dump.uri.clone(),
        stream: dump.stream.clone(),
        consumer: dump.consumer.clone(),
        source: dump.source.clone(),
        options: dump.options.clone(),
        created_at: dump.created_at,
        tables: dump.tables.iter().map(plan).collect(),
    }
}

fn check(new: &NewDump) -> Result<(), DumpRefusal> {
    if new.tables.is_empty() {
        return Err(DumpRefusal::NoTable);
    }
    at_most("tables", new.tables.len(), DUMP_TABLES_MAX)?;
    let mut range_count = 0;
    for table in &new.tables {
        if let WantedPages::Ranges(ranges) = &table.wanted {
            if ranges.is_empty() {
                return Err(DumpRefusal::NoTable);
            }
            range_count += ranges.len();
            if let Some(pages) = ranges.iter().find(|pages| pages.first > pages.last) {
                let (table, pages) = (table.heap.name.clone(), *pages);
                return Err(DumpRefusal::Backwards { table, pages });
            }
        }
    }
    at_most("page ranges", range_count, DUMP_RANGES_MAX)?;
    check_options(&new.options)
}

fn check_options(options: &DumpOptions) -> Result<(), DumpRefusal> {
    let within = |option: &'static str, found: u64, (least, most): (u64, u64)| {
        let is_within = (least..=most).contains(&found);
        is_within.then_some(()).ok_or_else(|| DumpRefusal::Option {
            option: option.into(),
            found: found.to_string(),
            limits: format!("{least} to {most}"),
        })
    };
    let most = u64::from(DumpOptions::PARALLEL_MAX);
    within("parallel", options.parallel.into(), (1, most))?;
    let limits = DumpOptions::RANGE_BYTES_LIMITS;
    within("range size in bytes", options.range_bytes, limits)?;
    if let Some(rate) = options.rate_bytes_per_second {
        within("rate in bytes a second", rate, (1, u64::MAX))?;
    }
    check_cool_down(options.cool_down)
}

fn check_cool_down(cool_down: std::time::Duration) -> Result<(), DumpRefusal> {
    let is_within = cool_down <= COOL_DOWN_MAX;
    is_within.then_some(()).ok_or_else(|| DumpRefusal::Option {
        option: "cool-down".into(),
        found: format!("{cool_down:?}"),
        limits: format!("at most {COOL_DOWN_MAX:?}"),
    })
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), DumpRefusal> {
    if count <= limit {
        Ok(())
    } else {
        let what = what.into();
        Err(DumpRefusal::TooMany { what, count, limit })
    }
}
