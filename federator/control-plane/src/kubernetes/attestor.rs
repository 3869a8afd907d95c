//! Service-account tokens, checked by the API server that signed them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, PostParams};
use svid_issuer::{AttestError, Attestor, Workload};
use tokio::time::timeout;

use crate::tokens::{AUDIENCE, MAX_TOKEN_BYTES};

/// One question to the API server.
const REQUEST: Duration = Duration::from_secs(5);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server what a token stands for: a TokenReview with the audience `isthmus`, and whether the pod that the
/// token is bound to still is there, by its UID.
#[derive(Clone)]
pub struct Reviewer {
    client: Client,
}

impl Reviewer {
    /// Asks through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn pod_lives(&self, namespace: &str, name: &str, uid: &str) -> Result<(), AttestError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = answer(pods.get_metadata_opt(name)).await?;
        match pod {
            Some(pod) if pod.metadata.uid.as_deref() == Some(uid) => Ok(()),
            Some(_) => Err(AttestError::Refused(format!("another pod has the name {name} by now"))),
            None => Err(AttestError::Refused(format!("its pod {name} is gone"))),
        }
    }
}

impl Attestor for Reviewer {
    async fn attest(&self, token: &str) -> Result<Workload, AttestError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AttestError::Refused(format!("it has more than {MAX_TOKEN_BYTES} bytes")));
        }
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = answer(reviews.create(&PostParams::default(), &review)).await?.status.unwrap_or_default();
        let for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !for_us {
            let why = status.error.unwrap_or_else(|| format!("it is not for the audience {AUDIENCE}"));
            return Err(AttestError::Refused(why));
        }
        let (workload, uid) = workload(&status.user.unwrap_or_default())?;
        if let (Some(pod), Some(uid)) = (&workload.pod, uid) {
            self.pod_lives(&workload.namespace, pod, &uid).await?;
        }
        Ok(workload)
    }
}

/// The workload that a reviewed token stands for, and the UID of its pod.
fn workload(user: &UserInfo) -> Result<(Workload, Option<String>), AttestError> {
    let name = user.username.as_deref().unwrap_or_default();
    let mut parts = name.splitn(4, ':');
    let (Some("system"), Some("serviceaccount"), Some(namespace), Some(service_account)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(AttestError::Refused(format!("{name:?} is no service account")));
    };
    let empty = BTreeMap::new();
    let extra = user.extra.as_ref().unwrap_or(&empty);
    let one = |name: &str| extra.get(name).and_then(|values| values.first()).cloned();
    let workload =
        Workload { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod: one(POD_NAME) };
    Ok((workload, one(POD_UID)))
}

async fn answer<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, AttestError> {
    match timeout(REQUEST, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(AttestError::Unavailable(error.to_string())),
        Err(_) => Err(AttestError::Unavailable(format!("the API server does not answer within {REQUEST:?}"))),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_reviewed_user_is_a_workload_only_if_it_is_a_service_account() {
        let extra = [(POD_NAME, "cart-0"), (POD_UID, "u1")];
        let extra = extra.into_iter().map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).collect();
        let user = |name: &str| UserInfo { username: Some(name.to_owned()), ..UserInfo::default() };
        let bound = UserInfo { extra: Some(extra), ..user("system:serviceaccount:shop:cart") };
        let (found, uid) = workload(&bound).unwrap();
        assert_eq!((found.namespace.as_str(), found.service_account.as_str()), ("shop", "cart"));
        assert_eq!((found.pod.as_deref(), uid.as_deref()), (Some("cart-0"), Some("u1")));
        for name in ["", "admin", "system:node:a", "system:serviceaccount:shop"] {
            assert!(matches!(workload(&user(name)), Err(AttestError::Refused(_))), "{name}");
        }
    }
}
