//! The contract of a change log, read over the wire from the node that writes it.

use std::sync::Arc;

use super::{
    apart::Apart,
    checks,
    cluster::{Cluster, SOURCE},
};

macro_rules! contract {
    ($($check:ident)*) => {
        /// Read through the log of a peer.
        mod remote {
            use super::*;

            $(
                #[tokio::test]
                async fn $check() {
                    let cluster = Cluster::start(&["a", "b"]).await;
                    let written = cluster.log("a");
                    let read = cluster.remote(("b", "a"), 1).await.unwrap();
                    checks::$check(Arc::new(Apart { written, read })).await;
                }
            )*
        }

        /// Read through the route, which leads to a peer.
        mod routed {
            use super::*;

            $(
                #[tokio::test]
                async fn $check() {
                    let cluster = Cluster::start(&["a", "b"]).await;
                    let written = cluster.log("a");
                    let read = cluster.node("b").routes.log(SOURCE);
                    checks::$check(Arc::new(Apart { written, read })).await;
                }
            )*
        }
    };
}

contract!(
    batches_are_read_in_the_order_of_acceptance
    flush_returns_the_tail_of_what_was_accepted
    an_older_epoch_is_refused
    the_same_epoch_opened_again_fences_the_writer_before
    a_batch_that_does_not_follow_is_refused
    a_batch_without_entries_makes_its_resume_lsn_durable
    a_reader_at_the_tail_waits_for_the_next_batch
    a_newer_epoch_fences_the_writer_before
    a_dropped_call_of_next_loses_nothing
    a_reader_starts_where_it_is_told
    many_readers_see_the_same_entries
    the_order_survives_a_change_of_epoch
    a_log_started_anew_refuses_what_was_before
    readers_of_a_log_started_anew_are_told_or_go_on
    a_log_is_started_anew_only_ahead_and_by_its_writer
);
