//! The code that the .proto files generate, checked in, so that neither protoc nor a build script is needed.
//! `tests/generated.rs` fails when it is stale and rewrites it when run with `UPDATE=1`.

macro_rules! package {
    ($(#[$doc:meta])* $package:ident, $file:literal $(, $(#[$lint:meta])+)?) => {
        $(#[$doc])*
        pub mod $package {
            /// Version 1.
            #[expect(missing_docs, reason = "the .proto file documents what a name does not say")]
            $($(#[$lint])+)?
            pub mod v1 {
                include!($file);
            }
        }
    };
}

package!(
    /// Signed records: what a cluster says.
    record,
    "generated/isthmus.record.v1.rs",
    #[expect(rustdoc::invalid_html_tags, reason = "<name> in a comment is a placeholder")]
);
package!(
    /// Control-plane to trust-bundle.
    trust,
    "generated/isthmus.trust.v1.rs",
    #[expect(clippy::too_many_lines, reason = "one arm for each call")]
);
package!(
    /// Control-plane to federator.
    federation,
    "generated/isthmus.federation.v1.rs"
);
package!(
    /// Proxy to control-plane.
    discovery,
    "generated/isthmus.discovery.v1.rs",
    #[expect(rustdoc::invalid_html_tags, reason = "<name> in a comment is a placeholder")]
    #[expect(clippy::too_many_lines, reason = "one arm for each call")]
);
package!(
    /// Sidecar to sidecar.
    mesh,
    "generated/isthmus.mesh.v1.rs",
    #[expect(rustdoc::invalid_html_tags, reason = "<name> in a comment is a placeholder")]
);
