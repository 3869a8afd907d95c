//! `deploy/crds` is what the types say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use federation_resources::crds;

#[test]
fn the_definitions_in_deploy_are_those_of_the_types() {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../deploy/crds"));
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for definition in crds::all().unwrap() {
        let text = serde_saphyr::to_string(&definition).unwrap();
        wanted.insert(format!("{}.yaml", definition.metadata.name.unwrap()), text);
    }
    let resources: String = wanted.keys().map(|name| format!("  - {name}\n")).collect();
    let kustomization =
        format!("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{resources}");
    wanted.insert("kustomization.yaml".to_owned(), kustomization);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(directory).unwrap();
        wanted.iter().for_each(|(name, text)| std::fs::write(directory.join(name), text).unwrap());
    }
    let there: BTreeMap<_, _> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap()))
        .collect();
    assert!(there == wanted, "write them anew: UPDATE=1 cargo test -p federation-resources --test crds");
}

#[test]
fn an_object_without_a_spec_that_may_be_empty_is_valid_in_both_versions() {
    let definitions = crds::all().unwrap();
    let exports = definitions.iter().find(|it| it.spec.names.kind == "ServiceExport").unwrap();
    assert_eq!(exports.spec.versions.len(), 2);
    assert!(
        exports.spec.versions.iter().all(|version| {
            version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap().required.is_none()
        })
    );
    let stored: Vec<_> = exports.spec.versions.iter().filter(|it| it.storage).map(|it| it.name.as_str()).collect();
    assert_eq!(stored, ["v1beta1"]);
}
