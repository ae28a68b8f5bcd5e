//! A socket with or without TLS, shared by a reader and a writer.
//!
//! Both hold a clone of [`Transport`] and poll it under a lock that is never held across an await,
//! so that status updates go out while a read waits.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::socket::Socket;

pub(in crate::postgres) use super::socket::Held;

/// The two kinds of byte stream.
#[derive(Debug)]
pub(super) enum Stream {
    /// In the clear.
    Plain(Socket),
    /// Encrypted.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    fn socket(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_mut().0,
        }
    }
}

/// The door to a byte stream. Cheap to clone; clones share the stream.
#[derive(Clone, Debug)]
pub(in crate::postgres) struct Transport {
    stream: Arc<Mutex<Stream>>,
}

impl Transport {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream: Arc::new(Mutex::new(stream)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        // A panic while polling leaves at worst a broken stream, and that shows as an error.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads once; 0 means the end. Cancellation-safe.
    pub(in crate::postgres) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    /// Reads what is there, `None` when there is nothing now. Wakes nobody.
    pub(in crate::postgres) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.poll_read(&mut cx, buffer) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(match &mut *self.lock() {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        })?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes everything. Not cancellation-safe: a dropped call may have written a part.
    pub(in crate::postgres) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| match &mut *self.lock() {
                Stream::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
                Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            })
            .await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(count..).unwrap_or_default();
        }
        poll_fn(|cx| match &mut *self.lock() {
            Stream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        })
        .await
    }

    /// Tells whether the stream is encrypted.
    pub(in crate::postgres) fn is_tls(&self) -> bool {
        matches!(&*self.lock(), Stream::Tls(_))
    }

    /// See [`Socket::hold`].
    pub(in crate::postgres) fn hold(&self, held: Held) -> io::Result<()> {
        self.lock().socket().hold(held)
    }

    /// See [`Socket::ignore_wakeups`].
    pub(in crate::postgres) fn ignore_wakeups(&self) {
        self.lock().socket().ignore_wakeups();
    }

    /// Ends the connection at once.
    pub(in crate::postgres) fn shutdown(&self) {
        self.lock().socket().shutdown();
    }
}
