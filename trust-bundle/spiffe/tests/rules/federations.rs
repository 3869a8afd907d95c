use std::time::{Duration, Instant};

use proptest::prelude::*;
use spiffe_identity::{
    Accepted, Bundle, BundleError, BundleSet, DEFAULT_REFRESH_HINT, OfferError, SpiffeId,
    federation::{
        Answer, Endpoint, EndpointError, EndpointUrl, FETCH_DEADLINE, Fetch, FetchError, Head, Next, Server, UrlError,
    },
};

use crate::certificates::{root, signed, trust_domain};

const OK: Head<'static> = Head { status: 200, location: None, content_encoding: None, content_length: None };

fn url(text: &str) -> EndpointUrl {
    text.parse().unwrap()
}

fn bundle(sequence: u64) -> Bundle {
    let x509_authorities = vec![signed(&root()).der().clone()];
    Bundle { trust_domain: trust_domain(), x509_authorities, sequence, refresh_hint: Some(Duration::from_secs(60)) }
}

fn fetch() -> (Fetch, Instant) {
    let now = Instant::now();
    let endpoint = Endpoint::https_web(trust_domain(), url("https://bundles.example/east"));
    (Fetch::new(&endpoint, now), now)
}

fn moved(status: u16, location: &str) -> Head<'_> {
    Head { status, location: Some(location), ..Head::default() }
}

#[test]
fn a_bundle_is_fetched_in_pieces_and_held() {
    let (mut fetch, now) = fetch();
    let sent = bundle(7);
    assert_eq!(fetch.url().to_string(), "https://bundles.example/east");
    assert_eq!(fetch.head(OK, now), Ok(Next::Body));
    for piece in sent.to_jwks().as_bytes().chunks(100) {
        fetch.piece(piece, now).unwrap();
    }
    let fetched = fetch.finish(now).unwrap();
    assert_eq!(fetched, sent);
    let mut held = BundleSet::new();
    assert_eq!(held.offer(fetched), Ok(Accepted::New));
    assert!(matches!(held.offer(bundle(6)), Err(OfferError::Older { .. })), "a replayed answer");
}

#[test]
fn temporary_redirects_over_https_are_followed_and_no_others() {
    let to = |head: Head<'_>| {
        let (mut fetch, now) = fetch();
        fetch.head(head, now).map(|_| fetch.url().to_string())
    };
    for status in [302, 303, 307] {
        assert_eq!(to(moved(status, "https://other.example:8443/b?x=1")).unwrap(), "https://other.example:8443/b?x=1");
    }
    assert_eq!(to(moved(302, "/elsewhere")).unwrap(), "https://bundles.example/elsewhere");
    for status in [301, 308] {
        assert_eq!(to(moved(status, "https://other.example/b")), Err(FetchError::PermanentRedirect(status)));
    }
    for location in ["http://bundles.example/east", "//other.example/b", "ftp://a/b", "east", ""] {
        assert_eq!(to(moved(302, location)), Err(FetchError::Redirect(UrlError::Scheme)), "{location}");
    }
    assert_eq!(to(moved(302, "https://a@b/c")), Err(FetchError::Redirect(UrlError::UserInformation)));
    assert_eq!(to(Head { status: 302, ..Head::default() }), Err(FetchError::NoLocation));
}

#[test]
fn redirects_end_after_three() {
    let (mut fetch, now) = fetch();
    for _ in 0..3 {
        assert_eq!(fetch.head(moved(302, "/again"), now), Ok(Next::Redirect));
    }
    let mut one_more = fetch.clone();
    assert_eq!(one_more.head(moved(302, "/again"), now), Err(FetchError::TooManyRedirects));
    assert_eq!(fetch.head(OK, now), Ok(Next::Body));
}

#[test]
fn a_body_ends_at_one_mebibyte_however_it_comes() {
    let piece = vec![b' '; 64 << 10];
    let (mut fetch, now) = fetch();
    fetch.head(OK, now).unwrap();
    for _ in 0..16 {
        assert_eq!(fetch.piece(&piece, now), Ok(()));
    }
    assert_eq!(fetch.piece(b" ", now), Err(FetchError::TooLarge), "the rest of 10 MB is never kept");
    let announced = |length| self::fetch().0.head(Head { content_length: Some(length), ..OK }, now);
    assert_eq!(announced(10_000_000), Err(FetchError::TooLarge));
    assert_eq!(announced(1 << 20), Ok(Next::Body));
}

