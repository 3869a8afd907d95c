//! Saying no so that it is heard.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How long a refused client has to read its alert and close before the connection is dropped under it.
pub const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Writes an alert (see [`crate::alert`]), ends our direction and waits, for at most [`REFUSAL_LINGER`], until the client has closed too.
///
/// Closing at once would be a reset if the client has sent anything that was not read, and a reset may overtake the alert.
///
/// # Errors
/// The client was gone already.
pub async fn refuse(stream: &mut TcpStream, alert: &[u8]) -> io::Result<()> {
    let lingering = async {
        stream.write_all(alert).await?;
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await? > 0 {}
        Ok(())
    };
    tokio::time::timeout(REFUSAL_LINGER, lingering).await.unwrap_or(Ok(()))
}
