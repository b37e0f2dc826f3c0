//! A plain connection to a server that takes anyone, as a leg of a fan-out and as the oracle's client.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use pgherd::error::Error;
use pgherd::exec::fanout::{Leg, Sink};
use pgherd::wire::frame::{self, Frame, Frames};
use pgherd::wire::writer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::harness::Database;

pub struct Wire {
    stream: TcpStream,
    inbuf: BytesMut,
    outbuf: BytesMut,
    port: u16,
    key: BytesMut,
}

impl Wire {
    pub async fn connect(database: &Database) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", database.port)).await.expect("connect");
        let mut wire =
            Self { stream, inbuf: BytesMut::new(), outbuf: BytesMut::new(), port: database.port, key: BytesMut::new() };
        let mut body = BytesMut::new();
        body.put_i32(0x0003_0000);
        for text in ["user", "postgres", "database", &database.name] {
            writer::cstr(&mut body, text.as_bytes());
        }
        body.put_u8(0);
        wire.outbuf.put_i32(body.len() as i32 + 4);
        wire.outbuf.put_slice(&body);
        for frame in wire.until_ready().await {
            if frame.tag() == b'K' {
                wire.key = frame.body().into();
            }
        }
        wire
    }

    pub async fn frame(&mut self) -> Result<Frame, Error> {
        poll_fn(|cx| {
            if !self.outbuf.is_empty()
                && let Poll::Ready(Err(error)) = Leg::poll_flush(self, cx)
            {
                return Poll::Ready(Err(error));
            }
            self.poll_frame(cx)
        })
        .await
    }

    /// Every message up to and with the next ReadyForQuery.
    pub async fn until_ready(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame().await.expect("a frame");
            let is_last = frame.tag() == b'Z';
            frames.push(frame);
            if is_last {
                return frames;
            }
        }
    }

    /// Runs one statement in the extended protocol.
    pub async fn extended(
        &mut self,
        text: &str,
        types: &[u32],
        values: &[Option<&[u8]>],
        formats: &[i16],
    ) -> Vec<Frame> {
        let out = &mut self.outbuf;
        writer::parse(out, b"", text.as_bytes(), types);
        writer::message(out, b'B', |out| {
            out.put_slice(b"\0\0");
            out.put_i16(0);
            out.put_i16(values.len() as i16);
            for value in values {
                out.put_i32(value.map_or(-1, |value| value.len() as i32));
                out.put_slice(value.unwrap_or_default());
            }
            out.put_i16(formats.len() as i16);
            formats.iter().for_each(|&format| out.put_i16(format));
        });
        writer::describe(out, b'P', b"");
        writer::execute(out, b"", 0);
        writer::sync(out);
        self.until_ready().await
    }

    /// What a fresh statement answers: the connection is usable and idle.
    pub async fn is_idle(&mut self) -> bool {
        writer::query(&mut self.outbuf, b"select 1");
        let frames = self.until_ready().await;
        let tags: Vec<u8> = frames.iter().map(Frame::tag).collect();
        tags == b"TDCZ" && frames.last().is_some_and(|ready| ready.body() == b"I")
    }
}

impl Leg for Wire {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.outbuf
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.outbuf.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.outbuf) {
                Poll::Ready(written) => drop(self.outbuf.split_to(written?)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        loop {
            if let Some(frame) = frame::cut(&mut self.inbuf, 1 << 28).expect("a sound frame") {
                return Poll::Ready(Ok(frame));
            }
            let mut chunk = [0; 16 * 1024];
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read?,
            }
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()));
            }
            self.inbuf.extend_from_slice(buffer.filled());
        }
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>> {
        if let Some(rows) = frame::cut_all(&mut self.inbuf, tag, 1 << 28).expect("sound frames") {
            return Poll::Ready(Ok(rows));
        }
        self.poll_frame(cx).map_ok(Frames::from)
    }

    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (port, key) = (self.port, self.key.clone());
        Box::pin(async move {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let mut request = BytesMut::new();
            request.put_i32(key.len() as i32 + 8);
            request.put_i32(80_877_102);
            request.put_slice(&key);
            if stream.write_all(&request).await.is_ok() {
                let _ = stream.read(&mut [0; 1]).await;
            }
        })
    }
}

/// A client that takes everything at once.
#[derive(Default)]
pub struct Collected {
    pub queue: BytesMut,
    pub sent: BytesMut,
}

impl Sink for Collected {
    fn queue(&mut self) -> &mut BytesMut {
        &mut self.queue
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let queued = self.queue.split();
        self.sent.extend_from_slice(&queued);
        Poll::Ready(Ok(()))
    }
}

impl Collected {
    pub fn frames(mut self) -> Vec<Frame> {
        self.sent.extend_from_slice(&self.queue);
        let mut frames = Vec::new();
        while let Some(frame) = frame::cut(&mut self.sent, 1 << 28).expect("a sound frame") {
            frames.push(frame);
        }
        frames
    }
}