#[test]
fn a_body_that_drips_ends_with_the_deadline() {
    let (mut fetch, now) = fetch();
    let second = Duration::from_secs(1);
    fetch.head(OK, now + second).unwrap();
    assert_eq!(fetch.deadline(), now + FETCH_DEADLINE);
    for passed in 2..10 {
        assert_eq!(fetch.piece(b" ", now + passed * second), Ok(()));
    }
    assert_eq!(
        fetch.piece(b" ", now + FETCH_DEADLINE),
        Err(FetchError::TooSlow),
        "each byte came in time, all did not"
    );
    assert_eq!(fetch.clone().finish(now + FETCH_DEADLINE), Err(FetchError::TooSlow));
    assert_eq!(fetch.head(OK, now + FETCH_DEADLINE), Err(FetchError::TooSlow));
}

#[test]
fn a_compressed_body_is_refused_before_its_first_byte() {
    let encoded = |encoding| {
        let (mut fetch, now) = fetch();
        fetch.head(Head { content_encoding: Some(encoding), ..OK }, now)
    };
    for encoding in ["gzip", "br", "zstd", "identity, gzip"] {
        assert_eq!(encoded(encoding), Err(FetchError::Encoding(encoding.into())));
    }
    assert_eq!(encoded("identity"), Ok(Next::Body));
}

#[test]
fn what_is_no_bundle_is_refused() {
    let (mut fetch, now) = fetch();
    assert_eq!(fetch.clone().finish(now), Err(FetchError::NoBody));
    assert_eq!(fetch.piece(b"{}", now), Err(FetchError::NoBody));
    for status in [204, 206, 304, 401, 404, 500] {
        assert_eq!(fetch.head(Head { status, ..OK }, now), Err(FetchError::Status(status)));
    }
    fetch.head(OK, now).unwrap();
    fetch.piece(b"{}", now).unwrap();
    assert_eq!(fetch.finish(now), Err(BundleError::MissingKeys.into()));
}

#[test]
fn an_endpoint_is_believed_by_its_identity_and_the_newest_bundle() {
    let id: SpiffeId = "spiffe://east.mesh.example/bundles".parse().unwrap();
    let (bootstrap, newest) = (bundle(1), bundle(2));
    let at = url("https://10.0.0.1:8443/");
    let endpoint = Endpoint::https_spiffe(trust_domain(), at.clone(), id.clone(), bootstrap.clone()).unwrap();
    let mut held = BundleSet::new();
    assert_eq!(endpoint.server(&held), Server::Spiffe { id: &id, bundle: &bootstrap });
    assert_eq!(endpoint.refresh(&held), DEFAULT_REFRESH_HINT);
    held.offer(newest.clone()).unwrap();
    assert_eq!(endpoint.server(&held), Server::Spiffe { id: &id, bundle: &newest });
    assert_eq!(endpoint.refresh(&held), Duration::from_secs(60));
    // A redirect changes where, never whom.
    let mut fetch = Fetch::new(&endpoint, Instant::now());
    fetch.head(moved(307, "https://evil.example/"), Instant::now()).unwrap();
    assert_eq!(fetch.url().host(), "evil.example");
    assert_eq!(endpoint.server(&held), Server::Spiffe { id: &id, bundle: &newest });
    held.offer(Bundle { x509_authorities: Vec::new(), sequence: 3, ..newest }).unwrap();
    assert!(matches!(endpoint.server(&held), Server::Spiffe { bundle, .. } if bundle.x509_authorities.is_empty()));
    let foreign: SpiffeId = "spiffe://west.mesh.example/bundles".parse().unwrap();
    let refused = Endpoint::https_spiffe(trust_domain(), at.clone(), foreign.clone(), bootstrap.clone());
    let (expected, found) = (foreign.trust_domain().clone(), trust_domain());
    assert_eq!(refused, Err(EndpointError::Bootstrap { expected, found }));
    let nobody = SpiffeId::of_trust_domain(&trust_domain());
    let refused = Endpoint::https_spiffe(trust_domain(), at.clone(), nobody.clone(), bootstrap);
    assert_eq!(refused, Err(EndpointError::NoPath(nobody)));
    assert_eq!(Endpoint::https_web(trust_domain(), at).server(&held), Server::Web);
}

