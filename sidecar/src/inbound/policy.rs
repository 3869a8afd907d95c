//! Who may call the workload: what its AccessPolicies, or without them its exports, say. Pure.
//!
//! ```text
//!  a local service, a caller of another cluster ─────► denied, whatever policies say
//!  a DENY rule matches ──────────────────────────────► denied, by that policy
//!  some ALLOW policy names the port: a rule matches ─► allowed, by that policy
//!                                    none does ──────► denied, by those policies
//!  otherwise: the export is the grant ───────────────► members of the federation are allowed, nobody else
//!             so is its namespace's opting in ───────► the own cluster's are allowed, nobody else
//! ```
//!
//! - The caller is who its certificate says, never what a header says.
//! - What two readers could read in two ways is decided against the caller: a path that is not plain (see [`path`]), or that
//!   differs from a pattern in case or in a last `/` only, matches a DENY rule and no ALLOW rule.
//! - A strict policy refuses plaintext to its ports, whatever its action and rules; see [`crate::inbound::plaintext`].
//! - A dry-run policy decides nothing; what it would have decided is logged where it differs.

mod path;

use std::collections::BTreeSet;
use std::sync::Arc;

use federation_api::discovery::v1 as wire;
use federation_api::discovery::v1::access_policy::Action;
use spiffe_identity::SpiffeId;

use self::path::Plain;

/// Of one workload: more are refused as a whole, and the last good ones stay.
const MAX_POLICIES: usize = 512;

/// What grants where no policy does: an export.
const EXPORT: &str = "export";
/// And a namespace that has opted its services in.
const LOCAL: &str = "local-services";

/// Everything that applies to a workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies(Vec<Policy>);

#[derive(Clone, Debug, PartialEq)]
struct Policy {
    /// `<namespace>/<name>`.
    name: Arc<str>,
    denies: bool,
    dry_run: bool,
    /// Plaintext to its ports is refused.
    strict: bool,
    /// Of the application; empty: all.
    ports: Vec<u16>,
    rules: Vec<Rule>,
}

/// Ports of the application that refuse plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StrictPorts {
    /// Whatever it listens on.
    All,
    /// These; none: plaintext stays as it is.
    These(BTreeSet<u16>),
}

/// Matches when every field that is not empty has an entry that matches.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    spiffe_ids: Vec<Pattern>,
    trust_domains: Vec<String>,
    clusters: Vec<String>,
    namespaces: Vec<String>,
    methods: Vec<String>,
    paths: Vec<Pattern>,
}

/// A text, or with a `*` at its end the beginning of one.
#[derive(Clone, Debug, PartialEq)]
struct Pattern {
    text: String,
    open: bool,
}

/// A policy that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policies[{place}] ({name}): {problem}")]
pub(crate) struct PolicyError {
    place: usize,
    name: String,
    problem: String,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// Proven in the handshake.
    pub(crate) caller: &'a SpiffeId,
    /// The federation's domain, as far as it is known.
    pub(crate) federation: Option<&'a str>,
    /// The application's.
    pub(crate) port: u16,
    /// A service of the own cluster alone, whose namespace has opted in: the cluster's name, empty while it is not known.
    pub(crate) local: Option<&'a str>,
    /// Method and path, as they will reach the application, without the query; `None`: raw TCP.
    pub(crate) http: Option<(&'a str, &'a str)>,
}

/// What is decided, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It goes on: by this policy, `export`, or `local-services`.
    Allowed(Arc<str>),
    /// It does not: by this policy, `export`, or `local-services`.
    Denied(Arc<str>),
}

impl Decision {
    pub(crate) fn denies(&self) -> bool {
        matches!(self, Self::Denied(_))
    }
}

/// What is decided, and what would be with the dry-run policies in force, when that is something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) decision: Decision,
    /// The policy's rule that matched, counted from 0; none when a call is denied because no rule allows it, or by or for the
    /// export.
    pub(crate) rule: Option<usize>,
    pub(crate) dry_run: Option<Decision>,
}

