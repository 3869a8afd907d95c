//! Whether this workload may have an identity at all, as far as is known.

use std::sync::Arc;

use tokio::sync::watch;

/// What the parts that ask the control-plane have learnt. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing(Arc<watch::Sender<Learnt>>);

/// What is known at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learnt {
    /// The control-plane refuses this workload an SVID.
    pub(crate) refused: bool,
    /// A first whole state was applied.
    pub(crate) complete: bool,
}

impl Standing {
    /// The control-plane issued an SVID, or refused to.
    pub(crate) fn answered(&self, refused: bool) {
        self.learn(|learnt| learnt.refused = refused);
    }

    /// A first whole state was applied.
    pub(crate) fn complete(&self) {
        self.learn(|learnt| learnt.complete = true);
    }

    /// What is known now.
    pub(crate) fn learnt(&self) -> Learnt {
        *self.0.borrow()
    }

    /// Tells of changes.
    pub(crate) fn changed(&self) -> watch::Receiver<Learnt> {
        self.0.subscribe()
    }

    fn learn(&self, change: impl FnOnce(&mut Learnt)) {
        self.0.send_if_modified(|learnt| {
            let before = *learnt;
            change(learnt);
            *learnt != before
        });
    }
}
