#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

const CART: &str = "spiffe://east.mesh.example/ns/shop/sa/cart";
const WEST: &str = "spiffe://west.mesh.example/ns/shop/sa/cart";
const OTHER: &str = "spiffe://east.mesh.example/ns/other/sa/cart";
const FOREIGN: &str = "spiffe://partner.example/ns/shop/sa/cart";

fn rule(change: impl FnOnce(&mut wire::AccessRule)) -> wire::AccessRule {
    let mut rule = wire::AccessRule::default();
    change(&mut rule);
    rule
}

fn policy(name: &str, action: Action, rules: Vec<wire::AccessRule>) -> wire::AccessPolicy {
    wire::AccessPolicy { name: name.to_owned(), action: action.into(), rules, ..wire::AccessPolicy::default() }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn judge(policies: Vec<wire::AccessPolicy>, caller: &str, port: u16, http: Option<(&str, &str)>) -> Judgement {
    let caller: SpiffeId = caller.parse().unwrap();
    let call = Call { caller: &caller, federation: Some("mesh.example"), port, local: None, http };
    Policies::try_from(policies).unwrap().judge(&call)
}

fn allows(policies: &[wire::AccessPolicy], caller: &str, http: Option<(&str, &str)>) -> bool {
    !judge(policies.to_vec(), caller, 80, http).decision.denies()
}

#[test]
fn without_policies_members_may_call_and_nobody_else() {
    let callers = [
        (CART, true),
        (WEST, true),
        (FOREIGN, false),
        ("spiffe://mesh.example/cluster/east/control-plane", false),
        ("spiffe://eastmesh.example/ns/shop/sa/cart", false),
        ("spiffe://east.mesh.example.attacker/ns/shop/sa/cart", false),
    ];
    for (caller, allowed) in callers {
        assert_eq!(allows(&[], caller, None), allowed, "{caller}");
    }
    let caller: SpiffeId = CART.parse().unwrap();
    let unknown = Call { caller: &caller, federation: None, port: 80, local: None, http: None };
    assert!(Policies::default().judge(&unknown).decision.denies());
}

#[test]
fn an_allow_policy_narrows_the_ports_that_it_names_and_no_others() {
    let mut only_cart = policy("shop/only", Action::Allow, vec![rule(|rule| rule.spiffe_ids = texts(&[CART]))]);
    only_cart.ports = vec![80];
    let decided = |caller, port| judge(vec![only_cart.clone()], caller, port, None).decision;
    assert_eq!(decided(CART, 80), Decision::Allowed("shop/only".into()));
    assert_eq!(decided(WEST, 80), Decision::Denied("shop/only".into()));
    assert_eq!(decided(WEST, 81), Decision::Allowed("export".into()));
    assert_eq!(decided(FOREIGN, 81), Decision::Denied("export".into()));
}

#[test]
fn an_allow_policy_may_let_a_foreigner_in() {
    let partner = policy("shop/p", Action::Allow, vec![rule(|rule| rule.trust_domains = texts(&["partner.example"]))]);
    assert!(allows(std::slice::from_ref(&partner), FOREIGN, None));
    assert!(!allows(&[partner], CART, None));
}

#[test]
fn a_deny_rule_comes_before_every_allow() {
    let everybody = policy("shop/all", Action::Allow, vec![rule(|rule| rule.spiffe_ids = texts(&["spiffe://*"]))]);
    let not_west = policy("shop/no", Action::Deny, vec![rule(|rule| rule.clusters = texts(&["west"]))]);
    for order in [[everybody.clone(), not_west.clone()], [not_west, everybody]] {
        assert!(allows(&order, CART, None));
        assert_eq!(judge(order.to_vec(), WEST, 80, None).decision, Decision::Denied("shop/no".into()));
    }
}

#[test]
fn each_field_of_a_rule_must_match_and_each_alone_decides() {
    type Change = fn(&mut wire::AccessRule);
    let full: Change = |rule| {
        rule.spiffe_ids = texts(&["spiffe://east.mesh.example/ns/shop/*"]);
        rule.trust_domains = texts(&["east.mesh.example"]);
        rule.clusters = texts(&["east"]);
        rule.namespaces = texts(&["shop"]);
        rule.methods = texts(&["GET"]);
        rule.paths = texts(&["/cart*"]);
    };
    let http = Some(("GET", "/cart/1"));
    assert!(allows(&[policy("a", Action::Allow, vec![rule(full)])], CART, http));
    let changes: [Change; 6] = [
        |rule| rule.spiffe_ids = texts(&["spiffe://east.mesh.example/ns/sho"]),
        |rule| rule.trust_domains = texts(&["west.mesh.example"]),
        |rule| rule.clusters = texts(&["west"]),
        |rule| rule.namespaces = texts(&["other"]),
        |rule| rule.methods = texts(&["POST"]),
        |rule| rule.paths = texts(&["/order*"]),
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let changed = rule(|rule| {
            full(rule);
            change(rule);
        });
        assert!(!allows(&[policy("a", Action::Allow, vec![changed])], CART, http), "field {place}");
    }
    assert!(!allows(&[policy("a", Action::Allow, vec![rule(full)])], OTHER, http));
    // Nothing of HTTP can be said of raw bytes.
    assert!(!allows(&[policy("a", Action::Allow, vec![rule(full)])], CART, None));
}

/// However a path is written, neither a DENY nor an ALLOW is got around.
#[test]
fn no_spelling_of_a_path_gets_around_a_policy() {
    let deny = policy("a/deny", Action::Deny, vec![rule(|rule| rule.paths = texts(&["/admin", "/admin/*"]))]);
    let allow = policy("a/allow", Action::Allow, vec![rule(|rule| rule.paths = texts(&["/public/*"]))]);
    let of_admin = [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/%2e/admin",
        "/x/%2e%2e/admin",
        "/ADMIN",
        "/Admin/x",
        "/admin;a=b",
        "/admin%2fx",
        "/x%2f..%2fadmin",
        "/admin.",
        "/admin%20",
        "/admin%00",
        "/%2561dmin",
        "/..%5cadmin",
        "/\\admin",
        "/admin//x",
        "/admin/./x",
        "/admin%3b/x",
        "*",
        "",
    ];
    for path in of_admin {
        assert!(!allows(std::slice::from_ref(&deny), CART, Some(("GET", path))), "denied: {path}");
    }
    for path in ["/", "/administer", "/public/admin", "/x/admin"] {
        assert!(allows(std::slice::from_ref(&deny), CART, Some(("GET", path))), "not denied: {path}");
    }
    let out_of_public = [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
        "/public/..;/admin",
        "/public/.%2e/admin",
        "/PUBLIC/x",
        "/publicx",
        "/public",
        "/public/x;y",
        "/public/%2e%2e%2fadmin",
    ];
    for path in out_of_public {
        assert!(!allows(std::slice::from_ref(&allow), CART, Some(("GET", path))), "not allowed: {path}");
    }
    for path in ["/public/x", "/public/", "//public//x", "/x/../public/y", "/public/%61"] {
        assert!(allows(std::slice::from_ref(&allow), CART, Some(("GET", path))), "allowed: {path}");
    }
}

#[test]
fn a_method_in_other_letters_is_denied_and_not_allowed() {
    let deny = policy("a", Action::Deny, vec![rule(|rule| rule.methods = texts(&["DELETE"]))]);
    let allow = policy("a", Action::Allow, vec![rule(|rule| rule.methods = texts(&["GET"]))]);
    for (policy, method, allowed) in [
        (&deny, "DELETE", false),
        (&deny, "delete", false),
        (&deny, "GET", true),
        (&allow, "GET", true),
        (&allow, "get", false),
        (&allow, "HEAD", false),
    ] {
        assert_eq!(allows(std::slice::from_ref(policy), CART, Some((method, "/"))), allowed, "{method}");
    }
}

#[test]
fn a_policy_without_rules_allows_nobody_or_denies_nobody() {
    assert!(!allows(&[policy("a", Action::Allow, Vec::new())], CART, None));
    assert!(allows(&[policy("a", Action::Deny, Vec::new())], CART, None));
}

#[test]
fn a_dry_run_decides_nothing_and_says_what_it_would_have_decided() {
    let mut deny = policy("a/deny", Action::Deny, vec![rule(|rule| rule.clusters = texts(&["west"]))]);
    deny.dry_run = true;
    let judged = judge(vec![deny.clone()], WEST, 80, None);
    assert_eq!(judged.decision, Decision::Allowed("export".into()));
    assert_eq!(judged.dry_run, Some(Decision::Denied("a/deny".into())));
    assert_eq!(judge(vec![deny], CART, 80, None).dry_run, None);
    let mut allow =
        policy("a/allow", Action::Allow, vec![rule(|rule| rule.trust_domains = texts(&["partner.example"]))]);
    allow.dry_run = true;
    let judged = judge(vec![allow], FOREIGN, 80, None);
    assert_eq!(judged.decision, Decision::Denied("export".into()));
    assert_eq!(judged.dry_run, Some(Decision::Allowed("a/allow".into())));
}

#[test]
fn what_is_not_understood_is_refused_with_its_field() {
    let unknown = policy("shop/x", Action::Unspecified, Vec::new());
    let star = policy("shop/x", Action::Allow, vec![rule(|rule| rule.paths = texts(&["/a*b"]))]);
    let mut port = policy("shop/x", Action::Allow, Vec::new());
    port.ports = vec![70_000];
    for (wrong, field) in [(unknown, "action"), (star, "rules[0].paths"), (port, "ports")] {
        let refused = Policies::try_from(vec![wrong]).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("policies[0] (shop/x): {field}")), "{refused}");
    }
}

