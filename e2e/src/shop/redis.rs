//! redis-cart: the part of Redis that carts need, over RESP2 (arrays of bulk strings in, simple replies out).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpListener;

/// The most parts a command, and bytes a part, may have.
const MAX_PARTS: usize = 16;
const MAX_PART: usize = 64 * 1024;
/// Keys kept at most; more are refused.
const MAX_KEYS: usize = 100_000;

type Table = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// Serves until the listener fails. What it holds dies with it.
///
/// # Errors
/// Accepting failed.
pub async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let table = Table::default();
    loop {
        let (stream, _) = listener.accept().await?;
        let table = table.clone();
        tokio::spawn(async move {
            let mut stream = BufStream::new(stream);
            while let Ok(Some(command)) = read_command(&mut stream).await {
                let reply = answer(&table, &command);
                if stream.write_all(&reply).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
        });
    }
}

fn answer(table: &Table, command: &[Vec<u8>]) -> Vec<u8> {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let name = command.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
    match (name.as_slice(), command.get(1..).unwrap_or_default()) {
        (b"PING", []) => b"+PONG\r\n".to_vec(),
        (b"GET", [key]) => bulk(table.get(key).map(Vec::as_slice)),
        (b"SET", [key, _]) if table.len() >= MAX_KEYS && !table.contains_key(key) => b"-OOM too many keys\r\n".to_vec(),
        (b"SET", [key, value]) => {
            table.insert(key.clone(), value.clone());
            b"+OK\r\n".to_vec()
        }
        (b"DEL", [key]) => format!(":{}\r\n", u8::from(table.remove(key).is_some())).into_bytes(),
        _ => b"-ERR unknown command or wrong number of arguments\r\n".to_vec(),
    }
}

fn bulk(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        None => b"$-1\r\n".to_vec(),
        Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
    }
}

/// Sends a command and reads its reply; `None` is the nil reply.
///
/// # Errors
/// The connection's, or the server's `-ERR …`.
pub async fn call<S: AsyncBufRead + AsyncWrite + Unpin>(
    stream: &mut S,
    command: &[&[u8]],
) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        bytes.extend(bulk(Some(part)));
    }
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let line = read_line(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match line.split_at_checked(1) {
        Some(("+" | ":", text)) => Ok(Some(text.as_bytes().to_vec())),
        Some(("$", "-1")) => Ok(None),
        Some(("$", length)) => read_part(stream, length).await.map(Some),
        _ => Err(io::Error::other(line)),
    }
}

async fn read_command<S: AsyncBufRead + Unpin>(stream: &mut S) -> io::Result<Option<Vec<Vec<u8>>>> {
    let Some(line) = read_line(stream).await? else { return Ok(None) };
    let count = line.strip_prefix('*').and_then(|count| count.parse().ok()).filter(|count| *count <= MAX_PARTS);
    let mut command = Vec::new();
    for _ in 0..count.ok_or(io::ErrorKind::InvalidData)? {
        let line = read_line(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        command.push(read_part(stream, line.strip_prefix('$').ok_or(io::ErrorKind::InvalidData)?).await?);
    }
    Ok(Some(command))
}

async fn read_part<S: AsyncBufRead + Unpin>(stream: &mut S, length: &str) -> io::Result<Vec<u8>> {
    let length: usize = length.parse().ok().filter(|length| *length <= MAX_PART).ok_or(io::ErrorKind::InvalidData)?;
    let mut part = vec![0; length + 2];
    stream.read_exact(&mut part).await?;
    part.truncate(length);
    Ok(part)
}

async fn read_line<S: AsyncBufRead + Unpin>(stream: &mut S) -> io::Result<Option<String>> {
    let mut line = String::new();
    if stream.take(64).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    line.strip_suffix("\r\n").map(|line| Some(line.to_owned())).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
