//! The HTTP side of the explicit proxy, and HTTP inside tunnels.

use std::sync::Arc;

use federation::export::ApplicationProtocol;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tracing::debug;

use crate::headers;
use crate::outbound::Outbound;
use crate::outbound::destination::{Destination, Name, port_of};
use crate::outbound::forward::forward;
use crate::outbound::refusal::Refusal;
use crate::outbound::response::ResponseBody;
use crate::outbound::serving;
use crate::outbound::tunnel::Tunnel;
use crate::routing::route::Route;

/// Serves a connection that speaks HTTP to this proxy.
pub(crate) async fn serve(outbound: &Arc<Outbound>, stream: TcpStream) {
    let respond = |request| {
        let outbound = Arc::clone(outbound);
        async move { proxied(&outbound, request).await }
    };
    serving::serve(&outbound.drain, stream, respond).await;
}

/// Serves HTTP inside a tunnel that leads to one route.
pub(crate) async fn serve_tunnel<S>(outbound: &Arc<Outbound>, route: &Arc<Route>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_route(outbound, route, stream, authority_in_tunnel).await;
}

/// Serves HTTP on a captured connection, whose original destination is the route's service.
pub(crate) async fn serve_captured(outbound: &Arc<Outbound>, route: &Arc<Route>, stream: TcpStream) {
    serve_route(outbound, route, stream, authority_captured).await;
}

/// The authority that goes with a request, from the one that it asks for.
type Authorise = fn(&Route, Option<&str>) -> Result<Authority, Refusal>;

async fn serve_route<S>(outbound: &Arc<Outbound>, route: &Arc<Route>, stream: S, authorise: Authorise)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let respond = |request| {
        let (outbound, route) = (Arc::clone(outbound), Arc::clone(route));
        async move { to_route(&outbound, &route, request, authorise).await }
    };
    serving::serve(&outbound.drain, stream, respond).await;
}

/// A request to the proxy itself.
async fn proxied(outbound: &Arc<Outbound>, request: Request<Incoming>) -> Response<ResponseBody> {
    let result = if request.method() == Method::CONNECT {
        Box::pin(connect(outbound, request)).await
    } else {
        Box::pin(absolute(outbound, request)).await
    };
    result.unwrap_or_else(|(refusal, fields)| refuse(outbound, &refusal, &fields))
}

type Refused = (Refusal, HeaderMap);

async fn absolute(outbound: &Outbound, request: Request<Incoming>) -> Result<Response<ResponseBody>, Refused> {
    if request.uri().scheme() == Some(&Scheme::HTTP)
        && let Some(authority) = request.uri().authority()
        && let Ok(port) = port_of(authority)
        && let Some(route) = outbound.router.find(authority.host(), port.unwrap_or(80))
        && !authority.as_str().contains('@')
    {
        let authority = authority.clone();
        return Ok(forward(outbound, &route, authority, request).await);
    }
    let destination = match Destination::from_uri(request.uri()) {
        Ok(destination) => destination,
        Err(refusal) => return Err((refusal, request.into_parts().0.headers)),
    };
    let route = match outbound.router.route(&destination).await {
        Ok(route) => route,
        Err(refusal) => return Err((refusal, request.into_parts().0.headers)),
    };
    let authority = match (&destination.name, request.uri().authority()) {
        (Name::Host(_), Some(authority)) => authority.clone(),
        _ => route.authority().clone(),
    };
    Ok(forward(outbound, &route, authority, request).await)
}

/// A request on a connection that leads to one route.
async fn to_route(
    outbound: &Outbound,
    route: &Arc<Route>,
    request: Request<Incoming>,
    authorise: Authorise,
) -> Response<ResponseBody> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let asked = request.uri().authority().map(Authority::as_str).or(host);
    match authorise(route, asked) {
        Ok(authority) => forward(outbound, route, authority, request).await,
        Err(refusal) => refuse(outbound, &refusal, request.headers()),
    }
}

