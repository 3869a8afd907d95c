//! checkoutservice: asks cart and catalog, adds up.

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::proxy::Others;
use super::served;
use super::v1::cart_client::CartClient;
use super::v1::checkout_server::{Checkout, CheckoutServer};
use super::v1::product_catalog_client::ProductCatalogClient;
use super::v1::{EmptyCartRequest, GetCartRequest, GetProductRequest, PlaceOrderRequest, PlaceOrderResponse};

struct Orders {
    instance: String,
    cart: CartClient<Channel>,
    catalog: ProductCatalogClient<Channel>,
}

#[tonic::async_trait]
impl Checkout for Orders {
    async fn place_order(&self, request: Request<PlaceOrderRequest>) -> Result<Response<PlaceOrderResponse>, Status> {
        let mut all = vec![served(&self.instance, &request)];
        let user_id = request.into_inner().user_id;
        let (mut cart, mut catalog) = (self.cart.clone(), self.catalog.clone());
        let found = cart.get_cart(GetCartRequest { user_id: user_id.clone() }).await?.into_inner();
        all.extend(found.served);
        let mut total_cents: u32 = 0;
        for item in found.items {
            let answer = catalog.get_product(GetProductRequest { id: item.product_id }).await?.into_inner();
            let price = answer.product.map_or(0, |product| product.price_cents);
            total_cents = total_cents.saturating_add(price.saturating_mul(item.quantity));
            all.extend(answer.served);
        }
        cart.empty_cart(EmptyCartRequest { user_id }).await?;
        let order_id = format!("{:016x}", rand::random::<u64>());
        Ok(Response::new(PlaceOrderResponse { order_id, total_cents, served: all }))
    }
}

/// Serves until the listener fails.
///
/// # Errors
/// The transport's.
pub async fn serve(listener: TcpListener, instance: String, others: &Others) -> anyhow::Result<()> {
    let orders = Orders {
        instance,
        cart: CartClient::new(others.channel("cartservice", 7070)?),
        catalog: ProductCatalogClient::new(others.channel("productcatalogservice", 3550)?),
    };
    let server = tonic::transport::Server::builder().add_service(CheckoutServer::new(orders));
    Ok(server.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}
