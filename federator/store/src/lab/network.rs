//! The network between the members: an HTTP proxy for each, which it asks to connect it to the others.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{MEMBERS, address_in};

/// Where the members' proxies listen.
const PROXY_PORT: u16 = 2381;

/// What happens to what a member sends and receives.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Cut,
    Slow(Duration),
}

type Troubles = BTreeMap<usize, Trouble>;

/// The proxies; they end with it.
#[derive(Debug)]
pub(super) struct Network {
    block: [u8; 3],
    troubles: watch::Sender<Troubles>,
    proxies: Vec<JoinHandle<()>>,
}

impl Network {
    pub(super) async fn start(block: [u8; 3]) -> io::Result<Self> {
        let troubles = watch::Sender::new(Troubles::new());
        let mut proxies = Vec::new();
        for member in 0..MEMBERS {
            let listener = TcpListener::bind((address_in(block, member), PROXY_PORT)).await?;
            proxies.push(tokio::spawn(serve(listener, block, member, troubles.clone())));
        }
        Ok(Self { block, troubles, proxies })
    }

    pub(super) fn address(&self, member: usize) -> Ipv4Addr {
        address_in(self.block, member)
    }

    pub(super) fn proxy(&self, member: usize) -> SocketAddr {
        (self.address(member), PROXY_PORT).into()
    }

    pub(super) fn cut(&self, member: usize) {
        self.trouble(member, Trouble::Cut);
    }

    pub(super) fn slow(&self, member: usize, delay: Duration) {
        self.trouble(member, Trouble::Slow(delay));
    }

    fn trouble(&self, member: usize, trouble: Trouble) {
        self.troubles.send_modify(|troubles| {
            troubles.insert(member, trouble);
        });
    }

    pub(super) fn heal(&self) {
        self.troubles.send_modify(Troubles::clear);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.proxies.iter().for_each(JoinHandle::abort);
    }
}

/// The address by which the members know each other. It is kept for documentation (RFC 5737) and not on loopback, since
/// Go's clients ask no proxy for loopback addresses.
pub(super) fn peer_address(member: usize) -> Ipv4Addr {
    address_in([192, 0, 2], member)
}

pub(super) fn peer_url(member: usize) -> String {
    format!("https://{}:2380", peer_address(member))
}

/// Serves one member's proxy; its connections end with it.
async fn serve(listener: TcpListener, block: [u8; 3], from: usize, troubles: watch::Sender<Troubles>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let troubles = troubles.subscribe();
        connections.spawn(async move {
            // A connection that fails is what the members are made to bear.
            let _ = connect(stream, block, from, troubles).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(
    stream: TcpStream,
    block: [u8; 3],
    from: usize,
    troubles: watch::Receiver<Troubles>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let to = (0..MEMBERS).find(|member| line.starts_with(&format!("CONNECT {}:", peer_address(*member))));
    let to = to.ok_or_else(|| io::Error::other("the proxy connects members only"))?;
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
    }
    let mut troubles = troubles;
    pass(&mut troubles, from, to).await;
    let other = TcpStream::connect((address_in(block, to), 2380)).await?;
    other.set_nodelay(true)?;
    let mut stream = stream.into_inner();
    stream.set_nodelay(true)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let ((read, write), (other_read, other_write)) = (stream.into_split(), other.into_split());
    let back = troubles.clone();
    tokio::select! {
        ended = pump(read, other_write, troubles, from, to) => ended,
        ended = pump(other_read, write, back, to, from) => ended,
    }
}

async fn pump(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    mut troubles: watch::Receiver<Troubles>,
    from: usize,
    to: usize,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = read.read(&mut buffer).await?;
        pass(&mut troubles, from, to).await;
        if count == 0 {
            return Ok(());
        }
        write.write_all(&buffer[..count]).await?;
    }
}

/// Waits for as long as the network between two members holds back.
async fn pass(troubles: &mut watch::Receiver<Troubles>, from: usize, to: usize) {
    let cut = |troubles: &Troubles| [from, to].iter().any(|member| matches!(troubles.get(member), Some(Trouble::Cut)));
    let delay = |troubles: &Troubles| {
        [from, to].iter().find_map(|member| match troubles.get(member) {
            Some(Trouble::Slow(delay)) => Some(*delay),
            _ => None,
        })
    };
    // The network is gone with its last connections.
    let _ = troubles.wait_for(|troubles| !cut(troubles)).await;
    let delay = delay(&troubles.borrow());
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
}

/// The body of a small page.
pub(super) async fn read_http(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
