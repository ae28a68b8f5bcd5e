//! Ranges on the wire between nodes: what a message means, in both directions. Pure.

use bytes::Bytes;
use pgcapture_actors::dump::{DumpError, GivenUp, RangeRemedy, RangeTicket, RowBatch};
use pgcapture_engine::{
    cluster::DumpOptions,
    codes::{self, dump as dump_codes},
    dump::{DumpId, Extent, Heap, PageRange, TableName},
    lsn::Lsn,
};
use pgcapture_proto::peer::v1::{
    HeapName, RangeFailure, RangeFailureRemedy, Ticket,
    give_up_range::{Disconnected, Reason, Stalled, TooOld},
    open_range_answer::Rows,
    ticket::{self, Pages},
};

/// A message of another node that lacks something.
pub const MALFORMED: &str = "a message of the leader cannot be understood";

/// Returns an error that is over when the range is tried again.
#[must_use]
pub fn away(what: impl Into<String>) -> DumpError {
    DumpError {
        explanation: &dump_codes::CONTROLLER_AWAY,
        what: what.into(),
        remedy: RangeRemedy::Retry,
    }
}

/// Returns the error of a node that reads a range and does not answer.
#[must_use]
pub fn reader_away(node: &str, why: &str) -> DumpError {
    DumpError {
        explanation: &dump_codes::READER_AWAY,
        what: format!("node {node} does not read the range any more: {why}"),
        remedy: RangeRemedy::Elsewhere,
    }
}

/// Returns an error as it is sent.
#[must_use]
pub fn failure(error: &DumpError) -> RangeFailure {
    let remedy = match error.remedy {
        RangeRemedy::Retry => RangeFailureRemedy::Retry,
        RangeRemedy::Elsewhere => RangeFailureRemedy::Elsewhere,
        RangeRemedy::Replan => RangeFailureRemedy::Replan,
        RangeRemedy::Fail => RangeFailureRemedy::Fail,
    };
    RangeFailure {
        code: error.explanation.code.to_owned(),
        what: error.what.clone(),
        remedy: remedy.into(),
    }
}

/// Reads an error. A code that this version does not know becomes the one of a failed range.
#[must_use]
pub fn to_error(sent: &RangeFailure) -> DumpError {
    DumpError {
        explanation: codes::find(&sent.code).unwrap_or(&dump_codes::RANGE_FAILED),
        what: sent.what.clone(),
        remedy: match sent.remedy() {
            RangeFailureRemedy::Retry => RangeRemedy::Retry,
            RangeFailureRemedy::Elsewhere => RangeRemedy::Elsewhere,
            RangeFailureRemedy::Replan => RangeRemedy::Replan,
            RangeFailureRemedy::Fail => RangeRemedy::Fail,
        },
    }
}

fn heap_name(name: &TableName) -> HeapName {
    HeapName {
        schema: name.schema.clone(),
        table: name.table.clone(),
    }
}

fn to_table_name(sent: HeapName) -> TableName {
    TableName {
        schema: sent.schema,
        table: sent.table,
    }
}

/// Returns a ticket as it is sent.
#[must_use]
pub fn ticket(ticket: &RangeTicket) -> Ticket {
    let heap = &ticket.heap;
    let extent = match ticket.extent {
        Extent::Pages(PageRange { first, last }) => ticket::Extent::Pages(Pages { first, last }),
        Extent::Sweep { since_xid } => ticket::Extent::SweepSinceXid(since_xid),
    };
    Ticket {
        number: ticket.number,
        dump: ticket.dump.0,
        source: ticket.source.clone(),
        name: Some(heap_name(&heap.name)),
        label: Some(heap_name(&heap.label)),
        oid: heap.oid,
        filenode: heap.filenode,
        extent: Some(extent),
        replica: ticket.replica.clone(),
        node: ticket.node.clone(),
        address: ticket.address.clone(),
        at_least: ticket.at_least.0,
        bytes_per_second: ticket.rate_bytes_per_second.unwrap_or(0),
        parallel: ticket.parallel,
    }
}

/// Reads a ticket; `None` when it lacks something.
#[must_use]
pub fn to_ticket(sent: Ticket) -> Option<RangeTicket> {
    Some(RangeTicket {
        number: sent.number,
        dump: DumpId(sent.dump),
        source: sent.source,
        heap: Heap {
            name: to_table_name(sent.name?),
            label: to_table_name(sent.label?),
            oid: sent.oid,
            filenode: sent.filenode,
        },
        extent: match sent.extent? {
            ticket::Extent::Pages(Pages { first, last }) => {
                Extent::Pages(PageRange { first, last })
            }
            ticket::Extent::SweepSinceXid(since_xid) => Extent::Sweep { since_xid },
        },
        replica: sent.replica,
        node: sent.node,
        address: sent.address,
        at_least: Lsn(sent.at_least),
        rate_bytes_per_second: (sent.bytes_per_second > 0).then_some(sent.bytes_per_second),
        parallel: match sent.parallel {
            0 => DumpOptions::DEFAULT_PARALLEL,
            parallel => parallel,
        },
    })
}

