//! `COPY … TO STDOUT`: chunks of rows, borrowed from the read buffer.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a message that is not expected is an error, whichever of the thirty it is"
)]

use super::{
    framing::{Frame, malformed},
    wire::{Wire, parse, server_error},
};
use crate::postgres::error::PgError;
use postgres_protocol::message::backend::Message;

/// A running COPY. Read until `None`; a reader dropped before leaves the connection unusable.
#[derive(Debug)]
pub struct CopyOut<'a> {
    wire: &'a mut Wire,
    is_done: bool,
}

pub(super) async fn start<'a>(wire: &'a mut Wire, sql: &str) -> Result<CopyOut<'a>, PgError> {
    begin(wire, sql).await?;
    Ok(CopyOut {
        wire,
        is_done: false,
    })
}

/// Sends the statement and waits for the first row or an error.
pub(in crate::postgres) async fn begin(wire: &mut Wire, sql: &str) -> Result<(), PgError> {
    wire.send_query(sql).await?;
    begun(wire).await
}

/// Waits for the first row or an error of a statement that was sent.
pub(in crate::postgres) async fn begun(wire: &mut Wire) -> Result<(), PgError> {
    match parse(wire.frame().await?)? {
        Message::CopyOutResponse(_) => Ok(()),
        Message::ErrorResponse(body) => Err(finish(wire, Some(server_error(&body))).await),
        _ => Err(malformed("answer to COPY")),
    }
}

/// Reads until the server is ready and returns `failed`, or the error on the way.
async fn finish(wire: &mut Wire, failed: Option<PgError>) -> PgError {
    match end(wire).await {
        Ok(()) => failed.unwrap_or(PgError::Closed),
        Err(error) => failed.unwrap_or(error),
    }
}

/// Reads what follows the last row: done only when the server says the command was complete.
pub(in crate::postgres) async fn end(wire: &mut Wire) -> Result<(), PgError> {
    let mut failed = None;
    loop {
        match parse(wire.frame().await?)? {
            Message::ReadyForQuery(_) => return failed.map_or(Ok(()), Err),
            Message::ErrorResponse(body) => failed = Some(server_error(&body)),
            Message::CopyDone | Message::CommandComplete(_) => {}
            _ => return Err(malformed("end of COPY")),
        }
    }
}

impl CopyOut<'_> {
    /// Returns the next piece as the server sent it: for `FORMAT text` and `csv` one row, for
    /// `binary` one row (the header comes with the first). `None` after the last, once the server
    /// has said that the command was complete. Cancellation-safe until the end is reached.
    ///
    /// # Errors
    ///
    /// What the server reports in the middle; the connection can be used again after that.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, PgError> {
        if self.is_done {
            return Ok(None);
        }
        let tag = self.wire.peek_tag().await?;
        match tag {
            b'd' => {
                let Frame { body, .. } = self.wire.frame().await?;
                Ok(Some(body))
            }
            _ => {
                self.is_done = true;
                end(self.wire).await.map(|()| None)
            }
        }
    }
}
