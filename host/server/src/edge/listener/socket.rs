//! The socket of a connection, shared between HTTP, which reads and writes it, and a task that detects a
//! peer that has left.
//!
//! A FIN means that the peer sends nothing more, after `shutdown(SHUT_WR)` as well as after `close()`. The
//! two differ when something is sent to the peer: one that has closed replies with a reset. All HTTP/1
//! responses begin with the same byte, so that byte can be sent before the rest is known ([`Wire`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::activity::Activity;

/// The first byte of `HTTP/1.1` and of `HTTP/1.0`.
const FIRST_BYTE: &[u8] = b"H";

/// How long, and how many bytes, a connection is read after the server has closed its side, so that a reset
/// does not overtake the last response. The bytes are eight times the default limit of bodies.
const LINGER_TIME: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 64 << 20;

/// The size of the buffer for bytes that are discarded.
const DISCARD_BUFFER: usize = 16 << 10;

/// One of the owners of a TCP socket.
pub(in crate::edge) struct Socket(Arc<TcpStream>);

impl Socket {
    /// The half that reads and writes. There must be only one.
    pub(super) fn new(stream: &Arc<TcpStream>) -> Self {
        Self(Arc::clone(stream))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(&*self.0, Shutdown::Write)?))
    }
}

/// Completes when the peer has reset the connection, or the connection has failed otherwise. Notes in
/// `activity` when the peer closes its sending side.
pub(super) async fn reset(stream: &TcpStream, activity: &Activity) {
    // "Priority" is out-of-band data, which is not requested, or the end of the peer's data.
    let closing = stream.ready(Interest::PRIORITY | Interest::ERROR).await;
    if closing.is_ok_and(|ready| !ready.is_error()) {
        activity.note_end_of_input();
        // HTTP is polled before this, and must be polled again to see it.
        tokio::task::yield_now().await;
        let _ = stream.ready(Interest::ERROR).await;
    }
}

/// Close a connection whose last response has been written: close the sending side, and discard what the
/// peer still sends until it closes as well. Closing a socket with unread data resets the connection, and
/// the peer may lose the response.
pub(super) async fn linger(stream: &TcpStream) {
    // The connection may be closed already.
    let _ = shutdown(stream, Shutdown::Write);
    let discard = async {
        let (mut buffer, mut left) = (vec![0; DISCARD_BUFFER], LINGER_BYTES);
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_gone) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER_TIME, discard).await;
}

/// The stream that HTTP reads and writes: the socket, or TLS over it. It notes when bytes arrive. While an
/// HTTP/1 handler works for a half-closed peer, it sends the first byte of the response ahead.
pub(super) struct Wire<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Whether the first byte of the next response has been sent.
    is_ahead: bool,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, activity: &Arc<Activity>) -> Self {
        Self { stream, activity: Arc::clone(activity), is_ahead: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.note_input();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.is_ahead || data.is_empty() {
            return Pin::new(&mut self.stream).poll_write(context, data);
        }
        debug_assert_eq!(data[..1], *FIRST_BYTE, "hyper writes HTTP/1");
        let rest = &data[1..];
        let mut written = 0;
        if !rest.is_empty() {
            written = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
        }
        self.is_ahead = false;
        Poll::Ready(Ok(written + 1))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_ahead {
            let first = data.iter().find(|slice| !slice.is_empty());
            return self.poll_write(context, first.map_or(&[], |slice| slice));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes whenever it was polled and has written everything. So this is between two responses
    /// if a handler is in progress.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_ahead && self.activity.may_be_abandoned() {
            match Pin::new(&mut self.stream).poll_write(context, FIRST_BYTE) {
                Poll::Ready(Ok(count)) => self.is_ahead = count > 0,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // The peer does not read, so one more byte would not tell whether it has left.
                Poll::Pending => {}
            }
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// The peer reads the response once and whole, however it is split into writes.
    #[tokio::test]
    async fn a_first_byte_sent_ahead_is_not_sent_again() {
        for cut in 1..8 {
            for is_vectored in [false, true] {
                let (mut peer, stream) = duplex(1024);
                let activity = Arc::new(Activity::new());
                let mut wire = Wire::new(stream, &activity);
                wire.flush().await.unwrap();
                let _request = activity.begin_request(axum::http::Version::HTTP_11);
                wire.flush().await.unwrap();
                assert!(!wire.is_ahead, "the peer may still send");
                activity.note_end_of_input();
                wire.flush().await.unwrap();
                wire.flush().await.unwrap();
                let mut byte = [0];
                peer.read_exact(&mut byte).await.unwrap();
                assert_eq!(byte, *b"H");
                let mut left = &b"HTTP/1.1 200 OK\r\n\r\n"[..];
                while !left.is_empty() {
                    let (now, later) = left.split_at(cut.min(left.len()));
                    let slices = [IoSlice::new(&[]), IoSlice::new(now), IoSlice::new(later)];
                    let written = match is_vectored {
                        true => wire.write_vectored(&slices).await.unwrap(),
                        false => wire.write(now).await.unwrap(),
                    };
                    left = &left[written..];
                }
                drop(wire);
                let mut rest = String::new();
                peer.read_to_string(&mut rest).await.unwrap();
                assert_eq!(rest, "TTP/1.1 200 OK\r\n\r\n");
            }
        }
    }
}
