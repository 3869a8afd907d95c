//! What operators do: every call needs the certificate of one.

use tonic::transport::Channel;
use tonic::{Request, Status};

use super::super::{MAX_MESSAGE_BYTES, within_deadline};
use crate::record::v1::Signed;
use crate::trust::v1::operations_client::OperationsClient;
use crate::trust::v1::rotate_authority_request::Step;
use crate::trust::v1::{
    AuditEntry, FetchDenyListRequest, ListMembersRequest, ListTokensRequest, MemberState, PutDenyListRequest,
    ReadAuditRequest, RegisterTokenRequest, RevokeTokenRequest, RotateAuthorityRequest, RotateAuthorityResponse,
    TokenState,
};

fn client(channel: Channel) -> OperationsClient<Channel> {
    OperationsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Puts a deny-list that the membership root signed, and returns the epoch of the trust state that holds it.
///
/// # Errors
/// As the contract says; `DEADLINE_EXCEEDED` after [`super::super::CALL_DEADLINE`].
pub async fn put_deny_list(channel: Channel, deny_list: Signed) -> Result<u64, Status> {
    let request = Request::new(PutDenyListRequest { deny_list: Some(deny_list) });
    Ok(within_deadline(client(channel).put_deny_list(request)).await?.epoch)
}

/// The deny-list in force; `None` before the first one. Whoever signs the next one verifies it first.
///
/// # Errors
/// As [`put_deny_list`].
pub async fn fetch_deny_list(channel: Channel) -> Result<Option<Signed>, Status> {
    Ok(within_deadline(client(channel).fetch_deny_list(Request::new(FetchDenyListRequest {}))).await?.deny_list)
}

/// Makes the service know of a token by its delegation.
///
/// # Errors
/// As [`put_deny_list`].
pub async fn register_token(channel: Channel, delegation: Signed) -> Result<(), Status> {
    let request = Request::new(RegisterTokenRequest { delegation: Some(delegation) });
    within_deadline(client(channel).register_token(request)).await.map(|_| ())
}

/// The tokens that the service knows of.
///
/// # Errors
/// As [`put_deny_list`].
pub async fn list_tokens(channel: Channel) -> Result<Vec<TokenState>, Status> {
    Ok(within_deadline(client(channel).list_tokens(Request::new(ListTokensRequest {}))).await?.tokens)
}

/// Makes a token worthless, known to the service or not.
///
/// # Errors
/// As [`put_deny_list`].
pub async fn revoke_token(channel: Channel, id: String) -> Result<(), Status> {
    within_deadline(client(channel).revoke_token(Request::new(RevokeTokenRequest { id }))).await.map(|_| ())
}

/// The members, with their bundles and watchers.
///
/// # Errors
/// As [`put_deny_list`].
pub async fn list_members(channel: Channel) -> Result<Vec<MemberState>, Status> {
    Ok(within_deadline(client(channel).list_members(Request::new(ListMembersRequest {}))).await?.members)
}

/// Hands every entry of the audit record after a number to `take`, oldest first. [`crate::audit::Chain`] checks them.
///
/// # Errors
/// As [`put_deny_list`], with the deadline for each entry.
pub async fn read_audit(channel: Channel, after: u64, mut take: impl FnMut(AuditEntry)) -> Result<(), Status> {
    let mut client = client(channel);
    let mut entries = within_deadline(client.read_audit(Request::new(ReadAuditRequest { after }))).await?;
    loop {
        let next = async { entries.message().await.map(tonic::Response::new) };
        match within_deadline(next).await? {
            Some(entry) => take(entry),
            None => return Ok(()),
        }
    }
}

/// Begins, hurries or cancels the rotation of the federation's own authority, or only tells how far it is.
///
/// # Errors
/// As [`put_deny_list`].
pub async fn rotate_authority(channel: Channel, step: Step) -> Result<RotateAuthorityResponse, Status> {
    let request = Request::new(RotateAuthorityRequest { step: step.into() });
    within_deadline(client(channel).rotate_authority(request)).await
}
