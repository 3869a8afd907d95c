//! cartservice: carts, one value a user in redis-cart.

use std::collections::BTreeMap;
use std::io;

use tokio::io::BufStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::proxy::Others;
use super::v1::cart_server::{Cart, CartServer};
use super::v1::{
    AddItemRequest, AddItemResponse, CartItem, EmptyCartRequest, EmptyCartResponse, GetCartRequest, GetCartResponse,
};
use super::{redis, served};

struct Carts {
    instance: String,
    others: Others,
    /// One connection, made when first needed and again when broken; an asynchronous lock, since a call holds it.
    connection: Mutex<Option<BufStream<TcpStream>>>,
}

impl Carts {
    /// Calls the store; once more on a new connection when the kept one was broken.
    async fn store(&self, command: &[&[u8]]) -> Result<Option<Vec<u8>>, Status> {
        let mut kept = self.connection.lock().await;
        if let Some(mut stream) = kept.take()
            && let Ok(reply) = redis::call(&mut stream, command).await
        {
            *kept = Some(stream);
            return Ok(reply);
        }
        let unavailable = |error: io::Error| Status::unavailable(format!("redis-cart: {error}"));
        let mut stream = BufStream::new(self.others.connect("redis-cart", 6379).await.map_err(unavailable)?);
        let reply = redis::call(&mut stream, command).await.map_err(unavailable)?;
        *kept = Some(stream);
        Ok(reply)
    }

    async fn items(&self, user: &str) -> Result<BTreeMap<String, u32>, Status> {
        let stored = self.store(&[b"GET", key(user).as_bytes()]).await?.unwrap_or_default();
        let text = String::from_utf8_lossy(&stored);
        let items = text.split(',').filter_map(|item| item.split_once('='));
        Ok(items.filter_map(|(id, count)| Some((id.to_owned(), count.parse().ok()?))).collect())
    }
}

fn key(user: &str) -> String {
    format!("cart:{user}")
}

#[tonic::async_trait]
impl Cart for Carts {
    async fn add_item(&self, request: Request<AddItemRequest>) -> Result<Response<AddItemResponse>, Status> {
        let served = Some(served(&self.instance, &request));
        let request = request.into_inner();
        let item = request.item.ok_or_else(|| Status::invalid_argument("item must be set"))?;
        if !item.product_id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Status::invalid_argument("item.product_id: letters and digits only"));
        }
        let mut items = self.items(&request.user_id).await?;
        let count = items.entry(item.product_id).or_default();
        *count = count.saturating_add(item.quantity);
        let text = items.iter().map(|(id, count)| format!("{id}={count}")).collect::<Vec<_>>().join(",");
        self.store(&[b"SET", key(&request.user_id).as_bytes(), text.as_bytes()]).await?;
        Ok(Response::new(AddItemResponse { served }))
    }

    async fn get_cart(&self, request: Request<GetCartRequest>) -> Result<Response<GetCartResponse>, Status> {
        let served = vec![served(&self.instance, &request)];
        let items = self.items(&request.get_ref().user_id).await?;
        let items = items.into_iter().map(|(product_id, quantity)| CartItem { product_id, quantity }).collect();
        Ok(Response::new(GetCartResponse { items, served }))
    }

    async fn empty_cart(&self, request: Request<EmptyCartRequest>) -> Result<Response<EmptyCartResponse>, Status> {
        let served = Some(served(&self.instance, &request));
        self.store(&[b"DEL", key(&request.get_ref().user_id).as_bytes()]).await?;
        Ok(Response::new(EmptyCartResponse { served }))
    }
}

/// Serves until the listener fails.
///
/// # Errors
/// The transport's.
pub async fn serve(listener: TcpListener, instance: String, others: Others) -> anyhow::Result<()> {
    let carts = Carts { instance, others, connection: Mutex::new(None) };
    let server = tonic::transport::Server::builder().add_service(CartServer::new(carts));
    Ok(server.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}
