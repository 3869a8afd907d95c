//! More work than an application can do: the server's sidecar finds out how much is too much.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::net::TcpStream;

use crate::applications::Application;
use crate::client::{self, Answer, Client, request};
use crate::cluster::{Cluster, HTTP, PATIENCE, host, ready};

/// Calls at a time, and the fixed ceiling of the limit.
const CROWD: usize = 240;

/// The limit's floor is 100: it is found well below the crowd.
const FEW: usize = 160;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_slows_down_in_a_crowd_gets_fewer_requests_and_callers_hear_it_at_once() {
    let east = Cluster::start("east").await;
    let application = Application::crowded().await;
    east.workload("cart-1", "cart", &[(HTTP, application.port())]);
    let mut config = east.config("cart-1", "cart");
    config.inbound.max_requests = u32::try_from(CROWD).unwrap();
    // Connections are not what is short here, even on a busy machine.
    config.inbound.connect_timeout = PATIENCE;
    let server = east.pod_with(config, "cart").await;
    ready(&server.process).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let uri = format!("http://{}/", host("cart"));

    // What is usual: one at a time, for longer than the limit looks at once.
    let mut calm = Client::connect(client.proxy()).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(calm.get(&uri).await.status, StatusCode::OK);
    }

    let sender = client::http2(TcpStream::connect(client.proxy()).await.unwrap()).await;
    let (stop, shed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let calling = (0..CROWD).map(|_| {
        let (mut sender, uri, stop, shed) = (sender.clone(), uri.as_str(), &stop, &shed);
        async move {
            while !stop.load(Ordering::SeqCst) {
                let response = sender.send_request(request(Method::GET, uri, "", &[])).await.unwrap();
                let answer = Answer::read(response).await.unwrap();
                match answer.status {
                    StatusCode::OK => {}
                    StatusCode::SERVICE_UNAVAILABLE => {
                        assert_eq!(answer.header("retry-after"), "1", "{answer:?}");
                        shed.fetch_add(1, Ordering::SeqCst);
                        // As a caller that was told so would.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    other => panic!("{other}: {answer:?}"),
                }
            }
        }
    });
    let watching = async {
        let deadline = Instant::now() + PATIENCE;
        let mut few_since = None;
        while few_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(300)) {
            let few = shed.load(Ordering::SeqCst) > 0 && application.requests() < FEW;
            few_since = if few { few_since.or_else(|| Some(Instant::now())) } else { None };
            assert!(Instant::now() < deadline, "still {} at a time", application.requests());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(futures_util::future::join_all(calling), watching);
    assert_eq!(calm.get(&uri).await.status, StatusCode::OK, "whoever comes afterwards is served");
}
