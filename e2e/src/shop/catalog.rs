//! productcatalogservice: a fixed list of products.

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::served;
use super::v1::product_catalog_server::{ProductCatalog, ProductCatalogServer};
use super::v1::{GetProductRequest, GetProductResponse, ListProductsRequest, ListProductsResponse, Product};

const PRODUCTS: [(&str, &str, u32); 5] = [
    ("KAYAK", "Sea kayak", 89_900),
    ("PADDLE", "Carbon paddle", 12_900),
    ("COMPASS", "Deck compass", 4_950),
    ("ROPE", "Tow rope, 15 m", 1_990),
    ("LANTERN", "Storm lantern", 3_450),
];

struct Catalog {
    instance: String,
}

fn products() -> impl Iterator<Item = Product> {
    PRODUCTS.into_iter().map(|(id, name, price_cents)| Product {
        id: id.to_owned(),
        name: name.to_owned(),
        price_cents,
    })
}

#[tonic::async_trait]
impl ProductCatalog for Catalog {
    async fn list_products(
        &self,
        request: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        let served = Some(served(&self.instance, &request));
        Ok(Response::new(ListProductsResponse { products: products().collect(), served }))
    }

    async fn get_product(&self, request: Request<GetProductRequest>) -> Result<Response<GetProductResponse>, Status> {
        let served = Some(served(&self.instance, &request));
        let id = &request.get_ref().id;
        let product = products().find(|product| product.id == *id);
        let product = Some(product.ok_or_else(|| Status::not_found(format!("no product {id:?}")))?);
        Ok(Response::new(GetProductResponse { product, served }))
    }
}

/// Serves until the listener fails.
///
/// # Errors
/// The transport's.
pub async fn serve(listener: TcpListener, instance: String) -> anyhow::Result<()> {
    let server = tonic::transport::Server::builder().add_service(ProductCatalogServer::new(Catalog { instance }));
    Ok(server.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}
