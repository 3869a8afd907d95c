//! Roles in the federation plane, as an identity's path spells them.

/// Whom an identity of the federation's own trust domain stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaneRole<'a> {
    /// `/cluster/<cluster>/control-plane`: speaks for that cluster and for no other.
    ControlPlane {
        /// The cluster's name.
        cluster: &'a str,
    },
    /// `/service/<name>`: a shared service, `federator` or `trust-bundle`.
    Service {
        /// The service's name.
        name: &'a str,
    },
    /// `/operator/<name>`: a person with a client certificate.
    Operator {
        /// The operator's name.
        name: &'a str,
    },
}

impl<'a> PlaneRole<'a> {
    pub(crate) fn of_path(path: &'a str) -> Option<Self> {
        let mut segments = path.split('/').skip(1);
        match (segments.next()?, segments.next()?, segments.next(), segments.next()) {
            ("cluster", cluster, Some("control-plane"), None) => Some(Self::ControlPlane { cluster }),
            ("service", name, None, None) => Some(Self::Service { name }),
            ("operator", name, None, None) => Some(Self::Operator { name }),
            _ => None,
        }
    }
}
