//! `isthmus get`: what this cluster exports, imports, and with whom.

use std::time::Duration;

use federation::Namespace;
use jiff::Timestamp;

use crate::admin::Admin;
use crate::admin::wire::{Condition, Export, Exporter, Import};
use crate::arguments::{Get, Kind};
use crate::failure::Failure;
use crate::output::{Output, Tone, Toned};
use crate::status::cluster_table;
use crate::time::brief;

/// Lists.
pub(crate) async fn get(arguments: &Get, admin: &Admin, output: &Output) -> Result<(), Failure> {
    let wanted = |namespace: &Namespace| arguments.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
    match arguments.kind {
        Kind::Exports => {
            let mut exports = admin.exports().await?;
            exports.retain(|export| wanted(&export.namespace));
            exports.sort_by_key(Export::service);
            output.show(&exports, |output| export_table(&exports, Timestamp::now(), output))
        }
        Kind::Imports => {
            let mut imports = admin.imports().await?;
            imports.retain(|import| wanted(&import.namespace));
            imports.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
            output.show(&imports, |output| import_table(&imports, output))
        }
        Kind::Clusters if arguments.namespace.is_some() => {
            Err(Failure::Usage("--namespace: clusters have none".to_owned()))
        }
        Kind::Clusters => {
            let mut clusters = admin.clusters().await?;
            clusters.sort_by(|a, b| a.cluster.cmp(&b.cluster));
            output.show(&clusters, |output| list(&clusters, "clusters", cluster_table(&clusters, output)))
        }
    }
}

fn export_table(exports: &[Export], now: Timestamp, output: &Output) -> String {
    let rows = exports.iter().map(|export| {
        let age = export.created_at.map(|created| Duration::try_from(now.duration_since(created)).unwrap_or_default());
        vec![
            export.namespace.to_string().into(),
            export.name.to_string().into(),
            condition(export.condition("Valid"), true),
            condition(export.condition("Ready"), true),
            condition(export.condition("Conflict"), false),
            format!("{}/{}", export.ready, export.endpoints).into(),
            Toned::or_dash(age.map(brief).unwrap_or_default()),
        ]
    });
    let header = ["NAMESPACE", "NAME", "VALID", "READY", "CONFLICT", "ENDPOINTS", "AGE"];
    list(exports, "exports", output.table(&header, rows.collect()))
}

fn import_table(imports: &[Import], output: &Output) -> String {
    let rows = imports.iter().map(|import| {
        let ports: Vec<_> = import.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        vec![
            import.namespace.to_string().into(),
            import.name.to_string().into(),
            Toned::or_dash(import.kind.clone()),
            Toned::or_dash(import.ips.join(",")),
            Toned::or_dash(ports.join(",")),
            Toned::or_dash(exporters(import)),
            if import.conflicts.is_empty() {
                Toned::or_dash("")
            } else {
                Toned::new(import.conflicts.join(","), Tone::Doubtful)
            },
        ]
    });
    let header = ["NAMESPACE", "NAME", "TYPE", "IP", "PORT(S)", "READY BY CLUSTER", "CONFLICTS"];
    list(imports, "imports", output.table(&header, rows.collect()))
}

/// `east 2/2, west 0/1`; a cluster that the federation has lost touch with has a `?`.
fn exporters(import: &Import) -> String {
    let one = |it: &Exporter| {
        let doubt = if it.suspect { "?" } else { "" };
        format!("{} {}/{}{doubt}", it.cluster, it.ready, it.capacity)
    };
    import.clusters.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `True`, or `False (NoService)`: the reason where it is bad news.
fn condition(condition: Option<&Condition>, good: bool) -> Toned {
    let Some(condition) = condition else { return Toned::or_dash("") };
    let (as_wished, against) =
        if good { (condition.is_true(), condition.is_false()) } else { (condition.is_false(), condition.is_true()) };
    let told = if condition.reason.is_empty() {
        condition.status.clone()
    } else {
        format!("{} ({})", condition.status, condition.reason)
    };
    match (as_wished, against) {
        (true, _) => Toned::new(condition.status.clone(), Tone::Good),
        (_, true) => Toned::new(told, Tone::Bad),
        _ => Toned::new(told, Tone::Doubtful),
    }
}

fn list<T>(items: &[T], what: &str, table: String) -> String {
    if items.is_empty() { format!("no {what}\n") } else { table }
}
