//! The join tokens that are known: registered ones, used ones, revoked ones. Each lies under its id.

use std::time::{Duration, SystemTime};

use federation_api::record::v1::Signed;
use federation_api::token::id_of;
use federation_api::trust::v1::token_state::Use;
use federation_api::trust::v1::{StoredToken, TokenState};
use federation_store::{Committed, Entry, Store, Transaction, layout};
use prost::Message;

use crate::audit::{AuditLog, Note};
use crate::membership::Refused;
use crate::verify::Verifier;

/// Tokens that may be known at once.
const MAX_TOKENS: usize = 10_000;
/// How long a token is listed after its end; nobody can join with it then, known or not.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Tokens that are forgotten at a time.
const SWEPT: usize = 50;

/// What is stored about a token. What cannot be read counts as used: it joins nobody.
#[must_use]
pub fn stored_token(entry: &Entry) -> StoredToken {
    StoredToken::decode(entry.value.clone())
        .unwrap_or_else(|_| StoredToken { r#use: Use::Used.into(), ..StoredToken::default() })
}

/// Milliseconds since 1970, as the contract has times.
#[must_use]
pub fn milliseconds(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// The known tokens of one federation.
#[derive(Debug, Clone)]
pub struct Tokens<S> {
    store: S,
    verifier: Verifier,
    audit: AuditLog<S>,
}

impl<S: Store> Tokens<S> {
    /// The tokens in `store`.
    pub fn new(store: S, verifier: Verifier, audit: AuditLog<S>) -> Self {
        Self { store, verifier, audit }
    }

    /// Takes note of a token by its delegation. One that is known already stays as it is.
    ///
    /// # Errors
    /// [`Refused`]
    pub async fn register(&self, who: &str, signed: &Signed) -> Result<(), Refused> {
        let delegation = self.verifier.delegation(signed).map_err(|error| Refused::unverified("delegation", error))?;
        let id = id_of(&delegation.token);
        let key = layout::token(&id);
        let token =
            StoredToken { delegation: Some(signed.clone()), r#use: Use::Unused.into(), ..StoredToken::default() };
        let detail = format!("for cluster {}, generation {}", delegation.cluster, delegation.generation);
        let note = Note { who: who.to_owned(), action: "token.registered", subject: id, detail };
        let known = self.sweep(SystemTime::now()).await?;
        if known >= MAX_TOKENS {
            return Err(Refused::TooManyTokens(known));
        }
        loop {
            if self.store.get(&key).await?.is_some() {
                return Ok(());
            }
            let transaction = Transaction::new().expecting_absent(&key).put(&key, token.encode_to_vec());
            let transaction = self.audit.stage(transaction, &note).await?;
            if let Committed::Done(_) = self.store.commit(transaction).await? {
                return Ok(());
            }
        }
    }

    /// Makes a token worthless; one that is not known is from then on.
    ///
    /// # Errors
    /// [`Refused::TokenSpent`] when it was used: a membership ends by eviction. [`Refused::Malformed`] for what is no id.
    pub async fn revoke(&self, who: &str, id: &str) -> Result<(), Refused> {
        if id.len() != 16 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            let reason = "must be the 16 hexadecimal digits that `token create` and `token list` show".to_owned();
            return Err(Refused::Malformed { field: "id", reason });
        }
        let key = layout::token(id);
        loop {
            let stored = self.store.get(&key).await?;
            let token = stored.as_ref().map(stored_token).unwrap_or_default();
            match token.r#use() {
                Use::Revoked => return Ok(()),
                Use::Used => return Err(Refused::TokenSpent(id.to_owned())),
                Use::Unspecified | Use::Unused | Use::Expired => {}
            }
            let detail = if stored.is_some() { "" } else { "it was not known before" }.to_owned();
            let note = Note { who: who.to_owned(), action: "token.revoked", subject: id.to_owned(), detail };
            let revoked = StoredToken { r#use: Use::Revoked.into(), at_ms: milliseconds(SystemTime::now()), ..token };
            let transaction = Transaction::new()
                .expecting(&key, stored.map_or(0, |entry| entry.modified))
                .put(&key, revoked.encode_to_vec());
            let transaction = self.audit.stage(transaction, &note).await?;
            if let Committed::Done(_) = self.store.commit(transaction).await? {
                return Ok(());
            }
        }
    }

    /// Every known token, as it stands at `now`.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, now: SystemTime) -> Result<Vec<TokenState>, Refused> {
        let entries = self.store.snapshot(layout::TOKENS).await?.entries;
        let states = entries.iter().filter_map(|entry| {
            let id = layout::name_below(layout::TOKENS, &entry.key)?.to_owned();
            let token = stored_token(entry);
            let over = token.r#use() == Use::Unused && self.end(&token).is_none_or(|end| end <= now);
            let r#use = if over { Use::Expired.into() } else { token.r#use };
            Some(TokenState { id, delegation: token.delegation, r#use, at_ms: token.at_ms })
        });
        Ok(states.collect())
    }

    fn end(&self, token: &StoredToken) -> Option<SystemTime> {
        let delegation = self.verifier.delegation(token.delegation.as_ref()?);
        delegation.ok().map(|delegation| delegation.expires)
    }

    /// Forgets what ended long ago; says how many are left.
    async fn sweep(&self, now: SystemTime) -> Result<usize, Refused> {
        let entries = self.store.snapshot(layout::TOKENS).await?.entries;
        let is_over = |entry: &&Entry| self.end(&stored_token(entry)).is_some_and(|end| end + KEPT <= now);
        let over: Vec<_> = entries.iter().filter(is_over).take(SWEPT).collect();
        let mut transaction = Transaction::new();
        for entry in &over {
            transaction = transaction.expecting(&entry.key, entry.modified).delete(&entry.key);
        }
        // A conflict leaves them for the next time.
        if !over.is_empty() {
            let _ = self.store.commit(transaction).await?;
        }
        Ok(entries.len() - over.len())
    }
}
