//! `shop --role ROLE …`: one workload of the lab's shop.

use std::net::SocketAddr;

use clap::Parser;
use e2e::shop::{Role, Workload, run};

#[derive(Parser)]
struct Arguments {
    /// Which service to be.
    #[arg(long)]
    role: Role,
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// `<cluster>/<pod>`, told in answers.
    #[arg(long)]
    instance: String,
    /// The sidecar's explicit proxy; without it other services are dialled directly.
    #[arg(long)]
    proxy: Option<SocketAddr>,
    /// The namespace of the other services.
    #[arg(long, default_value = "shop")]
    namespace: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { role, listen, instance, proxy, namespace } = Arguments::parse();
    run(Workload { role, listen, instance, proxy, namespace }).await
}