#[test]
fn the_rule_that_decided_is_named() {
    let any = || rule(|_| {});
    let cart = rule(|rule| rule.spiffe_ids = texts(&[CART]));
    let deny = policy("shop/no", Action::Deny, vec![rule(|rule| rule.clusters = texts(&["north"])), any()]);
    let judged = judge(vec![deny], WEST, 80, None);
    assert_eq!((judged.decision, judged.rule), (Decision::Denied("shop/no".into()), Some(1)));
    let judged = judge(vec![policy("shop/only", Action::Allow, vec![cart])], WEST, 80, None);
    assert_eq!((judged.decision, judged.rule), (Decision::Denied("shop/only".into()), None));
}

#[test]
fn strict_policies_name_ports_and_dry_runs_do_not_count() {
    let strict = |name: &str, ports: &[u32], dry_run: bool| wire::AccessPolicy {
        strict: true,
        dry_run,
        ports: ports.to_vec(),
        ..policy(name, Action::Deny, vec![])
    };
    let policies = |list: Vec<wire::AccessPolicy>| Policies::try_from(list).unwrap();
    let some = policies(vec![
        policy("a", Action::Allow, vec![]),
        strict("b", &[80, 443], false),
        strict("c", &[80], false),
        strict("d", &[], true),
    ]);
    assert_eq!(some.strict(), StrictPorts::These([80, 443].into()));
    assert_eq!((some.strict_at(443).as_deref(), some.strict_at(81)), (Some("b"), None));
    let all = policies(vec![strict("e", &[], false)]);
    assert_eq!((all.strict(), all.strict_at(1).as_deref()), (StrictPorts::All, Some("e")));
    assert_eq!(Policies::default().strict(), StrictPorts::These([].into()));
}

