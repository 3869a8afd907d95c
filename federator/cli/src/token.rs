//! `isthmus token`: made offline, from the operator's directory; listed and revoked at the trust-bundle.

use std::time::{Duration, SystemTime};

use federation::delegation::NamespaceSet;
use federation_api::client::trust::operations;
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::trust::v1::TokenState;
use federation_api::trust::v1::token_state::Use;
use federation_api::verify::verify_delegation;
use jiff::Timestamp;
use serde::Serialize;

use crate::arguments::{AtService, Format, TokenCreate, TokenRevoke};
use crate::failure::Failure;
use crate::operator::OperatorDirectory;
use crate::output::{Output, Tone, Toned, note, print};
use crate::time::{at_millisecond, brief, to_the_second};

/// How long making a token waits for the trust-bundle to take note of it.
const REGISTRATION: Duration = Duration::from_secs(3);

/// `isthmus token create -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    /// The secret.
    token: String,
    /// What `token list` and `token revoke` call it.
    id: String,
    federation: String,
    cluster: String,
    generation: u64,
    /// `["*"]`: all.
    namespaces: Vec<String>,
    /// Empty: anywhere but in reserved ranges.
    address_ranges: Vec<String>,
    /// Empty: any.
    host_names: Vec<String>,
    trust_bundle_addresses: Vec<String>,
    federator_addresses: Vec<String>,
    expires: Timestamp,
}

/// Prints the token alone on standard output, so that `$(…)` takes it, and what it grants on standard error.
pub(crate) async fn create(arguments: &TokenCreate, format: Format, output: &Output) -> Result<(), Failure> {
    let now = SystemTime::now();
    let directory = OperatorDirectory::open(&arguments.operator)?;
    let token = make(&directory, arguments, now)?;
    let created = describe(&token, arguments)?;
    register(&directory, &token).await;
    match format {
        Format::Json => output.show(&created, |_| String::new()),
        Format::Table => {
            for line in summary(&created, arguments.expires) {
                note(&line);
            }
            print(&format!("{token}\n"))
        }
    }
}

/// The token is good whether the trust-bundle knows of it or not; what is known can be listed.
async fn register(directory: &OperatorDirectory, token: &JoinToken) {
    let (Ok(channel), Some(delegation)) = (directory.channel(), token.signed_delegation()) else { return };
    let registered = operations::register_token(channel, delegation.clone());
    let reason = match tokio::time::timeout(REGISTRATION, registered).await {
        Ok(Ok(())) => return,
        Ok(Err(status)) => status.message().to_owned(),
        Err(_) => format!("no answer within {}", brief(REGISTRATION)),
    };
    note(&format!("warning: the trust-bundle does not know of this token, which can be used all the same: {reason}"));
}

fn make(directory: &OperatorDirectory, arguments: &TokenCreate, now: SystemTime) -> Result<JoinToken, Failure> {
    let root = directory.membership_root()?;
    let namespaces = if arguments.namespaces.is_empty() {
        NamespaceSet::All
    } else {
        NamespaceSet::Some(arguments.namespaces.iter().cloned().collect())
    };
    Ok(JoinToken::create(
        &root,
        TokenRequest {
            federation: directory.file.federation.clone(),
            cluster: arguments.cluster.clone(),
            namespaces,
            address_ranges: arguments.address_ranges.clone(),
            host_names: arguments.host_names.clone(),
            federation_roots: directory.federation_roots()?.iter().map(|root| root.to_vec()).collect(),
            trust_bundle_addresses: directory.file.trust_bundle_addresses.clone(),
            federator_addresses: directory.file.federator_addresses.clone(),
            created: now,
            lifetime: arguments.expires,
        },
    )?)
}

