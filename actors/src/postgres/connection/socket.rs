//! A TCP or unix socket that may stop listening to the kernel's wake-ups.
//!
//! PostgreSQL's walsender makes one `send()` for every change. A socket that is registered with
//! epoll is woken for each of them, whether or not anybody reads; a reader that comes by the clock
//! wants silence in between. So this socket is registered only while somebody waits for readiness:
//! [`Socket::ignore_wakeups`] takes it out, the next read that finds nothing puts it back.

use std::{
    io::{self, Read, Write},
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, SockRef, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Receive buffer asked of the kernel, before connecting, as the window scale is agreed then. From
/// 512 KiB to 4 MiB the rate is the same on a quiet machine (64 MB/s read by the clock); 64 KiB and
/// 128 KiB bound what a nap may bring and gave 45 and 25 MB/s.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// The same for whoever takes rows at a rate. What the kernels hold is what the server makes in one
/// go: with 4 MiB it computes for 10 ms and more, and whatever shares its processor waits for it.
const RECEIVE_BUFFER_BYTES_LITTLE: usize = 64 << 10;
/// Idle time before the first TCP keepalive probe.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Time between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Probes without answer before the connection is dead.
const KEEPALIVE_PROBES: u32 = 3;
/// How long the peer's kernel may leave our bytes unacknowledged. A status update goes out every
/// second, so this notices a host that vanished; it cannot hit a server that is only slow.
const UNACKED_MAX: Duration = Duration::from_secs(15);

/// How much of what the server sends the kernel holds for its reader.
#[derive(Clone, Copy, Debug)]
pub(in crate::postgres) enum Held {
    /// For the highest rate. So begins every connection.
    Much,
    /// For a server that makes no more in one go than is wanted next.
    Little,
}

/// A connected, non-blocking socket.
#[derive(Debug)]
pub(super) struct Socket {
    io: socket2::Socket,
    is_unix: bool,
    readable: Option<AsyncFd<OwnedFd>>,
    writable: Option<AsyncFd<OwnedFd>>,
}

impl Socket {
    /// Connects; the caller bounds the time.
    pub(super) async fn connect(address: &SockAddr) -> io::Result<Self> {
        let is_unix = address.is_unix();
        let protocol = (!is_unix).then_some(Protocol::TCP);
        let domain = if is_unix {
            Domain::UNIX
        } else {
            address.domain()
        };
        let io = socket2::Socket::new(domain, Type::STREAM, protocol)?;
        io.set_nonblocking(true)?;
        if !is_unix {
            tune_tcp(&io)?;
        }
        let mut socket = Self {
            io,
            is_unix,
            readable: None,
            writable: None,
        };
        match socket.io.connect(address) {
            Ok(()) => return Ok(socket),
            Err(error) if is_under_way(&error) => {}
            Err(error) => return Err(error),
        }
        let writable = watch(&socket.io, Interest::WRITABLE)?;
        drop(writable.writable().await?);
        match socket.io.take_error()? {
            Some(error) => Err(error),
            None => {
                socket.writable = Some(writable);
                Ok(socket)
            }
        }
    }

    pub(super) const fn is_unix(&self) -> bool {
        self.is_unix
    }

    /// Sets how much the kernel holds, from what is received next on. A unix socket's sender decides.
    pub(super) fn hold(&self, held: Held) -> io::Result<()> {
        if self.is_unix {
            return Ok(());
        }
        self.io.set_recv_buffer_size(match held {
            Held::Much => RECEIVE_BUFFER_BYTES,
            Held::Little => RECEIVE_BUFFER_BYTES_LITTLE,
        })
    }

    /// Takes the socket out of epoll until a read finds nothing.
    pub(super) fn ignore_wakeups(&mut self) {
        self.readable = None;
        self.writable = None;
    }

    /// Ends the connection at once, whoever else still holds the socket.
    pub(super) fn shutdown(&self) {
        if let Err(error) = self.io.shutdown(std::net::Shutdown::Both) {
            tracing::debug!(%error, "the socket was closed already");
        }
    }
}

fn is_under_way(error: &io::Error) -> bool {
    let in_progress = rustix::io::Errno::INPROGRESS.raw_os_error();
    error.raw_os_error() == Some(in_progress) || error.kind() == io::ErrorKind::WouldBlock
}

fn tune_tcp(io: &socket2::Socket) -> io::Result<()> {
    io.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    io.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    io.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    SockRef::from(io).set_tcp_user_timeout(Some(UNACKED_MAX))?;
    Ok(())
}

/// Registers a duplicate, so that each direction is watched for itself.
fn watch(io: &socket2::Socket, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    register(OwnedFd::from(io.try_clone()?), interest)
}

/// Lets the runtime watch a descriptor.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may swap their descriptor; an OwnedFd cannot"
)]
pub(super) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // Readiness is taken before the read, so that what arrives in between sets it anew.
            let guard = match &this.readable {
                Some(readable) => Some(ready!(readable.poll_read_ready(cx))?),
                None => None,
            };
            let room = buffer.initialize_unfilled();
            let room_bytes = room.len();
            match ((&this.io).read(room), guard) {
                (Ok(count), guard) => {
                    // A short read has emptied the socket: epoll tells when there is more, and a
                    // second read to find nothing is saved.
                    if let Some(mut guard) = guard.filter(|_| count < room_bytes) {
                        guard.clear_ready();
                    }
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => {}
                (Err(error), guard) if error.kind() == io::ErrorKind::WouldBlock => match guard {
                    Some(mut guard) => guard.clear_ready(),
                    None => this.readable = Some(watch(&this.io, Interest::READABLE)?),
                },
                (Err(error), _) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match (&this.io).write(bytes) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            if this.writable.is_none() {
                this.writable = Some(watch(&this.io, Interest::WRITABLE)?);
            }
            if let Some(writable) = &this.writable {
                ready!(writable.poll_write_ready(cx))?.clear_ready();
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.io.shutdown(std::net::Shutdown::Write))
    }
}
