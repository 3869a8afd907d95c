//! `sidecar wait`: an application that must not start before its sidecar is ready asks here first.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// One answer takes no longer.
const ANSWER: Duration = Duration::from_secs(1);

/// Bytes of an answer that are read: what is missing is said in a few lines.
const MAX_ANSWER: u64 = 4096;

/// The sidecar was not ready in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready within {timeout:?}: {last}")]
pub struct NotReady {
    timeout: Duration,
    last: String,
}

/// Waits until the health listener says that the sidecar is ready.
///
/// # Errors
/// It did not in time; the last answer says what it waits for.
pub fn until_ready(health: SocketAddr, timeout: Duration) -> Result<(), NotReady> {
    let health = reachable(health);
    let begun = Instant::now();
    loop {
        let last = match ask(health) {
            Ok((200, _)) => return Ok(()),
            Ok((_, body)) => body.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; "),
            Err(error) => format!("{health}: {error}"),
        };
        if begun.elapsed() + PAUSE > timeout {
            return Err(NotReady { timeout, last });
        }
        std::thread::sleep(PAUSE);
    }
}

/// A listener at every address is asked at loopback.
const fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), address.port()),
        _ => address,
    }
}

/// The status of `/readyz`, and its body.
fn ask(health: SocketAddr) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&health, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nhost: {health}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer"))?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::TcpListener;

    use super::*;

    fn serve(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 512]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn it_asks_until_the_sidecar_is_ready() {
        let waiting = "HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for: identity\n";
        let address = serve(vec![waiting, waiting, "HTTP/1.1 200 OK\r\n\r\nready\n"]);
        until_ready(address, Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn it_says_what_is_missing() {
        let address = serve(vec!["HTTP/1.1 503 Service Unavailable\r\n\r\nwaiting for: identity\n"]);
        let error = until_ready(address, Duration::from_millis(1)).unwrap_err().to_string();
        assert_eq!(error, "not ready within 1ms: waiting for: identity");
    }
}
