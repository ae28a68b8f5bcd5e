//! Messages over a transport, outside of a COPY.
//!
//! Turns frames into messages, server errors into [`PgError::Server`], and swallows what may come
//! at any time (notices, parameter changes).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a message that is not expected is an error, whichever of the thirty it is"
)]

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::{
    backend::{ErrorResponseBody, Message},
    frontend,
};

use super::{
    Session,
    framing::{Frame, HEADER_BYTES, Inbound, malformed, unwritable},
    transport::Transport,
};
use crate::postgres::error::{PgError, ServerError};

/// Rows of a simple query: text, or `None` for NULL.
pub(in crate::postgres) type Rows = Vec<Vec<Option<String>>>;

/// A transport and what was received from it.
#[derive(Debug)]
pub(in crate::postgres) struct Wire {
    pub(in crate::postgres) transport: Transport,
    pub(in crate::postgres) inbound: Inbound,
    pub(in crate::postgres) is_unix: bool,
}

impl Wire {
    /// Sends bytes. Not cancellation-safe.
    pub(in crate::postgres) async fn send(&self, bytes: &[u8]) -> Result<(), PgError> {
        self.transport.write_all(bytes).await.map_err(PgError::Io)
    }

    /// Sends a simple query.
    pub(in crate::postgres) async fn send_query(&self, sql: &str) -> Result<(), PgError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|error| unwritable(&error))?;
        self.send(&out).await
    }

    /// Receives the next frame that is neither a notice nor a parameter. Cancellation-safe.
    pub(in crate::postgres) async fn frame(&mut self) -> Result<Frame<'_>, PgError> {
        self.peek_tag().await?;
        self.inbound.next(&self.transport).await
    }

    /// Waits for such a frame and returns its tag without taking it. Cancellation-safe.
    pub(in crate::postgres) async fn peek_tag(&mut self) -> Result<u8, PgError> {
        loop {
            let size = self.peek().await?;
            let tag = self.inbound.unread().first().copied().unwrap_or_default();
            if !matches!(tag, b'N' | b'S' | b'A') {
                return Ok(tag);
            }
            self.inbound.consume(size);
        }
    }

    async fn peek(&mut self) -> Result<usize, PgError> {
        loop {
            if let Some(size) = self.inbound.complete()? {
                return Ok(size);
            }
            let room = self.inbound.room()?;
            let count = self.transport.read(room).await.map_err(PgError::Io)?;
            if count == 0 {
                return Err(PgError::Closed);
            }
            self.inbound.filled(count);
        }
    }

    /// Receives the next message; an error of the server is returned as one.
    pub(super) async fn message(&mut self) -> Result<Message, PgError> {
        match parse(self.frame().await?)? {
            Message::ErrorResponse(body) => Err(server_error(&body)),
            message => Ok(message),
        }
    }

    /// Receives until the server is ready, after a login.
    pub(super) async fn until_ready(&mut self) -> Result<Session, PgError> {
        let mut session = Session::default();
        loop {
            let frame = self.inbound.next(&self.transport).await?;
            match parse(frame)? {
                Message::ParameterStatus(body) => {
                    let name = body.name().map_err(|error| unwritable(&error))?;
                    let value = body.value().map_err(|error| unwritable(&error))?;
                    match name {
                        "server_version" => session.server_version = version_number(value),
                        "in_hot_standby" => session.is_standby = Some(value == "on"),
                        "default_transaction_read_only" => {
                            session.is_read_only = Some(value == "on");
                        }
                        _ => {}
                    }
                }
                Message::BackendKeyData(body) => session.backend_pid = body.process_id(),
                Message::ReadyForQuery(_) => return Ok(session),
                Message::ErrorResponse(body) => return Err(server_error(&body)),
                Message::NoticeResponse(_) => {}
                _ => return Err(malformed("startup message")),
            }
        }
    }

    /// Runs statements and returns all their rows. After an error the connection can be used again.
    pub(in crate::postgres) async fn query(&mut self, sql: &str) -> Result<Rows, PgError> {
        self.send_query(sql).await?;
        self.answer().await
    }

    /// Sends several simple queries at once. Each has an [`Self::answer`] of its own, and is run
    /// whether or not the one before failed.
    pub(in crate::postgres) async fn send_queries(&self, queries: &[&str]) -> Result<(), PgError> {
        let mut out = BytesMut::new();
        for sql in queries {
            frontend::query(sql, &mut out).map_err(|error| unwritable(&error))?;
        }
        self.send(&out).await
    }

    /// Receives the rows of a query that was sent.
    pub(in crate::postgres) async fn answer(&mut self) -> Result<Rows, PgError> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match parse(self.frame().await?)? {
                Message::DataRow(body) => {
                    let mut row = Vec::new();
                    let mut ranges = body.ranges();
                    while let Some(range) = ranges.next().map_err(|error| unwritable(&error))? {
                        let bytes = range.and_then(|range| body.buffer().get(range));
                        row.push(bytes.map(|text| String::from_utf8_lossy(text).into_owned()));
                    }
                    rows.push(row);
                }
                Message::ErrorResponse(body) => failed = Some(server_error(&body)),
                Message::ReadyForQuery(_) => break,
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse
                | Message::CopyData(_)
                | Message::CopyDone
                | Message::CopyOutResponse(_) => {}
                Message::CopyInResponse(_) => {
                    let mut out = BytesMut::new();
                    frontend::copy_fail("not expected", &mut out)
                        .map_err(|error| unwritable(&error))?;
                    self.send(&out).await?;
                }
                _ => return Err(malformed("answer to a query")),
            }
        }
        failed.map_or(Ok(rows), Err)
    }
}

/// Parses a frame. Copies it: not for the data path.
pub(in crate::postgres) fn parse(frame: Frame<'_>) -> Result<Message, PgError> {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + frame.body.len());
    let length = u32::try_from(frame.body.len() + 4).map_err(|_| malformed("length"))?;
    bytes.extend_from_slice(&[frame.tag]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(frame.body);
    // Errors of the parser carry no data of the message.
    let message = Message::parse(&mut bytes).map_err(|error| malformed(&error.to_string()))?;
    message.ok_or_else(|| malformed("message"))
}

/// Turns a frame that should be an error response into the error.
pub(in crate::postgres) fn error_in(frame: Frame<'_>) -> PgError {
    match parse(frame) {
        Ok(Message::ErrorResponse(body)) => server_error(&body),
        Ok(_) => malformed("message; an error was expected"),
        Err(error) => error,
    }
}

/// Reads an error response.
pub(in crate::postgres) fn server_error(body: &ErrorResponseBody) -> PgError {
    let mut error = ServerError::default();
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.sqlstate = value,
            b'V' => error.severity = value,
            b'M' => error.message = value,
            b'D' => error.detail = value,
            b'H' => error.hint = value,
            b'R' => error.routine = value,
            _ => {}
        }
    }
    PgError::Server(Box::new(error))
}

/// Turns `15.18 (Debian …)` into 150018; 0 when it is no version.
fn version_number(text: &str) -> u32 {
    let digits = |part: &str| -> u32 {
        let end = part.find(|c: char| !c.is_ascii_digit());
        let number = part.get(..end.unwrap_or(part.len())).unwrap_or_default();
        number.parse().unwrap_or(0)
    };
    let mut parts = text.splitn(2, '.');
    let (major, minor) = (
        parts.next().map_or(0, digits),
        parts.next().map_or(0, digits),
    );
    major.saturating_mul(10_000).saturating_add(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_server_counts_them() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("14.0", 140_000),
            ("19devel", 190_000),
            ("18beta2", 180_000),
            ("", 0),
        ] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }
}