#[test]
fn urls_are_https_with_host_port_and_target() {
    let parts = |text: &str| {
        let url = url(text);
        (url.host().to_owned(), url.port(), url.target().to_owned())
    };
    let is = |host: &str, port, target: &str| (host.to_owned(), port, target.to_owned());
    assert_eq!(parts("https://a.example"), is("a.example", 443, "/"));
    assert_eq!(parts("HTTPS://A.example:8443/b/c?d=e"), is("a.example", 8443, "/b/c?d=e"));
    assert_eq!(parts("https://a.example?x"), is("a.example", 443, "/?x"));
    assert_eq!(parts("https://[2001:db8::1]:8443/b"), is("2001:db8::1", 8443, "/b"));
    assert_eq!(url("https://[2001:db8::1]:8443/b").to_string(), "https://[2001:db8::1]:8443/b");
    for (text, error) in [
        ("http://a.example", UrlError::Scheme),
        ("https:/a", UrlError::Scheme),
        ("https://", UrlError::Host),
        ("https://user@a.example", UrlError::UserInformation),
        ("https://a.example:0", UrlError::Port),
        ("https://a.example:65536", UrlError::Port),
        ("https://a.example:+1", UrlError::Port),
        ("https://a.example:", UrlError::Port),
        ("https://[a.example]", UrlError::Host),
        ("https://[::1", UrlError::Host),
        ("https://[::1]x", UrlError::Port),
        ("https://a b", UrlError::Host),
        ("https://ä.example", UrlError::Host),
        ("https://a.example/b#c", UrlError::Character('#')),
        ("https://a.example/b\r\nHost: c", UrlError::Character('\r')),
    ] {
        assert_eq!(text.parse::<EndpointUrl>(), Err(error), "{text}");
    }
    let long = format!("https://a.example/{}", "b".repeat(2031));
    assert_eq!(long.parse::<EndpointUrl>(), Err(UrlError::TooLong(2049)));
    assert!(long[..2048].parse::<EndpointUrl>().is_ok());
}

#[test]
fn an_endpoint_serves_the_bundles_in_force_and_nothing_else() {
    let mut held = BundleSet::new();
    let sent = bundle(7);
    held.offer(sent.clone()).unwrap();
    let answer = Answer::of(&held, "GET", "/east.mesh.example?x=1");
    assert_eq!((answer.status, answer.body.as_str()), (200, sent.to_jwks().as_str()));
    assert!(answer.headers.contains(&("content-type", "application/json".into())));
    assert_eq!(Bundle::from_jwks(trust_domain(), answer.body.as_bytes()), Ok(sent));
    let head = Answer::of(&held, "HEAD", "/east.mesh.example");
    assert_eq!((head.status, head.body.len(), head.headers), (200, 0, answer.headers));
    for target in ["/", "/west.mesh.example", "/East.mesh.example", "/../east.mesh.example", "east.mesh.example"] {
        assert_eq!(Answer::of(&held, "GET", target).status, 404, "{target}");
    }
    assert_eq!(Answer::of(&held, "POST", "/east.mesh.example").status, 405);
    held.forget(&trust_domain());
    assert_eq!(Answer::of(&held, "GET", "/east.mesh.example").status, 404);
}

proptest! {
    #[test]
    fn any_location_leads_to_https_or_nowhere(location in "\\PC{0,60}|(https?:)?/{0,3}[a-z@:\\[\\]/?#. ]{0,40}") {
        let (mut fetch, now) = fetch();
        if fetch.head(moved(302, &location), now).is_ok() {
            let text = fetch.url().to_string();
            prop_assert!(text.starts_with("https://"));
            prop_assert_eq!(text.parse::<EndpointUrl>(), Ok(fetch.url().clone()));
            prop_assert!(fetch.url().target().starts_with('/'));
        }
    }
}