/// The address decided where a captured connection goes. Another service's name there is a mistake worth telling of; a name
/// from outside of the clusterset (an ingress's, an alias) is the application's own affair. In the own cluster it is
/// what the other side's application has always been called by, and stays.
fn authority_captured(route: &Route, asked: Option<&str>) -> Result<Authority, Refusal> {
    let alias = asked.filter(|asked| !names_service(asked));
    let kept = alias.filter(|_| route.host.is_local()).and_then(|alias| alias.parse().ok());
    if let Some(kept) = kept.filter(|kept: &Authority| !kept.as_str().contains('@')) {
        return Ok(kept);
    }
    match authority_in_tunnel(route, asked) {
        Err(Refusal::Misdirected { .. }) if alias.is_some() => Ok(route.authority().clone()),
        result => result,
    }
}

fn names_service(asked: &str) -> bool {
    let host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    host.parse::<federation::MeshHost>().is_ok()
}

/// A request inside a tunnel: its authority must be the tunnel's service.
fn authority_in_tunnel(route: &Route, asked: Option<&str>) -> Result<Authority, Refusal> {
    let Some(asked) = asked else { return Ok(route.authority().clone()) };
    let misdirected =
        || Refusal::Misdirected { tunnel: route.authority().to_string(), asked: asked.chars().take(253).collect() };
    let authority: Authority = asked.parse().map_err(|_| misdirected())?;
    let destination = Destination::from_authority(&authority, Some(route.port)).map_err(|refusal| match refusal {
        Refusal::Port(_) => refusal,
        _ => misdirected(),
    })?;
    match destination.name {
        _ if destination.port != route.port => Err(misdirected()),
        Name::Host(host) if route.host.answers_to(&host) => Ok(authority),
        Name::Host(_) => Err(misdirected()),
        // An address led here; the service's name is what the other side knows.
        Name::Address(_) => Ok(route.authority().clone()),
    }
}

async fn connect(outbound: &Arc<Outbound>, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Refused> {
    let upgrade = hyper::upgrade::on(&mut request);
    let traced = request.headers().get(headers::TRACE).is_some_and(|value| value == "1");
    let (parts, _) = request.into_parts();
    let refused = |refusal| (refusal, HeaderMap::new());
    let authority = parts.uri.authority().ok_or_else(|| refused(Refusal::NoAuthority))?;
    let destination = Destination::from_authority(authority, None).map_err(refused)?;
    let route = outbound.router.route(&destination).await.map_err(refused)?;
    let mut response = Response::new(ResponseBody::Own(None));
    if route.protocol == ApplicationProtocol::Tcp {
        let tunnel = Tunnel::open(outbound, &route).await.map_err(refused)?;
        if traced && let Some(path) = path_field(outbound, &tunnel) {
            response.headers_mut().insert(headers::PATH, path);
        }
        let carrying = Arc::clone(outbound);
        outbound.tasks.spawn(Box::pin(async move { carry(&carrying, &route, tunnel, upgrade).await }));
    } else {
        let serving = Arc::clone(outbound);
        outbound.tasks.spawn(Box::pin(async move {
            match upgrade.await {
                Ok(upgraded) => serve_tunnel(&serving, &route, TokioIo::new(upgraded)).await,
                Err(error) => debug!(%error, "CONNECT"),
            }
        }));
    }
    Ok(response)
}

fn path_field(outbound: &Outbound, tunnel: &Tunnel) -> Option<HeaderValue> {
    let client = outbound.identity.spiffe_id().map(|id| id.to_string()).unwrap_or_default();
    HeaderValue::try_from(tunnel.path_taken(&client)).ok()
}

/// Carries the bytes of a CONNECT tunnel, over the bare socket where HTTP/1.1 set the tunnel up.
async fn carry(outbound: &Outbound, route: &Route, mut tunnel: Tunnel, upgrade: OnUpgrade) {
    let _hold = outbound.drain.hold();
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            debug!(%error, "CONNECT");
            return;
        }
    };
    match serving::bare::<TcpStream>(upgraded) {
        Ok((mut stream, read)) => {
            if tunnel.write_first(&read).await.is_err() || tunnel.relay(outbound, route, &mut stream).await {
                // A socket that takes no option any more is closed already.
                drop(relay::reset_on_close(&stream));
            }
        }
        Err(upgraded) => {
            tunnel.relay(outbound, route, &mut TokioIo::new(upgraded)).await;
        }
    }
}

fn refuse(outbound: &Outbound, refusal: &Refusal, request: &HeaderMap) -> Response<ResponseBody> {
    debug!(%refusal, "refused");
    outbound.count_refusal(refusal);
    refusal.response(request).map(|body| ResponseBody::Own(Some(body)))
}
