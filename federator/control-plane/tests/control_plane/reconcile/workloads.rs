//! What proxies are told of their workloads.

use super::*;

#[test]
fn workloads_learn_what_they_answer_by_their_address_and_account() {
    let world = World::shop();
    let workloads = &world.snapshot.workloads[&"shop".parse::<federation::Namespace>().unwrap()];
    let found = workloads.find(&["127.1.0.7".parse().unwrap()], "cart").unwrap();
    assert_eq!((found.id.as_str(), found.locality.zone.as_str()), ("east/shop/cart-0", "eu-a"));
    let binding = &found.bindings[0];
    assert_eq!((binding.host.label().as_str(), binding.port.port, binding.target), ("shop/cart", 7070, 17070));
    assert!(workloads.find(&["127.1.0.7".parse().unwrap()], "frontend").is_none());
    assert!(workloads.find(&["127.1.0.8".parse().unwrap()], "cart").is_none(), "it has no sidecar");
}

#[test]
fn proxies_are_told_the_failover_policy_of_an_import_as_it_changes() {
    use federation_api::discovery::v1::resource::Resource as Content;
    let mut world = World::shop();
    let told = |world: &World| match &world.snapshot.services[&"shop/cart".parse().unwrap()].resource.resource {
        Some(Content::Service(service)) => service.failover.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&world), None);
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: isthmus.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    world.apply(&policy("all", "{localOnly: true}"));
    let everything = told(&world).unwrap();
    assert_eq!((everything.name.as_str(), everything.local_only), ("shop/all", true));
    let spec = "{service: cart, prefer: [zone], targets: [{from: [east], mode: Only, to: [west, north]}], \
                ejection: {consecutiveFailures: 3, baseTime: 2s}, retries: {perTryTimeout: 1500ms}}";
    world.apply(&policy("cart", spec));
    let own = told(&world).unwrap();
    assert_eq!((own.name.as_str(), own.prefer.len(), own.local_only), ("shop/cart", 1, false), "its own comes first");
    assert_eq!(own.targets[0].to, ["west", "north"]);
    assert_eq!(
        (own.consecutive_failures, own.base_ejection_ms, own.per_try_timeout_ms),
        (Some(3), Some(2000), Some(1500))
    );
    world.apply(&policy("other", "{service: redis, localOnly: true}"));
    world.delete(Kind::FailoverPolicy, "cart");
    assert_eq!(told(&world).unwrap().name, "shop/all");
    world.delete(Kind::FailoverPolicy, "all");
    assert_eq!(told(&world), None, "another service's is not this one's");
}

#[test]
fn workloads_are_told_the_access_policies_of_their_service_account() {
    use federation_api::discovery::v1::access_policy::Action;
    use federation_api::discovery::v1::resource::Resource as Content;
    let mut world = World::shop();
    let told = |world: &World, account: &str| {
        let workloads = &world.snapshot.workloads[&"shop".parse::<federation::Namespace>().unwrap()];
        let resource = control_plane::resources::workload("shop", account, None, workloads.policies(account));
        match resource.resource {
            Some(Content::Workload(workload)) => workload.policies,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(&world, "cart"), []);
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: isthmus.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let spec = "{serviceAccounts: [cart], action: Deny, dryRun: true, ports: [17070], \
                rules: [{clusters: [west], methods: [POST], paths: [/admin*]}]}";
    world.apply(&policy("cart", spec));
    let own = told(&world, "cart");
    assert_eq!((own.len(), own[0].name.as_str(), own[0].action()), (1, "shop/cart", Action::Deny));
    assert_eq!((own[0].dry_run, own[0].ports.as_slice()), (true, [17070].as_slice()));
    let rule = &own[0].rules[0];
    assert_eq!(
        (rule.clusters[0].as_str(), rule.methods[0].as_str(), rule.paths[0].as_str()),
        ("west", "POST", "/admin*")
    );
    assert_eq!(told(&world, "redis"), [], "it is another service account's");
    world.apply(&policy("all", "{action: Allow, rules: [{namespaces: [shop]}]}"));
    assert_eq!(told(&world, "redis").len(), 1);
    world.delete(Kind::AccessPolicy, "cart");
    assert_eq!(told(&world, "cart")[0].name, "shop/all");
}