impl Policies {
    /// Decides about a call.
    pub(crate) fn judge(&self, call: &Call<'_>) -> Judgement {
        let plain = call.http.map(|(_, path)| path::plain(path));
        let (decision, rule) = self.decide(call, plain.as_ref(), false);
        let dry_run = self.0.iter().any(|policy| policy.dry_run).then(|| self.decide(call, plain.as_ref(), true).0);
        let dry_run = dry_run.filter(|would| would.denies() != decision.denies());
        Judgement { decision, rule, dry_run }
    }

    /// The policy that refuses plaintext to a port of the application, if one does.
    pub(crate) fn strict_at(&self, port: u16) -> Option<Arc<str>> {
        let strict = self.strict_ones().find(|policy| policy.ports.is_empty() || policy.ports.contains(&port));
        strict.map(|policy| Arc::clone(&policy.name))
    }

    /// Ports that refuse plaintext.
    pub(crate) fn strict(&self) -> StrictPorts {
        if self.strict_ones().any(|policy| policy.ports.is_empty()) {
            return StrictPorts::All;
        }
        StrictPorts::These(self.strict_ones().flat_map(|policy| policy.ports.iter().copied()).collect())
    }

    fn strict_ones(&self) -> impl Iterator<Item = &Policy> {
        self.0.iter().filter(|policy| policy.strict && !policy.dry_run)
    }

    /// What is decided, and by which rule of the policy.
    fn decide(&self, call: &Call<'_>, plain: Option<&Plain>, dry: bool) -> (Decision, Option<usize>) {
        let named = |denies: bool| {
            let in_force = self.0.iter().filter(move |policy| policy.denies == denies && (dry || !policy.dry_run));
            in_force.filter(|policy| policy.ports.is_empty() || policy.ports.contains(&call.port))
        };
        let matching = |policy: &Policy| {
            let rule = policy.rules.iter().position(|rule| rule.matches(call, plain, policy.denies))?;
            Some((Arc::clone(&policy.name), Some(rule)))
        };
        let member = cluster(call);
        if call.local.is_some_and(|own| member != Some(own)) {
            return (Decision::Denied(LOCAL.into()), None);
        }
        if let Some((policy, rule)) = named(true).find_map(matching) {
            return (Decision::Denied(policy), rule);
        }
        if let Some((policy, rule)) = named(false).find_map(matching) {
            return (Decision::Allowed(policy), rule);
        }
        if let Some(policy) = named(false).next() {
            return (Decision::Denied(Arc::clone(&policy.name)), None);
        }
        let grant = if call.local.is_some() { LOCAL } else { EXPORT };
        let granted = if member.is_some() { Decision::Allowed } else { Decision::Denied };
        (granted(grant.into()), None)
    }
}

/// The caller's cluster, if it is of the federation: the one label before the federation's domain.
fn cluster<'a>(call: &Call<'a>) -> Option<&'a str> {
    let name = call.caller.trust_domain().as_str().strip_suffix(call.federation?)?.strip_suffix('.')?;
    Some(name).filter(|name| !name.is_empty())
}

impl Rule {
    /// `against`: a DENY rule, which what is not plain matches.
    fn matches(&self, call: &Call<'_>, plain: Option<&Plain>, against: bool) -> bool {
        let id = call.caller.to_string();
        let namespace = call.caller.as_workload().map(|(namespace, _)| namespace);
        let has = |list: &[String], value: Option<&str>| {
            list.is_empty() || value.is_some_and(|value| list.iter().any(|entry| entry == value))
        };
        (self.spiffe_ids.is_empty() || self.spiffe_ids.iter().any(|pattern| pattern.matches(&id)))
            && has(&self.trust_domains, Some(call.caller.trust_domain().as_str()))
            && has(&self.clusters, cluster(call))
            && has(&self.namespaces, namespace)
            && (self.methods.is_empty() || call.http.is_some_and(|(method, _)| self.method(method, against)))
            && (self.paths.is_empty() || plain.is_some_and(|plain| self.path(plain, against)))
    }

