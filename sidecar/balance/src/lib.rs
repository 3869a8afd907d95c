//! Ordered groups in, one endpoint out: spill, ejection, choice.
//!
//! ```text
//!  Plan (from the ordering of localities)            what requests saw
//!  ┌───────────────────────────────┐                 ┌──────────────────────┐
//!  │ P0  zone east/a   ready 3/3   │                 │ started, finished    │
//!  │ P1  zone east/b   ready 2/2   │                 │ probed               │
//!  │ P2  cluster west  ready 8/8   │                 └──────────┬───────────┘
//!  └───────────────┬───────────────┘                            │
//!                  ▼                                            ▼
//!      ┌────────────────────────────────────────────────────────────────┐
//!      │ Balancer   health ─► spill ─► group by capacity ─► two choices │
//!      │            ▲                                       by load     │
//!      │            └── ejection of members, gateways,                  │
//!      │                real endpoints and whole remote clusters        │
//!      └───────────────┬───────────────────────────────┬────────────────┘
//!                      ▼                               ▼
//!            pick: one member, and why          explain: all of it, and why
//! ```
//!
//! The crate does no I/O, has no clock and no source of randomness: `now`, a random number generator and a seed are
//! arguments, so a whole service's behaviour under faults can be simulated and replayed.
//!
//! # What always holds
//!
//! 1. The loads of all priorities sum to one and follow [`spill::loads`], unless no group anywhere is healthy.
//! 2. [`Balancer::pick`] answers `None` only when every member of the plan was excluded by the caller, and never
//!    answers an excluded member.
//! 3. Nothing protects a member from ejection: no percentage, no count. When the last healthy one is gone, panic mode
//!    uses all of them, says so in every [`Pick`], and counts it.
//! 4. An ejection ends by its own time or by a probe out of band, never by the outcome of a user's request.
//! 5. A suspect group (its lease is gone) moves behind all others only when requests or probes through it fail as well.
//! 6. `pick` allocates nothing, provided that cloning the member key does not.
//! 7. State is bounded by the plan: statistics of members that left it are dropped, and the real endpoints remembered
//!    behind a group's gateways are at most [`MAX_ENDPOINTS_PER_GROUP`].
//!
//! # How a sidecar uses it
//!
//! One [`Balancer`] per (service, port), owned by one task or behind one short lock; one [`RetryBudget`] per service.
//! Per attempt: [`Balancer::pick`], [`Balancer::started`], [`Balancer::finished`]. A timer at
//! [`Balancer::next_probe`] asks [`Balancer::probes_due`], opens a fresh session to each and tells
//! [`Balancer::probed`].

mod assess;
mod balancer;
mod budget;
mod choice;
mod concurrency;
mod ejection;
mod explain;
mod latency;
mod outcome;
mod plan;
mod probes;
mod random;
mod settings;
pub mod spill;
mod state;
mod suppose;
mod window;

pub use balancer::{Balancer, Counters};
pub use budget::{RetryBudget, RetryBudgetSettings};
pub use choice::{Pick, PickContext, Reason};
pub use concurrency::ConcurrencyLimit;
pub use ejection::EjectionCause;
pub use explain::{
    EjectionExplanation, EndpointExplanation, Explanation, GatewayExplanation, GroupExplanation, MemberExplanation,
    PriorityExplanation, Unavailable,
};
pub use outcome::Outcome;
pub use plan::{EndpointId, EndpointIdError, GatewayName, Group, GroupName, Member, Plan, Reach};
pub use settings::{Settings, SettingsError};
pub use state::MAX_ENDPOINTS_PER_GROUP;
pub use suppose::Target;