/// Returns rows as they are sent; their bytes are shared, not copied.
#[must_use]
pub fn rows(batch: RowBatch) -> Rows {
    let places = batch.rows.iter();
    Rows {
        places: places
            .flat_map(|(offset, length)| [*offset, *length])
            .collect(),
        bytes: batch.bytes,
    }
}

/// Reads rows; `None` when a place lies outside of the bytes.
#[must_use]
pub fn to_rows(sent: Rows) -> Option<RowBatch> {
    let Rows { bytes, places } = sent;
    let (pairs, rest) = places.as_chunks::<2>();
    let is_inside = |[offset, length]: &[u32; 2]| {
        u64::from(*offset) + u64::from(*length) <= Bytes::len(&bytes) as u64
    };
    if !rest.is_empty() || !pairs.iter().all(is_inside) {
        return None;
    }
    let rows = pairs
        .iter()
        .map(|[offset, length]| (*offset, *length))
        .collect();
    Some(RowBatch { bytes, rows })
}

/// Returns why a range is given up, as it is sent.
#[must_use]
pub fn reason(reason: GivenUp) -> Reason {
    match reason {
        GivenUp::Disconnected => Reason::Disconnected(Disconnected {}),
        GivenUp::Requeued(why) => Reason::Requeued(why),
        GivenUp::Stalled => Reason::Stalled(Stalled {}),
        GivenUp::TooOld => Reason::TooOld(TooOld {}),
        GivenUp::Failed(error) => Reason::Failed(failure(&error)),
    }
}

/// Reads why a range is given up.
#[must_use]
pub fn to_reason(sent: Option<Reason>) -> GivenUp {
    match sent {
        Some(Reason::Disconnected(_)) | None => GivenUp::Disconnected,
        Some(Reason::Requeued(why)) => GivenUp::Requeued(why),
        Some(Reason::Stalled(_)) => GivenUp::Stalled,
        Some(Reason::TooOld(_)) => GivenUp::TooOld,
        Some(Reason::Failed(error)) => GivenUp::Failed(to_error(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(table: &str) -> TableName {
        TableName {
            schema: "public".to_owned(),
            table: table.to_owned(),
        }
    }

    #[test]
    fn tickets_arrive_whole() {
        for extent in [
            Extent::Pages(PageRange::ALL),
            Extent::Sweep { since_xid: 9 },
        ] {
            let sent = RangeTicket {
                number: 7,
                dump: DumpId(41),
                source: "shop".to_owned(),
                heap: Heap {
                    name: name("leaf"),
                    label: name("root"),
                    oid: 1,
                    filenode: 2,
                },
                extent,
                replica: "r".to_owned(),
                node: "n2".to_owned(),
                address: "n2:1".to_owned(),
                at_least: Lsn(40),
                rate_bytes_per_second: Some(9),
                parallel: 5,
            };
            assert_eq!(to_ticket(ticket(&sent)), Some(sent));
        }
        assert_eq!(to_ticket(Ticket::default()), None);
    }

    #[test]
    fn rows_arrive_with_the_same_memory_and_none_outside_of_it() {
        let sent = RowBatch {
            bytes: Bytes::from_static(b"abcdef"),
            rows: vec![(0, 2), (2, 4)],
        };
        let memory = sent.bytes.as_ptr();
        let arrived = to_rows(rows(sent.clone())).unwrap();
        assert_eq!((&arrived.bytes, &arrived.rows), (&sent.bytes, &sent.rows));
        assert_eq!(arrived.bytes.as_ptr(), memory);
        for places in [vec![0], vec![0, 7], vec![u32::MAX, u32::MAX]] {
            let bytes = sent.bytes.clone();
            assert!(to_rows(Rows { bytes, places }).is_none());
        }
    }

    #[test]
    fn errors_and_reasons_arrive_whole() {
        for remedy in [
            RangeRemedy::Retry,
            RangeRemedy::Elsewhere,
            RangeRemedy::Replan,
            RangeRemedy::Fail,
        ] {
            let sent = DumpError {
                explanation: &dump_codes::PAGES_MOVED,
                what: "moved".to_owned(),
                remedy,
            };
            let arrived = to_error(&failure(&sent));
            assert_eq!(arrived.explanation, sent.explanation);
            assert_eq!((arrived.what, arrived.remedy), (sent.what, remedy));
        }
        let foreign = to_error(&RangeFailure::default());
        assert_eq!(foreign.explanation, &dump_codes::RANGE_FAILED);
        for sent in [
            GivenUp::Disconnected,
            GivenUp::Requeued("why".to_owned()),
            GivenUp::Stalled,
            GivenUp::TooOld,
            GivenUp::Failed(away("away")),
        ] {
            let told = format!("{sent:?}");
            assert_eq!(format!("{:?}", to_reason(Some(reason(sent)))), told);
        }
        assert!(matches!(to_reason(None), GivenUp::Disconnected));
    }
}
