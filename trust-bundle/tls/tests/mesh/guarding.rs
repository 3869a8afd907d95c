//! Live connections after the trust in their peer has changed.

use std::{future::Future, io, pin::Pin, task::Poll, time::Duration};

use mesh_tls::{DenyList, Guarded, Peer, PeerError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    domain::{Domain, PATIENCE},
    handshakes::{Pair, shake},
};

/// Whether the future, having looked at everything there is to see, still waits.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_pending())).await
}

#[tokio::test]
async fn the_owner_of_a_connection_learns_that_its_peer_lost_trust() {
    let pair = Pair::new();
    let (_client, server) = shake(&pair.client(), &pair.server()).await;
    let peer = Peer::of_server(server.unwrap().get_ref().1).unwrap();
    assert_eq!(peer.id(), &pair.east.id("till"));
    let mut distrusted = Box::pin(pair.trust.distrusted(peer.clone()));
    assert!(is_pending(&mut distrusted).await);
    // What concerns others, or adds a root, changes nothing.
    pair.trust.insert(Domain::new("north.mesh.example").bundle());
    pair.trust.remove(&pair.west.name);
    let added = Domain::new("east.mesh.example");
    pair.trust.insert(pair.east.bundle_of([added.root.clone(), pair.east.root.clone()]));
    assert_eq!(pair.trust.still_trusts(&peer), Ok(()));
    assert!(is_pending(&mut distrusted).await);
    // The root that signed the peer is retired.
    pair.trust.insert(added.bundle());
    let reason = timeout(PATIENCE, distrusted).await.unwrap();
    assert_eq!(reason, PeerError::UnknownIssuer(pair.east.id("till")));
}

#[tokio::test]
async fn a_change_between_handshake_and_guard_is_not_missed() {
    let pair = Pair::new();
    let (_client, server) = shake(&pair.client(), &pair.server()).await;
    let peer = Peer::of_server(server.unwrap().get_ref().1).unwrap();
    pair.trust.remove(&pair.east.name);
    let reason = timeout(PATIENCE, pair.trust.distrusted(peer)).await.unwrap();
    assert_eq!(reason, PeerError::UnknownTrustDomain(pair.east.id("till")));
}

#[tokio::test]
async fn a_live_connection_outlasts_its_certificate() {
    let pair = Pair::new();
    let mut params = crate::domain::leaf_params(&pair.east.id("till"));
    // Certificates count whole seconds: this one lives one to two of them.
    let end = std::time::SystemTime::now() + Duration::from_secs(2);
    params.not_after = end.into();
    let leaf = pair.east.sign(&params);
    pair.client_identity.replace(vec![leaf.der.clone()], leaf.private_key()).unwrap();
    let (client, server) = (pair.client(), pair.server());
    let (_client, accepted) = shake(&client, &server).await;
    let peer = Peer::of_server(accepted.unwrap().get_ref().1).unwrap();
    timeout(PATIENCE, async {
        while shake(&client, &server).await.1.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(pair.trust.still_trusts(&peer), Ok(()), "new handshakes are refused, the live connection is not");
    pair.trust.deny(DenyList { ids: [pair.east.id("till")].into(), ..DenyList::default() });
    assert!(pair.trust.still_trusts(&peer).is_err());
}

#[tokio::test]
async fn a_guarded_stream_ends_with_the_trust_in_its_peer() {
    let pair = Pair::new();
    let (client, server) = shake(&pair.client(), &pair.server()).await;
    let (mut client, server) = (client.unwrap(), server.unwrap());
    let peer = Peer::of_server(server.get_ref().1).unwrap();
    let mut server = Guarded::new(server, &pair.trust, peer);
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    let reading = tokio::spawn(async move {
        let error = server.read_u8().await.unwrap_err();
        (error, server)
    });
    tokio::task::yield_now().await;
    assert!(!reading.is_finished());
    pair.trust.deny(DenyList { trust_domains: [pair.east.name.clone()].into(), ..DenyList::default() });
    let (error, mut server) = timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(error.to_string().contains("till is denied"), "{error}");
    assert!(server.write_all(b"y").await.is_err());
}
