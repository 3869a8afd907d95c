//! A query and its reply on the wire: UDP, and TCP when the reply did not fit (RFC 1035, RFC 6891, RFC 7766).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{error::Elapsed, timeout};

/// The largest reply over UDP that crosses every link unfragmented (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// A query over UDP can be lost.
const UDP_ATTEMPTS: usize = 2;

/// What is asked, and how.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) record_type: RecordType,
    pub(super) first: Transport,
    /// For each attempt.
    pub(super) deadline: Duration,
}

/// What carries a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) message: Message,
    pub(super) bytes: usize,
    pub(super) transport: Transport,
    pub(super) took: Duration,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no answer in time")]
    Deadline(#[from] Elapsed),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the answer is not DNS: {0}")]
    Malformed(String),
    #[error("the answer is to another question")]
    OtherQuestion,
    #[error("the question cannot be written: {0}")]
    Unwritable(String),
}

/// Asks one server. The time taken includes the attempts that were lost.
pub(super) async fn ask(server: SocketAddr, question: &Question) -> Result<Reply, AskError> {
    let query = query(question);
    let bytes = query.to_vec().map_err(|error| AskError::Unwritable(error.to_string()))?;
    let asked = Instant::now();
    if question.first == Transport::Udp {
        let (message, size) = over_udp(server, &query, &bytes, question.deadline).await?;
        if !message.metadata.truncation {
            return Ok(Reply { message, bytes: size, transport: Transport::Udp, took: asked.elapsed() });
        }
    }
    let reply = timeout(question.deadline, over_tcp(server, &bytes)).await??;
    let message = read(&query, &reply)?;
    Ok(Reply { message, bytes: reply.len(), transport: Transport::Tcp, took: asked.elapsed() })
}

fn query(question: &Question) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(question.name.clone(), question.record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_version(0);
    query.set_edns(edns);
    query
}

async fn over_udp(
    server: SocketAddr,
    query: &Message,
    bytes: &[u8],
    deadline: Duration,
) -> Result<(Message, usize), AskError> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut last = None;
    for _ in 0..UDP_ATTEMPTS {
        socket.send(bytes).await?;
        match timeout(deadline, first_answer(&socket, query)).await {
            Ok(answer) => return answer,
            Err(elapsed) => last = Some(elapsed),
        }
    }
    Err(last.map_or(AskError::OtherQuestion, AskError::Deadline))
}

/// What is not the answer to the query may be somebody's guess at it: passed over until the deadline (RFC 5452).
async fn first_answer(socket: &UdpSocket, query: &Message) -> Result<(Message, usize), AskError> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let size = socket.recv(&mut buffer).await?;
        match read(query, &buffer[..size]) {
            Ok(message) => return Ok((message, size)),
            Err(AskError::OtherQuestion) => {}
            // A truncated reply may end within a record; it says to ask again over TCP, which is all that is needed.
            Err(malformed) => match truncated(query, &buffer[..size]) {
                Some(message) => return Ok((message, size)),
                None => return Err(malformed),
            },
        }
    }
}

fn truncated(query: &Message, bytes: &[u8]) -> Option<Message> {
    let (id, flags) = (bytes.get(0..2)?, *bytes.get(2)?);
    let ours = id == query.metadata.id.to_be_bytes() && flags & 0b1000_0010 == 0b1000_0010;
    ours.then(|| {
        let mut message = Message::response(query.metadata.id, query.metadata.op_code);
        message.metadata.truncation = true;
        message
    })
}

async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, AskError> {
    let length = u16::try_from(bytes.len()).map_err(|_| AskError::Unwritable("longer than 65535 bytes".to_owned()))?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

fn read(query: &Message, bytes: &[u8]) -> Result<Message, AskError> {
    let ours = bytes.get(..2) == Some(&query.metadata.id.to_be_bytes());
    if !ours {
        return Err(AskError::OtherQuestion);
    }
    let message = Message::from_vec(bytes).map_err(|error| AskError::Malformed(error.to_string()))?;
    // A server that could not read the query may answer without it.
    let same = message.queries.is_empty() || message.queries == query.queries;
    if message.metadata.message_type == MessageType::Response && same {
        Ok(message)
    } else {
        Err(AskError::OtherQuestion)
    }
}
