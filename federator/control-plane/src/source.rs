//! Where the cluster's own objects come from: one port, several sources behind it.
//!
//! A source tells the reconciler changes, in order, and once that everything has been read. What it reads, and whether
//! over the Kubernetes API or from files, is nobody else's matter.

mod files;
mod kubernetes;

use std::future::Future;

use tokio::sync::mpsc;

use crate::reconciler::Input;

pub use files::FileSource;
pub use kubernetes::KubernetesSource;

/// A source of the cluster's own objects.
pub trait Source: Send + 'static {
    /// Tells [`Input::Source`] until nobody listens any more.
    fn run(self, inputs: mpsc::Sender<Input>) -> impl Future<Output = ()> + Send;
}
