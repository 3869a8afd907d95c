//! What operators call. Nobody else may.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::SystemTime;

use federation_api::trust::v1::operations_server::Operations;
use federation_api::trust::v1::rotate_authority_request::Step;
use federation_api::trust::v1::{
    AuditEntry, FetchDenyListRequest, FetchDenyListResponse, ListMembersRequest, ListMembersResponse,
    ListTokensRequest, ListTokensResponse, MemberState, PutDenyListRequest, PutDenyListResponse, ReadAuditRequest,
    RegisterTokenRequest, RegisterTokenResponse, RevokeTokenRequest, RevokeTokenResponse, RotateAuthorityRequest,
    RotateAuthorityResponse,
};
use federation_store::Store;
use futures_util::{Stream, stream};
use spiffe_identity::{PlaneRole, SpiffeId};
use tonic::{Code, Request, Response, Status};
use tracing::info;

use super::{Caller, TrustService};
use crate::audit::AuditLog;
use crate::membership::Refused;
use crate::rotation::{WishError, progress, wish};

type Entries = Pin<Box<dyn Stream<Item = Result<AuditEntry, Status>> + Send>>;

impl<S: Store> TrustService<S> {
    /// The caller, who must be an operator that is not shut out.
    pub(super) fn operator(&self, caller: &Caller) -> Result<SpiffeId, Status> {
        let id = self.authorize(caller)?;
        match id.role_in(self.federation()) {
            Some(PlaneRole::Operator { .. }) => Ok(id),
            _ => Err(Status::permission_denied(format!("{id} is no operator"))),
        }
    }

    async fn take_deny_list(
        &self,
        caller: &Caller,
        request: &PutDenyListRequest,
    ) -> Result<PutDenyListResponse, Status> {
        let id = self.operator(caller)?;
        let signed = request.deny_list.as_ref();
        let signed = signed.ok_or_else(|| Status::invalid_argument("deny_list must be set"))?;
        let epoch = self.parts.membership.shut_out(&id.to_string(), signed).await?;
        info!(peer.id = %id, epoch, "deny-list put");
        Ok(PutDenyListResponse { epoch })
    }

    fn members(&self, caller: &Caller) -> Result<ListMembersResponse, Status> {
        self.operator(caller)?;
        let (state, watchers) = (self.parts.state.borrow().clone(), self.known_watchers());
        let members = state.members().map(|cluster| {
            let id = SpiffeId::control_plane(self.federation(), cluster.as_str()).map(|id| id.to_string());
            MemberState {
                member: state.member_envelope(cluster).cloned(),
                quarantined: state.deny_list().is_some_and(|list| list.quarantines(cluster)),
                bundle: state.bundle_envelope(cluster).cloned(),
                watchers: watchers.iter().filter(|it| id.as_ref() == Ok(&it.identity)).cloned().collect(),
            }
        });
        Ok(ListMembersResponse { members: members.collect() })
    }

    async fn take_step(
        &self,
        caller: &Caller,
        request: &RotateAuthorityRequest,
    ) -> Result<RotateAuthorityResponse, Status> {
        let id = self.operator(caller)?;
        let store = &self.parts.store;
        match request.step() {
            Step::Unspecified => Err(Status::invalid_argument("step must be set")),
            Step::Show => Ok(progress(store).await.map_err(Refused::from)?.state.unwrap_or_default()),
            step => Ok(wish(store, step, &id.to_string()).await.map_err(|error| match error {
                WishError::Refused(_) | WishError::Busy => Status::failed_precondition(error.to_string()),
                WishError::Nobody => Status::unavailable(error.to_string()),
                WishError::Store(error) => Refused::from(error).into(),
            })?),
        }
    }

    async fn take_token(&self, caller: &Caller, request: &RegisterTokenRequest) -> Result<(), Status> {
        let id = self.operator(caller)?;
        let delegation = request.delegation.as_ref();
        let delegation = delegation.ok_or_else(|| Status::invalid_argument("delegation must be set"))?;
        Ok(self.parts.tokens.register(&id.to_string(), delegation).await?)
    }

    async fn void_token(&self, caller: &Caller, request: &RevokeTokenRequest) -> Result<(), Status> {
        let id = self.operator(caller)?;
        Ok(self.parts.tokens.revoke(&id.to_string(), &request.id).await?)
    }
}

/// The record, a page at a time: whoever reads slowly holds one.
fn entries<S: Store>(audit: AuditLog<S>, after: u64) -> Entries {
    Box::pin(stream::try_unfold((audit, after, VecDeque::new()), |(audit, mut after, mut page)| async move {
        if page.is_empty() {
            page = audit.after(after).await.map_err(Refused::from)?.into();
        }
        let Some(entry): Option<AuditEntry> = page.pop_front() else { return Ok(None) };
        after = entry.number;
        Ok(Some((entry, (audit, after, page))))
    }))
}

#[tonic::async_trait]
impl<S: Store> Operations for TrustService<S> {
    type ReadAuditStream = Entries;

    async fn put_deny_list(
        &self,
        request: Request<PutDenyListRequest>,
    ) -> Result<Response<PutDenyListResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.take_deny_list(&caller, request.get_ref()).await;
        self.answer_change("PutDenyList", &caller, ("deny-list.put", String::new()), outcome).await
    }

    async fn fetch_deny_list(
        &self,
        request: Request<FetchDenyListRequest>,
    ) -> Result<Response<FetchDenyListResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = match self.operator(&caller) {
            Ok(_) => Ok(FetchDenyListResponse { deny_list: self.parts.membership.fetch_deny_list().await? }),
            Err(refused) => Err(refused),
        };
        self.answer("FetchDenyList", &caller, outcome)
    }

    async fn register_token(
        &self,
        request: Request<RegisterTokenRequest>,
    ) -> Result<Response<RegisterTokenResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.take_token(&caller, request.get_ref()).await.map(|()| RegisterTokenResponse {});
        self.answer_change("RegisterToken", &caller, ("token.registered", String::new()), outcome).await
    }

    async fn list_tokens(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = match self.operator(&caller) {
            Ok(_) => Ok(ListTokensResponse { tokens: self.parts.tokens.list(SystemTime::now()).await? }),
            Err(refused) => Err(refused),
        };
        self.answer("ListTokens", &caller, outcome)
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.void_token(&caller, request.get_ref()).await.map(|()| RevokeTokenResponse {});
        let subject = request.into_inner().id;
        self.answer_change("RevokeToken", &caller, ("token.revoked", subject), outcome).await
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        let caller = Caller::of(&request);
        self.answer("ListMembers", &caller, self.members(&caller))
    }

    async fn read_audit(&self, request: Request<ReadAuditRequest>) -> Result<Response<Entries>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.operator(&caller).map(|_| entries(self.parts.audit.clone(), request.get_ref().after));
        self.answer("ReadAudit", &caller, outcome)
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.take_step(&caller, request.get_ref()).await;
        match request.get_ref().step() {
            Step::Show => self.answer("RotateAuthority", &caller, outcome),
            step => {
                // What the driver refuses it records itself, with what it does.
                let recorded = matches!(&outcome, Err(status) if status.code() == Code::FailedPrecondition);
                if recorded {
                    return self.answer("RotateAuthority", &caller, outcome);
                }
                let subject = step.as_str_name().to_owned();
                self.answer_change("RotateAuthority", &caller, ("authority.rotate", subject), outcome).await
            }
        }
    }
}