    fn method(&self, method: &str, against: bool) -> bool {
        self.methods.iter().any(|entry| entry == method || against && entry.eq_ignore_ascii_case(method))
    }

    fn path(&self, plain: &Plain, against: bool) -> bool {
        match plain {
            Plain::Path(path) if against => {
                let path = path.to_ascii_lowercase();
                let other = match path.strip_suffix('/') {
                    Some(shorter) => shorter.to_owned(),
                    None => format!("{path}/"),
                };
                self.paths.iter().any(|pattern| {
                    let pattern = pattern.lower();
                    pattern.matches(&path) || pattern.matches(&other)
                })
            }
            Plain::Path(path) => self.paths.iter().any(|pattern| pattern.matches(path)),
            Plain::Doubtful => against,
        }
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(beginning) => Self { text: beginning.to_owned(), open: true },
            None => Self { text: text.to_owned(), open: false },
        }
    }

    fn lower(&self) -> Self {
        Self { text: self.text.to_ascii_lowercase(), open: self.open }
    }

    fn matches(&self, text: &str) -> bool {
        if self.open { text.starts_with(&self.text) } else { text == self.text }
    }
}

impl TryFrom<Vec<wire::AccessPolicy>> for Policies {
    type Error = PolicyError;

    fn try_from(wire: Vec<wire::AccessPolicy>) -> Result<Self, PolicyError> {
        if wire.len() > MAX_POLICIES {
            let problem = format!("more than {MAX_POLICIES} policies");
            return Err(PolicyError { place: MAX_POLICIES, name: String::new(), problem });
        }
        let parsed = wire.into_iter().enumerate().map(|(place, policy)| {
            let name = policy.name.clone();
            Policy::try_from(policy).map_err(|problem| PolicyError { place, name, problem })
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<wire::AccessPolicy> for Policy {
    type Error = String;

    fn try_from(wire: wire::AccessPolicy) -> Result<Self, String> {
        let denies = match wire.action() {
            Action::Allow => false,
            Action::Deny => true,
            // A newer action that means nothing here must not become a grant.
            Action::Unspecified => return Err(format!("action: {} is unknown", wire.action)),
        };
        let ports = wire.ports.iter().map(|port| u16::try_from(*port).map_err(|_| format!("ports: {port} is no port")));
        let ports = ports.collect::<Result<_, _>>()?;
        let rules = wire.rules.into_iter().enumerate();
        let rules = rules.map(|(place, rule)| Rule::new(rule).map_err(|problem| format!("rules[{place}].{problem}")));
        Ok(Self {
            name: wire.name.into(),
            denies,
            dry_run: wire.dry_run,
            strict: wire.strict,
            ports,
            rules: rules.collect::<Result<_, _>>()?,
        })
    }
}

impl Rule {
    fn new(wire: wire::AccessRule) -> Result<Self, String> {
        let patterns = |field: &str, texts: &[String], start: &str| {
            let pattern = |text: &String| {
                let star = text.find('*').is_none_or(|place| place + 1 == text.len());
                let fits = text.starts_with(start) && star;
                if fits { Ok(Pattern::new(text)) } else { Err(format!("{field}: {text:?} is no pattern")) }
            };
            texts.iter().map(pattern).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            spiffe_ids: patterns("spiffeIds", &wire.spiffe_ids, "spiffe://")?,
            paths: patterns("paths", &wire.paths, "/")?,
            trust_domains: wire.trust_domains,
            clusters: wire.clusters,
            namespaces: wire.namespaces,
            methods: wire.methods,
        })
    }
}

#[cfg(test)]
mod tests;
