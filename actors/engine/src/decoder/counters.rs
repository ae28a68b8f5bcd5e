//! What a decoder has done, for metrics and status.

/// What a decoder has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderCounters {
    /// INSERTs written.
    pub insert_count: u64,
    /// UPDATEs written.
    pub update_count: u64,
    /// DELETEs written.
    pub delete_count: u64,
    /// TRUNCATEs written.
    pub truncate_count: u64,
    /// Logical messages written.
    pub logical_count: u64,
    /// Transactions whose commit was written.
    pub transaction_count: u64,
    /// Transactions that changed nothing and left no entry.
    pub empty_transaction_count: u64,
    /// Entries dropped because the log has them already.
    pub dropped_count: u64,
    /// Bytes of pgoutput messages read.
    pub byte_count: u64,
}

impl DecoderCounters {
    /// Returns the rows written, whatever happened to them.
    #[must_use]
    pub const fn row_count(&self) -> u64 {
        self.insert_count + self.update_count + self.delete_count
    }
}
