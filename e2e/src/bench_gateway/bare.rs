//! Relays to one target that read no name: the limits of what a proxy can reach.

use std::{io, net::SocketAddr};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{
    io::{Interest, copy_bidirectional_with_sizes},
    net::TcpStream,
};

use super::backend::listen;

const PIPE_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 64 * 1024;

pub(super) async fn splice_all(address: SocketAddr, target: SocketAddr) -> io::Result<()> {
    each(address, target, async |client, endpoint| {
        tokio::try_join!(splice_one_way(&client, &endpoint), splice_one_way(&endpoint, &client)).map(drop)
    })
    .await
}

pub(super) async fn copy_all(address: SocketAddr, target: SocketAddr) -> io::Result<()> {
    each(address, target, async |mut client, mut endpoint| {
        copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER_BYTES, BUFFER_BYTES).await.map(drop)
    })
    .await
}

async fn each<F>(address: SocketAddr, target: SocketAddr, relay: F) -> io::Result<()>
where
    F: AsyncFn(TcpStream, TcpStream) -> io::Result<()> + Copy + 'static,
{
    let listener = listen(address)?;
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let (client, _) = listener.accept().await?;
                tokio::task::spawn_local(async move {
                    client.set_nodelay(true)?;
                    let endpoint = TcpStream::connect(target).await?;
                    endpoint.set_nodelay(true)?;
                    relay(client, endpoint).await
                });
            }
        })
        .await
}

async fn splice_one_way(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&write, PIPE_BYTES)?;
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let mut held =
            from.async_io(Interest::READABLE, || Ok(splice(from, None, &write, None, PIPE_BYTES, flags)?)).await?;
        if held == 0 {
            return socket_end(to);
        }
        while held > 0 {
            held -= to.async_io(Interest::WRITABLE, || Ok(splice(&read, None, to, None, held, flags)?)).await?;
        }
    }
}

fn socket_end(to: &TcpStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(to, rustix::net::Shutdown::Write)?)
}
