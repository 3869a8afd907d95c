//! What is behind all proxies: reads a hello and a command, and obeys.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{hello::Command, tls};

/// Listens with a queue for the idle connections, which come at once.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(8192)
}

pub(super) async fn serve(address: SocketAddr, acceptor: TlsAcceptor) -> io::Result<()> {
    let listener = listen(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A client that breaks off is the load's concern.
        tokio::spawn(receive(stream, acceptor.clone()));
    }
}

/// What follows the hello is a command, or the rest of a TLS handshake: the hello tells.
async fn receive(mut stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<()> {
    // A hello is one record: type, version, length.
    let mut header = [0; 5];
    stream.read_exact(&mut header).await?;
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    stream.read_exact(&mut hello).await?;
    if hello.windows(tls::ALPN.len()).any(|window| window == tls::ALPN) {
        let read = io::Cursor::new([&header[..], &hello].concat());
        let (reader, writer) = stream.into_split();
        return obey(acceptor.accept(tokio::io::join(read.chain(reader), writer)).await?).await;
    }
    drop(hello);
    obey(stream).await
}

async fn obey(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut command = [0; 9];
    stream.read_exact(&mut command).await?;
    match Command::decode(command) {
        Some(Command::Send(mut left)) => {
            let bytes = vec![7; 256 * 1024];
            while left > 0 {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                stream.write_all(&bytes[..now]).await?;
                left -= now as u64;
            }
            stream.shutdown().await
        }
        Some(Command::Echo) => {
            let mut bytes = [0; 256];
            loop {
                match stream.read(&mut bytes).await? {
                    0 => return Ok(()),
                    count => stream.write_all(&bytes[..count]).await?,
                }
            }
        }
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
