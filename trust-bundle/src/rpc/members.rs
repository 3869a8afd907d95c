//! What members and services call, apart from the watch.

use std::time::{Duration, Instant, SystemTime};

use federation::ClusterName;
use federation_api::token::id_of;
use federation_api::trust::v1::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, ListWatchersResponse, PublishBundleRequest,
    PublishBundleResponse, RenewCertificateRequest, RenewCertificateResponse, Watcher,
};
use federation_store::Store;
use rustls_pki_types::CertificateDer;
use spiffe_identity::{PlaneRole, SpiffeId};
use svid_issuer::{IssueError, key_digest};
use tonic::Status;
use tracing::{error, info, warn};

use super::{Caller, LAGS, TrustService};
use crate::audit::Note;
use crate::init::OPERATOR_LIFETIME;
use crate::membership::Admitted;
use crate::standing::mark;

impl<S: Store> TrustService<S> {
    /// A certificate for `id`; a control-plane's says for which membership.
    fn issue(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        generation: Option<u64>,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Status> {
        if self.parts.state.borrow().lags() {
            return Err(Status::unavailable(LAGS));
        }
        let mark = generation.map(mark).unwrap_or_default();
        match self.parts.authority.current().issue_marked(csr, id, &mark, self.lifetime(id), now) {
            Ok(svid) => Ok(svid.chain),
            Err(IssueError::Request(refused)) => Err(Status::invalid_argument(format!("csr: {refused}"))),
            Err(failed) => {
                error!(%id, error = %failed, "no certificate can be issued");
                Err(Status::internal("no certificate can be issued"))
            }
        }
    }

    /// Operators come by rarely, so theirs live longer.
    fn lifetime(&self, id: &SpiffeId) -> Duration {
        match id.role_in(self.federation()) {
            Some(PlaneRole::Operator { .. }) => OPERATOR_LIFETIME,
            _ => self.parts.certificate_lifetime,
        }
    }

    /// The cluster that a request wants to join as, for the record; the caller is named by the token where it is one.
    pub(super) fn token_of(&self, request: &JoinRequest, caller: &mut Caller) -> String {
        caller.id = None;
        let delegation = request.member.as_ref().and_then(|member| member.delegation.as_ref());
        match delegation.and_then(|signed| self.parts.membership.delegation(signed).ok()) {
            Some(delegation) => format!("{} by token {}", delegation.cluster, id_of(&delegation.token)),
            None => "a cluster without a token of this federation".to_owned(),
        }
    }

    /// Everything that can fail for the request's sake comes before the token is used up, the certificate included.
    pub(super) async fn make_member(&self, request: &JoinRequest) -> Result<JoinResponse, Status> {
        let (Some(member), Some(bundle)) = (&request.member, &request.bundle) else {
            return Err(Status::invalid_argument("member and bundle must be set"));
        };
        let now = SystemTime::now();
        let joining = self.parts.membership.examine(member, bundle, now)?;
        let (cluster, generation) = (joining.member().cluster(), joining.member().generation());
        let id = SpiffeId::control_plane(self.federation(), cluster.as_str())
            .map_err(|error| Status::invalid_argument(format!("member: cluster: {error}")))?;
        let chain = self.issue(&request.csr, &id, Some(generation), now)?;
        let digest = chain.first().and_then(|leaf| key_digest(leaf));
        let digest = digest.ok_or_else(|| Status::internal("the certificate is unreadable"))?;
        let admitted = self.parts.membership.admit(&joining, &digest).await?;
        match admitted {
            Admitted::New(revision) => info!(%cluster, generation, revision, "joined"),
            Admitted::Again(_) => info!(%cluster, generation, "joined before, and lost the answer"),
        }
        self.until_known(admitted.revision()).await;
        Ok(JoinResponse { certificate_chain: bytes(chain), federation_roots: self.roots() })
    }

    pub(super) async fn renew(
        &self,
        caller: &Caller,
        request: &RenewCertificateRequest,
    ) -> Result<RenewCertificateResponse, Status> {
        let id = self.authorize_change(caller)?;
        let chain = self.issue(&request.csr, &id, caller.held, SystemTime::now())?;
        info!(peer.id = %id, "renewed a certificate");
        let note = Note {
            who: id.to_string(),
            action: "certificate.renewed",
            subject: id.to_string(),
            detail: caller.held.map(mark).unwrap_or_default(),
        };
        // A store that is away must not end anybody's identity: the log has what the record lacks.
        if let Err(error) = self.parts.audit.done(&note).await {
            warn!(%error, peer.id = %id, "a renewal is not in the audit record");
        }
        Ok(RenewCertificateResponse { certificate_chain: bytes(chain), federation_roots: self.roots() })
    }

    /// The caller, who must have a say in the federation and not have changed too much of late. Operators are not counted: what
    /// else they may do is recorded without a bound, too.
    fn authorize_change(&self, caller: &Caller) -> Result<SpiffeId, Status> {
        let id = self.authorize(caller)?;
        if matches!(id.role_in(self.federation()), Some(PlaneRole::Operator { .. })) {
            return Ok(id);
        }
        let allowed = self.parts.changes.allow(&id, Instant::now());
        allowed.map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        Ok(id)
    }

    /// The cluster that the caller speaks for.
    fn own_cluster(&self, caller: &Caller) -> Result<(SpiffeId, ClusterName), Status> {
        let id = self.authorize_change(caller)?;
        let Some(PlaneRole::ControlPlane { cluster }) = id.role_in(self.federation()) else {
            return Err(Status::permission_denied(format!("{id} speaks for no cluster")));
        };
        let cluster = cluster.parse().map_err(|error| Status::permission_denied(format!("{error}")))?;
        Ok((id, cluster))
    }

    pub(super) async fn put_own_words(
        &self,
        caller: &Caller,
        request: &PublishBundleRequest,
    ) -> Result<PublishBundleResponse, Status> {
        let (id, cluster) = self.own_cluster(caller)?;
        let (who, mut epoch) = (id.to_string(), None);
        if let Some(member) = &request.member {
            let revision = self.parts.membership.publish_member(&who, &cluster, member).await?;
            info!(%cluster, revision, "publish key replaced");
            epoch = Some(revision);
        }
        if let Some(bundle) = &request.bundle {
            let revision = self.parts.membership.publish_bundle(&who, &cluster, bundle).await?;
            info!(%cluster, revision, "bundle published");
            epoch = epoch.max(Some(revision));
        }
        let epoch = epoch.ok_or_else(|| Status::invalid_argument("bundle or member must be set"))?;
        Ok(PublishBundleResponse { epoch })
    }

    pub(super) async fn end_membership(
        &self,
        caller: &Caller,
        request: &LeaveRequest,
    ) -> Result<LeaveResponse, Status> {
        let (id, cluster) = self.own_cluster(caller)?;
        let statement = request.statement.as_ref();
        let statement = statement.ok_or_else(|| Status::invalid_argument("statement must be set"))?;
        let revision = self.parts.membership.leave(&id.to_string(), &cluster, statement).await?;
        info!(%cluster, revision, "left");
        self.until_known(revision).await;
        Ok(LeaveResponse {})
    }

    pub(super) fn list_watchers(&self, caller: &Caller) -> Result<ListWatchersResponse, Status> {
        self.authorize(caller)?;
        let epoch = self.parts.state.borrow().epoch();
        Ok(ListWatchersResponse { epoch, watchers: self.known_watchers() })
    }

    /// Everybody who watches or did until a while ago, and still has a say: the others are waited for by nobody.
    pub(super) fn known_watchers(&self) -> Vec<Watcher> {
        let state = self.parts.state.borrow().clone();
        let mut watchers = self.parts.watchers.everywhere(SystemTime::now());
        watchers.retain(|watcher| watcher.identity.parse().is_ok_and(|id| state.expects(&id, self.federation())));
        watchers
    }
}

fn bytes(chain: Vec<CertificateDer<'static>>) -> Vec<Vec<u8>> {
    chain.into_iter().map(|certificate| certificate.to_vec()).collect()
}
