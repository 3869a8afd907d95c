//! The one cryptographic provider of the mesh.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{cipher_suite, default_provider, kx_group},
};

/// aws-lc-rs with TLS 1.3 suites only and X25519MLKEM768 preferred, built once.
///
/// The hybrid group makes a ClientHello larger than one TCP segment.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
            ..default_provider()
        })
    })
}
