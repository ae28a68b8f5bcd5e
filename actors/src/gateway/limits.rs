//! The limits of a gateway, each with the reason for its number.

use std::time::Duration;

/// Least share of the in-flight memory that a session gets however many there are: a burst of small
/// rows passes without a pause.
const SHARE_BYTES_MIN: usize = 64 * 1024;

/// Most that one session gets: beyond this more in flight makes nothing faster.
const SHARE_BYTES_MAX: usize = 16 << 20;

/// What the gateway of a node allows.
#[derive(Clone, Debug)]
pub struct GatewayLimits {
    /// Sessions at once. Each costs some 15 KiB while it idles.
    pub sessions_max: usize,
    /// Subscriptions, connected or not: each is a cursor in the node's store.
    pub subscriptions_max: usize,
    /// Messages that a session may leave unacknowledged. 5,000 is what the consumers of the Go
    /// gateway had in their receiver queue.
    pub unacked_max: u32,
    /// Bytes of rows that all sessions together hold unacknowledged; a session gets an equal
    /// share of it, at least 64 KiB.
    pub in_flight_bytes_max: usize,
    /// A consumer must send its init within this time.
    pub init_deadline: Duration,
    /// Time-out of acknowledgements for sessions that ask for none. `None`: old consumers may take
    /// as long as they like.
    pub ack_timeout: Option<Duration>,
    /// A draining session waits this long for the acknowledgements of what it delivered.
    pub drain_grace: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            sessions_max: 20_000,
            subscriptions_max: 20_000,
            unacked_max: 5_000,
            in_flight_bytes_max: 256 << 20,
            init_deadline: Duration::from_secs(5),
            ack_timeout: None,
            drain_grace: Duration::from_secs(1),
        }
    }
}

impl GatewayLimits {
    /// Returns the bytes that each of `session_count` sessions may hold.
    #[must_use]
    pub fn share(&self, session_count: usize) -> usize {
        (self.in_flight_bytes_max / session_count.max(1)).clamp(SHARE_BYTES_MIN, SHARE_BYTES_MAX)
    }
}
