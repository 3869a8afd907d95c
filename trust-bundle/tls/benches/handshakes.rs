//! What a full mutual handshake costs in CPU, client and server each, with the hybrid key exchange and with X25519 alone:
//! `cargo bench -p mesh-tls --bench handshakes`. Both ends run in this one thread, over memory, with a leaf and an intermediate
//! each, as in the mesh. Without `--bench` (as tests run it) a few handshakes are made and nothing is judged.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::{
    io::Write,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_tls::{ClientAuth, ExpectedPeer, Identity, Purpose, TrustStore, client_config, provider, server_config};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, NamedGroup, ServerConfig, ServerConnection, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs::kx_group, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};

/// What the hybrid handshake may cost both ends together; with `STRICT=1` in the environment more is a failure.
const GOAL: Duration = Duration::from_micros(900);

const HOUR: Duration = Duration::from_secs(3600);

/// Handshakes that are measured, and those before them that warm caches up.
const MEASURED: usize = 2000;
const WARM_UP: usize = 200;
const AS_A_TEST: usize = 3;

fn params(ca: IsCa, usage: KeyUsagePurpose, id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + 24 * HOUR).into();
    params.distinguished_name.push(DnType::CommonName, format!("{ca:?} {id}"));
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = ca;
    params.key_usages = vec![usage];
    params
}

/// A trust domain with one workload: its identity, and its bundle.
fn workload(name: &str) -> (SpiffeId, Identity, Bundle) {
    let trust_domain: TrustDomain = name.parse().unwrap();
    let id = SpiffeId::workload(&trust_domain, "shop", "cart").unwrap();
    let authority = |below| {
        let ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params(ca, KeyUsagePurpose::KeyCertSign, &format!("spiffe://{name}"))
    };
    let (root_key, key, leaf_key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = authority(1).self_signed(&root_key).unwrap().der().clone();
    let intermediate = authority(0).signed_by(&key, &Issuer::new(authority(1), root_key)).unwrap().der().clone();
    let mut leaf = params(IsCa::ExplicitNoCa, KeyUsagePurpose::DigitalSignature, &id.to_string());
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(authority(0), key)).unwrap().der().clone();
    let key = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
    let identity = Identity::from_der(vec![leaf, intermediate], key).unwrap();
    let bundle = Bundle { trust_domain, x509_authorities: vec![root], sequence: 1, refresh_hint: None };
    (id, identity, bundle)
}

/// The mesh's own judgement, in a configuration that offers X25519 alone.
#[derive(Debug)]
struct Verifier(TrustStore);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let judged = self.0.verify(&chain, Purpose::Server, now);
        judged.map(|_| ServerCertVerified::assertion()).map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn x25519_client(identity: &Identity, trust: &TrustStore) -> Arc<ClientConfig> {
    let classical = CryptoProvider { kx_groups: vec![kx_group::X25519], ..CryptoProvider::clone(provider()) };
    let builder = ClientConfig::builder_with_provider(Arc::new(classical));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier(trust.clone())));
    let mut config = builder.with_client_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = vec![b"isthmus-h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// How long each end worked.
#[derive(Default)]
struct Worked {
    client: Duration,
    server: Duration,
}

fn timed<T>(worked: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    *worked += start.elapsed();
    done
}

fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, group: NamedGroup, worked: &mut Worked) {
    let name = ServerName::try_from("cart.example").unwrap();
    let mut near = timed(&mut worked.client, || ClientConnection::new(client.clone(), name).unwrap());
    let mut far = timed(&mut worked.server, || ServerConnection::new(server.clone()).unwrap());
    let mut wire = Vec::new();
    while near.is_handshaking() || far.is_handshaking() {
        timed(&mut worked.client, || {
            while near.wants_write() {
                near.write_tls(&mut wire).unwrap();
            }
        });
        timed(&mut worked.server, || {
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                far.read_tls(&mut rest).unwrap();
                far.process_new_packets().unwrap();
            }
        });
        wire.clear();
        timed(&mut worked.server, || {
            while far.wants_write() {
                far.write_tls(&mut wire).unwrap();
            }
        });
        timed(&mut worked.client, || {
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                near.read_tls(&mut rest).unwrap();
                near.process_new_packets().unwrap();
            }
        });
        wire.clear();
    }
    assert_eq!(far.negotiated_key_exchange_group().unwrap().name(), group);
    assert_eq!(far.peer_certificates().unwrap().len(), 2);
}

/// What this thread has spent on a CPU, by the kernel's account.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn main() -> ExitCode {
    let judge = std::env::args().any(|argument| argument == "--bench");
    let (warm_up, measured) = if judge { (WARM_UP, MEASURED) } else { (0, AS_A_TEST) };
    let ((_, client_identity, east), (server_id, server_identity, west)) =
        (workload("east.mesh.example"), workload("west.mesh.example"));
    let trust = TrustStore::new();
    trust.replace([east, west]);
    let server = server_config(&server_identity, &trust, ClientAuth::Required, &[b"isthmus-h2"]);
    let hybrid = client_config(Some(&client_identity), &trust, ExpectedPeer::exactly(server_id), &[b"isthmus-h2"]);
    let classical = x25519_client(&client_identity, &trust);
    let mut out = std::io::stdout();
    writeln!(out, "{measured} full mutual handshakes each, TLS 1.3, P-256 leaf and intermediate on both ends").unwrap();
    writeln!(out, "{:<16} {:>12} {:>12} {:>12} {:>14}", "key exchange", "both", "client", "server", "per second")
        .unwrap();
    let mut cost_of = |name: &str, client: &Arc<ClientConfig>, group| {
        (0..warm_up).for_each(|_| handshake(client, &server, group, &mut Worked::default()));
        let (mut worked, before) = (Worked::default(), cpu());
        (0..measured).for_each(|_| handshake(client, &server, group, &mut worked));
        let each = (cpu() - before).as_secs_f64() * 1e6 / measured as f64;
        // Wall time also counts what others took of this CPU: it only says how the cost divides.
        let client_share = worked.client.as_secs_f64() / (worked.client + worked.server).as_secs_f64();
        let (near, far) = (each * client_share, each * (1.0 - client_share));
        writeln!(out, "{name:<16} {each:>9.0} µs {near:>9.0} µs {far:>9.0} µs {:>14.0}", 1e6 / each).unwrap();
        each
    };
    let cost = cost_of("X25519MLKEM768", &hybrid, NamedGroup::X25519MLKEM768);
    cost_of("X25519", &classical, NamedGroup::X25519);
    if judge {
        let met = cost <= GOAL.as_secs_f64() * 1e6;
        let (goal, verdict) = (GOAL.as_micros(), if met { "met" } else { "missed" });
        writeln!(out, "goal: handshake_cpu_us {cost:.0} {goal} {verdict}").unwrap();
        let strict = std::env::var("STRICT").is_ok_and(|strict| !matches!(strict.as_str(), "" | "0" | "false"));
        if strict && !met {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
