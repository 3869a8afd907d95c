//! frontend: pages. `GET /` shows products, the user's cart and who answered; `POST /cart?product=ID` adds one;
//! `POST /checkout` orders; `GET /healthz` says who answers. The user is the query's `user`, "guest" without one.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::Channel;

use super::caller;
use super::proxy::Others;
use super::v1::cart_client::CartClient;
use super::v1::checkout_client::CheckoutClient;
use super::v1::product_catalog_client::ProductCatalogClient;
use super::v1::{AddItemRequest, CartItem, GetCartRequest, ListProductsRequest, PlaceOrderRequest, Served};

struct Frontend {
    instance: String,
    catalog: ProductCatalogClient<Channel>,
    cart: CartClient<Channel>,
    checkout: CheckoutClient<Channel>,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default = "guest")]
    user: String,
    product: Option<String>,
}

fn guest() -> String {
    "guest".to_owned()
}

/// Another service failed; the page says which and how.
struct Failed(&'static str, Status);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Self(service, status) = self;
        let text = format!("{service}: {:?}: {}\n", status.code(), status.message());
        (StatusCode::BAD_GATEWAY, text).into_response()
    }
}

async fn page(
    State(shop): State<Arc<Frontend>>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Html<String>, Failed> {
    let (mut catalog, mut cart) = (shop.catalog.clone(), shop.cart.clone());
    let listed = catalog.list_products(ListProductsRequest {}).await;
    let listed = listed.map_err(|status| Failed("productcatalogservice", status))?.into_inner();
    let found = cart.get_cart(GetCartRequest { user_id: asked.user }).await;
    let found = found.map_err(|status| Failed("cartservice", status))?.into_inner();
    let mut html = String::from("<h1>Shop</h1>\n<ul>\n");
    for product in listed.products {
        let price = f64::from(product.price_cents) / 100.0;
        let _ = writeln!(html, "<li>{} {} {price:.2}</li>", product.id, product.name);
    }
    let _ = writeln!(html, "</ul>\n<p>cart: {} kinds of items</p>", found.items.len());
    let own = Served { instance: shop.instance.clone(), caller: caller(&headers) };
    list_served(&mut html, std::iter::once(own).chain(listed.served).chain(found.served));
    Ok(Html(html))
}

fn list_served(html: &mut String, served: impl IntoIterator<Item = Served>) {
    for Served { instance, caller } in served {
        let _ = writeln!(html, "<p>served by {instance} to {caller}</p>");
    }
}

async fn add(State(shop): State<Arc<Frontend>>, Query(asked): Query<Asked>) -> Result<Html<String>, Failed> {
    let item = CartItem { product_id: asked.product.unwrap_or_else(|| "KAYAK".to_owned()), quantity: 1 };
    let request = AddItemRequest { user_id: asked.user, item: Some(item) };
    let added = shop.cart.clone().add_item(request).await.map_err(|status| Failed("cartservice", status))?;
    let mut html = String::from("<p>added</p>\n");
    list_served(&mut html, added.into_inner().served);
    Ok(Html(html))
}

async fn order(State(shop): State<Arc<Frontend>>, Query(asked): Query<Asked>) -> Result<Html<String>, Failed> {
    let placed = shop.checkout.clone().place_order(PlaceOrderRequest { user_id: asked.user }).await;
    let placed = placed.map_err(|status| Failed("checkoutservice", status))?.into_inner();
    let total = f64::from(placed.total_cents) / 100.0;
    let mut html = format!("<p>order {} for {total:.2}</p>\n", placed.order_id);
    list_served(&mut html, placed.served);
    Ok(Html(html))
}

/// Serves until the listener fails.
///
/// # Errors
/// The transport's.
pub async fn serve(listener: TcpListener, instance: String, others: &Others) -> anyhow::Result<()> {
    let shop = Frontend {
        instance,
        catalog: ProductCatalogClient::new(others.channel("productcatalogservice", 3550)?),
        cart: CartClient::new(others.channel("cartservice", 7070)?),
        checkout: CheckoutClient::new(others.channel("checkoutservice", 5050)?),
    };
    let routes = Router::new()
        .route("/", get(page))
        .route("/cart", post(add))
        .route("/checkout", post(order))
        .route("/healthz", get(|State(shop): State<Arc<Frontend>>| async move { format!("{}\n", shop.instance) }))
        .with_state(Arc::new(shop));
    Ok(axum::serve(listener, routes).await?)
}
