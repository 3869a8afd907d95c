//! What operators do at the trust-bundle, here one that says what it is told to.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use federation_api::audit::digest_of;
use federation_api::record::v1::Signed;
use federation_api::signing::{MembershipRoot, PublicKey};
use federation_api::trust::v1::operations_server::{Operations, OperationsServer};
use federation_api::trust::v1::trust_server::{Trust, TrustServer};
use federation_api::trust::v1::*;
use federation_api::verify::{DenyList, verify_deny_list};
use futures_util::{Stream, stream};
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, Identity, TrustStore, new_key_and_csr, pem, server_config};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

use crate::{Ran, isthmus};

#[derive(Default)]
struct Said {
    deny_list: Option<Signed>,
    put: Vec<Signed>,
    /// What is put is neither stored nor answered.
    lost: bool,
    revoked: Vec<String>,
    registered: usize,
    watchers: Vec<Watcher>,
    audit: Vec<AuditEntry>,
    renewals: usize,
    phase: String,
}

/// A trust-bundle, and the operator's directory of its federation.
#[derive(Clone)]
struct Puppet {
    said: Arc<Mutex<Said>>,
    authority: Arc<Authority>,
    directory: Arc<TempDir>,
    root: PublicKey,
}

fn certificate(authority: &Authority, id: &SpiffeId) -> (String, String) {
    let (key, csr) = new_key_and_csr().unwrap();
    let svid = authority.issue(&csr, id, Duration::from_secs(3600), SystemTime::now()).unwrap();
    (pem::certificates_to_pem(&svid.chain), pem::private_key_to_pem(&key).to_string())
}

impl Puppet {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain: TrustDomain = "mesh.example".parse().unwrap();
        let authority =
            Authority::open_or_create(&directory.path().join("authority"), &trust_domain, SystemTime::now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let root = MembershipRoot::generate().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let (chain, key) = certificate(&authority, &SpiffeId::operator(&trust_domain, "admin").unwrap());
        write("operator.crt", &chain);
        write("operator.key", &key);
        write("membership-root.key", &root.to_pem().unwrap());
        write("membership-root.pub", &root.public().to_pem());
        write("federation-root.crt", &pem::certificates_to_pem([&authority.root()]));
        let file = serde_json::json!({ "federation": "mesh.example", "trustBundleAddresses": [address.to_string()],
            "federatorAddresses": ["127.0.0.1:1"] });
        write("federation.json", &file.to_string());

        let (chain, key) = certificate(&authority, &SpiffeId::service(&trust_domain, "trust-bundle").unwrap());
        let (identity, trust) = (Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap(), TrustStore::new());
        let x509_authorities = vec![authority.root()];
        trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
        let puppet = Self {
            said: Arc::default(),
            authority: Arc::new(authority),
            directory: Arc::new(directory),
            root: root.public(),
        };
        let tls = server_config(&identity, &trust, ClientAuth::Required, &[rpc::ALPN]);
        let server = rpc::server()
            .add_service(TrustServer::new(puppet.clone()))
            .add_service(OperationsServer::new(puppet.clone()))
            .serve_with_incoming(rpc::incoming(listener, tls, AcceptLimits::default()));
        tokio::spawn(server);
        puppet
    }

    fn say(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().unwrap());
    }

    fn last_put(&self) -> DenyList {
        let said = self.said.lock().unwrap();
        verify_deny_list(&self.root, &"mesh.example".parse().unwrap(), said.put.last().unwrap()).unwrap()
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let directory = self.directory.path().to_str().unwrap();
        let arguments = [arguments, &["--operator", directory]].concat();
        isthmus(Path::new("/nonexistent/admin.sock"), &arguments, "").await
    }
}

fn watcher(identity: &str, acknowledged: u64) -> Watcher {
    Watcher { identity: identity.to_owned(), acknowledged, connected: true, connected_count: 3, ..Watcher::default() }
}

