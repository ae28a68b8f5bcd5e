//! Tells the controller that something changed that it decides by: the agreed state, or what other nodes
//! can read.

use std::sync::Arc;

use actix::{Addr, Context, Handler, Message};
use pgcapture_engine::cluster::State;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::DumpController;
use crate::dump::OtherNodes;

/// Sends a message for each change.
pub(super) async fn tell_changes(
    mut state: watch::Receiver<Arc<State>>,
    mut others: watch::Receiver<OtherNodes>,
    controller: Addr<DumpController>,
    stopping: CancellationToken,
) {
    let mut may_have_others = true;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = state.changed() => if changed.is_err() {
                return;
            },
            changed = others.changed(), if may_have_others => may_have_others = changed.is_ok(),
        }
        if controller.send(Changed).await.is_err() {
            return;
        }
    }
}

/// Event: the agreed state is another one, or other nodes can read something else.
#[derive(Message)]
#[rtype(result = "()")]
struct Changed;

impl Handler<Changed> for DumpController {
    type Result = ();

    fn handle(&mut self, _: Changed, ctx: &mut Context<Self>) {
        self.look();
        self.follow_up(ctx);
    }
}