fn describe(token: &JoinToken, arguments: &TokenCreate) -> Result<Created, Failure> {
    let expires = Timestamp::try_from(token.expires())
        .map_err(|error| Failure::Usage(format!("--expires: too far in the future: {error}")))?;
    let mut namespaces: Vec<_> = arguments.namespaces.iter().map(ToString::to_string).collect();
    if namespaces.is_empty() {
        namespaces.push("*".to_owned());
    }
    Ok(Created {
        token: token.to_string(),
        id: token.id(),
        federation: token.federation().to_string(),
        cluster: token.cluster().to_string(),
        generation: token.generation(),
        namespaces,
        address_ranges: arguments.address_ranges.iter().map(ToString::to_string).collect(),
        host_names: arguments.host_names.clone(),
        trust_bundle_addresses: token.trust_bundle_addresses().to_vec(),
        federator_addresses: token.federator_addresses().to_vec(),
        expires,
    })
}

fn summary(created: &Created, lifetime: Duration) -> Vec<String> {
    let or = |list: &[String], empty: &str| if list.is_empty() { empty.to_owned() } else { list.join(", ") };
    let namespaces = if created.namespaces == ["*"] { "all" } else { &created.namespaces.join(", ") };
    vec![
        format!(
            "one-use join token {} for cluster {} of federation {}",
            created.id, created.cluster, created.federation
        ),
        format!("  exports from     namespaces: {namespaces}"),
        format!("  gateways at      {}", or(&created.address_ranges, "any address outside of reserved ranges")),
        format!("  gateways named   {}", or(&created.host_names, "anything")),
        format!("  trust-bundle     {}", created.trust_bundle_addresses.join(", ")),
        format!("  federator        {}", or(&created.federator_addresses, "none")),
        format!("  usable           until {} (for {})", crate::time::to_the_second(created.expires), brief(lifetime)),
    ]
}

/// `isthmus token list -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    /// Absent when it was revoked without being known, or when the root did not sign it.
    cluster: Option<String>,
    generation: Option<u64>,
    expires: Option<Timestamp>,
    /// "unused", "used", "revoked" or "expired".
    state: &'static str,
    /// Of its use or revocation.
    at: Option<Timestamp>,
}

/// The tokens that the trust-bundle knows of.
pub(crate) async fn list(arguments: &AtService, output: &Output) -> Result<(), Failure> {
    let directory = OperatorDirectory::open(&arguments.operator)?;
    let tokens = operations::list_tokens(directory.channel()?).await.map_err(|status| directory.failed(status))?;
    let root = directory.membership_root_public()?;
    let describe = |token: TokenState| {
        let delegation = token.delegation.as_ref().and_then(|signed| verify_delegation(&root, signed).ok());
        let state = match token.r#use() {
            Use::Unused => "unused",
            Use::Revoked => "revoked",
            Use::Expired => "expired",
            Use::Used | Use::Unspecified => "used",
        };
        Listed {
            cluster: delegation.as_ref().map(|it| it.cluster.to_string()),
            generation: delegation.as_ref().map(|it| it.generation),
            expires: delegation.and_then(|it| Timestamp::try_from(it.expires).ok()),
            state,
            at: at_millisecond(token.at_ms),
            id: token.id,
        }
    };
    let tokens: Vec<_> = tokens.into_iter().map(describe).collect();
    output.show(&tokens, |output| {
        let or_dash = |text: Option<String>| Toned::or_dash(text.unwrap_or_default());
        let time = |time: Option<Timestamp>| or_dash(time.map(|time| to_the_second(time).to_string()));
        let row = |token: &Listed| {
            let tone = if token.state == "unused" { Tone::Good } else { Tone::Plain };
            vec![
                token.id.clone().into(),
                or_dash(token.cluster.clone()),
                Toned::new(token.state, tone),
                time(token.expires),
                time(token.at),
            ]
        };
        output.table(&["TOKEN", "CLUSTER", "STATE", "EXPIRES", "USED OR REVOKED"], tokens.iter().map(row).collect())
    })
}

/// Makes a token worthless.
pub(crate) async fn revoke(arguments: &TokenRevoke) -> Result<(), Failure> {
    let directory = OperatorDirectory::open(&arguments.service.operator)?;
    let revoked = operations::revoke_token(directory.channel()?, arguments.id.clone()).await;
    revoked.map_err(|status| directory.failed(status))?;
    print(&format!("token {} is revoked\n", arguments.id))
}