#[tokio::test]
async fn a_renewal_that_was_cut_off_between_its_files_is_finished_by_the_next_command() {
    let puppet = Puppet::start().await;
    let file = |name: &str| puppet.directory.path().join(name);
    let admin = SpiffeId::operator(puppet.authority.trust_domain(), "admin").unwrap();
    let ((chain, key), (_, unrelated)) =
        (certificate(&puppet.authority, &admin), certificate(&puppet.authority, &admin));
    fs::write(file("operator.crt"), &chain).unwrap();
    // Without the key that belongs to it, or with another one, the certificate is of no use.
    for next in [None, Some(&unrelated)] {
        next.iter().for_each(|next| fs::write(file("operator.key.next"), next).unwrap());
        let ran = puppet.run(&["authority", "status"]).await;
        assert!(ran.code != 0 && ran.stderr.contains("operator.crt"), "{ran:?}");
    }
    fs::write(file("operator.key.next"), &key).unwrap();
    let ran = puppet.run(&["authority", "status"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("cut off is finished"), "{ran:?}");
    assert_eq!((fs::read_to_string(file("operator.key")).unwrap(), file("operator.key.next").exists()), (key, false));
    assert_eq!(puppet.run(&["authority", "renew"]).await.code, 0);
    assert!(!file("operator.key.next").exists());
}

#[tokio::test]
async fn a_quarantine_is_the_next_deny_list_and_waits_for_everybody() {
    let puppet = Puppet::start().await;
    puppet.say(|said| said.watchers = vec![watcher("spiffe://mesh.example/cluster/west/control-plane", 1_000)]);
    let ran = puppet.run(&["quarantine", "east"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("quarantined east by deny-list 1"), "{ran:?}");
    assert!(ran.stdout.contains("acknowledged by 1 watchers and 3 proxies after"), "{ran:?}");
    assert!(ran.stderr.contains("no member is called east"), "a misspelt name is noticed: {ran:?}");
    let list = puppet.last_put();
    assert!(list.epoch == 1 && list.quarantines(&"east".parse().unwrap()));

    let id = "spiffe://east.mesh.example/ns/shop/sa/cart";
    assert_eq!(puppet.run(&["quarantine", id]).await.code, 0);
    assert!(puppet.last_put().denies(id) && puppet.last_put().epoch == 2);
    let ran = puppet.run(&["release", "east", "-o", "json"]).await;
    assert_eq!((ran.code, &ran.json()["epoch"], &ran.json()["pending"]), (0, &3.into(), &serde_json::json!([])));
    assert!(!puppet.last_put().quarantines(&"east".parse().unwrap()) && puppet.last_put().denies(id));
    assert_eq!(puppet.run(&["evict", "east", "--generation", "7"]).await.code, 0);
    assert!(puppet.last_put().evicts(&"east".parse().unwrap(), 7));
    let own = puppet.run(&["quarantine", "spiffe://mesh.example/operator/admin"]).await;
    assert!(own.code == 2 && own.stderr.contains("yourself"), "{own:?}");
}

#[tokio::test]
async fn who_has_not_acknowledged_is_named_and_the_exit_code_says_so() {
    let puppet = Puppet::start().await;
    let east = "spiffe://mesh.example/cluster/east/control-plane";
    let mut slow = watcher("spiffe://mesh.example/cluster/west/control-plane", 1_000);
    (slow.pending_count, slow.pending_proxies) = (1, vec!["cart-7".to_owned()]);
    puppet.say(|said| said.watchers = vec![watcher(east, 999), slow]);
    let ran = puppet.run(&["quarantine", "north", "--timeout", "200ms"]).await;
    assert_eq!(ran.code, 5, "{ran:?}");
    for name in [east, "cart-7 behind spiffe://mesh.example/cluster/west"] {
        assert!(ran.stderr.contains(name) && ran.stdout.contains(&format!("not acknowledged: {name}")), "{ran:?}");
    }
    assert_eq!(puppet.run(&["quarantine", "south", "--no-wait"]).await.code, 0);
}

#[tokio::test]
async fn a_service_that_goes_back_to_an_older_deny_list_is_not_followed() {
    let puppet = Puppet::start().await;
    assert_eq!(puppet.run(&["quarantine", "east", "--no-wait"]).await.code, 0);
    puppet.say(|said| said.deny_list = None);
    let ran = puppet.run(&["quarantine", "west", "--no-wait"]).await;
    assert!(ran.code == 0 && ran.stderr.contains("has deny-list 0, but 1 was signed here"), "{ran:?}");
    let list = puppet.last_put();
    assert!(
        list.epoch == 2 && list.quarantines(&"east".parse().unwrap()) && list.quarantines(&"west".parse().unwrap())
    );
    // One that nobody signed is not the base of anything.
    puppet.say(|said| said.deny_list = Some(MembershipRoot::generate().unwrap().deny(&list.to_wire())));
    let ran = puppet.run(&["release", "west", "--no-wait"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("is not believed"), "{ran:?}");
}

#[tokio::test]
async fn no_epoch_gets_a_second_deny_list_when_the_service_says_it_took_none() {
    let puppet = Puppet::start().await;
    puppet.say(|said| said.lost = true);
    let ran = puppet.run(&["quarantine", "east", "--no-wait"]).await;
    assert!(ran.code != 0 && ran.stderr.contains("lost"), "{ran:?}");
    let kept = puppet.last_put();
    puppet.say(|said| said.lost = false);
    let ran = puppet.run(&["quarantine", "west", "--no-wait"]).await;
    assert!(ran.code == 0 && ran.stderr.contains("has deny-list 0, but 1 was signed here"), "{ran:?}");
    let list = puppet.last_put();
    assert_eq!(list.follows(&kept), Ok(()));
    assert!(list.epoch == 2 && ["east", "west"].iter().all(|it| list.quarantines(&it.parse().unwrap())), "{list:?}");
}

#[tokio::test]
async fn a_changed_audit_record_is_noticed() {
    let puppet = Puppet::start().await;
    let first = AuditEntry { number: 1, time_ms: 1, action: "member.joined".to_owned(), ..AuditEntry::default() };
    let second = AuditEntry { number: 2, previous: digest_of(&first), refused: "no".to_owned(), ..first.clone() };
    puppet.say(|said| said.audit = vec![first.clone(), second.clone()]);
    let ran = puppet.run(&["audit"]).await;
    assert!(ran.code == 0 && ran.stdout.contains("refused: no"), "{ran:?}");
    puppet.say(|said| said.audit = vec![AuditEntry { who: "another".to_owned(), ..first }, second]);
    let ran = puppet.run(&["audit", "-o", "json"]).await;
    assert!(ran.code == 3 && ran.stderr.contains("not whole"), "{ran:?}");
    assert_eq!(ran.json()[0]["who"], "another");
}

#[tokio::test]
async fn tokens_are_made_known_and_revoked_and_the_authority_is_rotated() {
    let puppet = Puppet::start().await;
    let ran = puppet.run(&["token", "create", "--cluster", "east"]).await;
    assert!(ran.code == 0 && !ran.stderr.contains("warning: the trust-bundle"), "{ran:?}");
    assert_eq!(puppet.said.lock().unwrap().registered, 1);
    assert_eq!(puppet.run(&["token", "revoke", "0123456789abcdef"]).await.code, 0);
    assert_eq!(puppet.said.lock().unwrap().revoked, ["0123456789abcdef"]);
    puppet.say(|said| said.phase = "preparing".to_owned());
    let ran = puppet.run(&["authority", "rotate", "--emergency"]).await;
    assert!(ran.code == 0 && ran.stdout.starts_with("draining, waiting for nobody"), "{ran:?}");
    // Once to know the next root before it signs, once since the operator's own certificate is below the old one.
    assert_eq!(puppet.said.lock().unwrap().renewals, 2);
    let ran = puppet.run(&["authority", "status"]).await;
    assert_eq!(ran.code, 0, "with the new certificate: {ran:?}");
}

#[tokio::test]
async fn a_trust_bundle_that_is_away_is_said_to_be() {
    let puppet = Puppet::start().await;
    let file = puppet.directory.path().join("federation.json");
    let file_text = fs::read_to_string(&file).unwrap();
    let addresses: serde_json::Value = serde_json::from_str(&file_text).unwrap();
    let address = addresses["trustBundleAddresses"][0].as_str().unwrap();
    fs::write(&file, file_text.replace(address, "127.0.0.1:1")).unwrap();
    let ran = puppet.run(&["members"]).await;
    assert!(ran.code == 4 && ran.stderr.contains("no trust-bundle answers at 127.0.0.1:1"), "{ran:?}");
    let ran = puppet.run(&["token", "create", "--cluster", "east"]).await;
    assert!(ran.code == 0 && ran.stderr.contains("which can be used all the same"), "{ran:?}");
}

type Entries<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Operations for Puppet {
    type ReadAuditStream = Entries<AuditEntry>;

    async fn put_deny_list(
        &self,
        request: Request<PutDenyListRequest>,
    ) -> Result<Response<PutDenyListResponse>, Status> {
        let signed = request.into_inner().deny_list.unwrap();
        let mut said = self.said.lock().unwrap();
        said.put.push(signed.clone());
        if said.lost {
            return Err(Status::unavailable("the deny-list was lost"));
        }
        said.deny_list = Some(signed);
        Ok(Response::new(PutDenyListResponse { epoch: 1_000 }))
    }

    async fn fetch_deny_list(
        &self,
        _: Request<FetchDenyListRequest>,
    ) -> Result<Response<FetchDenyListResponse>, Status> {
        Ok(Response::new(FetchDenyListResponse { deny_list: self.said.lock().unwrap().deny_list.clone() }))
    }

    async fn register_token(
        &self,
        _: Request<RegisterTokenRequest>,
    ) -> Result<Response<RegisterTokenResponse>, Status> {
        self.say(|said| said.registered += 1);
        Ok(Response::new(RegisterTokenResponse {}))
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        Ok(Response::new(ListTokensResponse::default()))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        self.say(|said| said.revoked.push(request.into_inner().id));
        Ok(Response::new(RevokeTokenResponse {}))
    }

    async fn list_members(&self, _: Request<ListMembersRequest>) -> Result<Response<ListMembersResponse>, Status> {
        Ok(Response::new(ListMembersResponse::default()))
    }

    async fn read_audit(&self, _: Request<ReadAuditRequest>) -> Result<Response<Self::ReadAuditStream>, Status> {
        let entries: Vec<_> = self.said.lock().unwrap().audit.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(stream::iter(entries))))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let hurry = request.into_inner().step() == rotate_authority_request::Step::Hurry;
        if hurry {
            self.say(|said| said.phase = "draining".to_owned());
        }
        let phase = self.said.lock().unwrap().phase.clone();
        Ok(Response::new(RotateAuthorityResponse { phase, emergency: hurry, ..RotateAuthorityResponse::default() }))
    }
}

#[tonic::async_trait]
impl Trust for Puppet {
    type WatchStream = Entries<WatchResponse>;

    async fn list_watchers(&self, _: Request<ListWatchersRequest>) -> Result<Response<ListWatchersResponse>, Status> {
        let watchers = self.said.lock().unwrap().watchers.clone();
        Ok(Response::new(ListWatchersResponse { epoch: 1_000, watchers }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        self.say(|said| said.renewals += 1);
        let (id, lifetime) = (rpc::peer(&request)?, Duration::from_secs(3600));
        let svid = self.authority.issue(&request.into_inner().csr, &id, lifetime, SystemTime::now()).unwrap();
        Ok(Response::new(RenewCertificateResponse {
            certificate_chain: svid.chain.iter().map(|it| it.to_vec()).collect(),
            federation_roots: vec![self.authority.root().to_vec(); 2],
        }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("not an operator's call"))
    }

    async fn publish_bundle(
        &self,
        _: Request<PublishBundleRequest>,
    ) -> Result<Response<PublishBundleResponse>, Status> {
        Err(Status::unimplemented("not an operator's call"))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        Err(Status::unimplemented("not an operator's call"))
    }

    async fn watch(&self, _: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not an operator's call"))
    }
}
