//! Counts what was decoded, once a batch, into the metrics of the data path.

use metrics::{Counter, Histogram, counter, histogram};
use pgcapture_engine::{batch::Batch, decoder::DecoderCounters};

use crate::clock;

/// The metrics of one source's decoder.
pub(crate) struct DecodeMeter {
    before: DecoderCounters,
    inserts: Counter,
    updates: Counter,
    deletes: Counter,
    truncates: Counter,
    bytes: Counter,
    transactions: Counter,
    dropped: Counter,
    batch_entries: Histogram,
    latency: Histogram,
}

impl DecodeMeter {
    /// Names the metrics of a source; `before` is what its decoder has counted already.
    pub(crate) fn new(source: &str, before: DecoderCounters) -> Self {
        let label = || source.to_owned();
        let rows = |op: &'static str| counter!("pgcapture_decode_rows_total", "source" => label(), "op" => op);
        Self {
            before,
            inserts: rows("insert"),
            updates: rows("update"),
            deletes: rows("delete"),
            truncates: rows("truncate"),
            bytes: counter!("pgcapture_decode_bytes_total", "source" => label()),
            transactions: counter!("pgcapture_decode_transactions_total", "source" => label()),
            dropped: counter!("pgcapture_log_dedup_dropped_total", "source" => label()),
            batch_entries: histogram!("pgcapture_decode_batch_entries", "source" => label()),
            latency: histogram!("pgcapture_event_latency_seconds", "stage" => "decode"),
        }
    }

    /// Counts what was decoded since the last batch.
    pub(super) fn batch(&mut self, batch: &Batch, now: &DecoderCounters) {
        let before = std::mem::replace(&mut self.before, *now);
        self.inserts
            .increment(now.insert_count - before.insert_count);
        self.updates
            .increment(now.update_count - before.update_count);
        self.deletes
            .increment(now.delete_count - before.delete_count);
        self.truncates
            .increment(now.truncate_count - before.truncate_count);
        self.bytes.increment(now.byte_count - before.byte_count);
        self.transactions
            .increment(now.transaction_count - before.transaction_count);
        self.dropped
            .increment(now.dropped_count - before.dropped_count);
        if batch.entry_count > 0 {
            self.batch_entries.record(f64::from(batch.entry_count));
            self.latency.record(clock::seconds_since(batch.commit_time));
        }
    }
}