#[test]
fn a_local_service_is_for_its_own_cluster_whatever_policies_allow() {
    let all = policy("shop/all", Action::Allow, vec![wire::AccessRule::default()]);
    let not_cart = policy("shop/no", Action::Deny, vec![rule(|rule| rule.spiffe_ids = texts(&[CART]))]);
    let decided = |policies: &[wire::AccessPolicy], caller: &str, own| {
        let caller: SpiffeId = caller.parse().unwrap();
        let call = Call { caller: &caller, federation: Some("mesh.example"), port: 80, local: Some(own), http: None };
        Policies::try_from(policies.to_vec()).unwrap().judge(&call).decision
    };
    let granted = Decision::Allowed("local-services".into());
    let refused = Decision::Denied("local-services".into());
    assert_eq!(decided(&[], CART, "east"), granted);
    for policies in [vec![], vec![all]] {
        for foreign in [WEST, FOREIGN, "spiffe://mesh.example/cluster/east/control-plane"] {
            assert_eq!(decided(&policies, foreign, "east"), refused, "{foreign}");
        }
        assert_eq!(decided(&policies, CART, ""), refused, "before the own cluster is known");
    }
    assert_eq!(decided(std::slice::from_ref(&not_cart), CART, "east"), Decision::Denied("shop/no".into()));
    assert_eq!(decided(&[not_cart], OTHER, "east"), granted);
}
