//! The operator's socket.

use serde_json::json;

use crate::program::{EXPORT, Program, SHOP};

#[tokio::test(flavor = "multi_thread")]
async fn export_and_unexport_write_and_remove_a_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let body = r#"{"namespace": "shop", "name": "cart"}"#;
    let (status, answer) = program.request("POST", "/v1/exports", body).await.unwrap();
    assert_eq!(status, 404);
    assert_eq!(answer["error"], "east has no Service shop/cart: it is exported where it is declared");
    program.write("shop.yaml", SHOP);
    let (status, answer) = program.request("POST", "/v1/exports", body).await.unwrap();
    assert_eq!((status, &answer["created"]), (201, &json!(true)));
    let (status, answer) = program.request("POST", "/v1/exports", body).await.unwrap();
    assert_eq!((status, &answer["created"]), (200, &json!(false)));
    let exports = program.get("/v1/exports").await;
    assert_eq!(exports["exports"][0]["conditions"][0]["reason"], "Valid");
    let ip = program.until_import("cart", |import| import["clusters"][0]["ready"] == 1).await["ips"][0].clone();
    let manifest = program.until("the file", async |it| it.import("shop/serviceimport-cart.yaml")).await;
    assert!(manifest.contains("kind: ServiceImport") && manifest.contains(ip.as_str().unwrap()), "{manifest}");
    let (status, _) = program.request("DELETE", "/v1/exports/shop/cart", "").await.unwrap();
    assert_eq!(status, 200);
    program
        .until("the import's end", async |it| it.import("shop/serviceimport-cart.yaml").is_none().then_some(()))
        .await;
    let (status, _) = program.request("DELETE", "/v1/exports/shop/cart", "").await.unwrap();
    assert_eq!(status, 404);
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_somebody_else_declared_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.until_import("cart", |_| true).await;
    let (status, answer) = program.request("DELETE", "/v1/exports/shop/cart", "").await.unwrap();
    assert_eq!(status, 409, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("remove it there"));
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_one_clear_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let cases = [
        ("POST", "/v1/join", r#"{"token": "isthmus-join-nonsense"}"#, 400, "token: "),
        ("POST", "/v1/join", "{}", 422, "missing field `token`"),
        ("POST", "/v1/exports", r#"{"namespace": "Shop", "name": "cart"}"#, 400, "RFC 1123"),
        ("POST", "/v1/service-account-tokens", r#"{"namespace": "a:b", "serviceAccount": "c"}"#, 400, "namespace"),
        (
            "POST",
            "/v1/service-account-tokens",
            r#"{"namespace": "a", "serviceAccount": "c", "expiresSeconds": 0}"#,
            400,
            "expiresSeconds",
        ),
    ];
    for (method, path, body, expected, sentence) in cases {
        let (status, answer) = program.request(method, path, body).await.unwrap();
        assert!((400..500).contains(&status) && (status == expected || expected == 422), "{path} {body}: {status}");
        assert!(answer["error"].as_str().unwrap().contains(sentence), "{path} {body}: {answer}");
    }
    let waiting_to_join = async |it: &Program| {
        let status = it.get("/v1/status").await;
        (status["waitingFor"][0] == "join").then_some(status)
    };
    let status = program.until("the join to be waited for", waiting_to_join).await;
    assert_eq!(status["joined"], false);
    assert_eq!(status["dns"], json!([program.dns.to_string()]));
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_manifest_is_told_with_file_line_and_field() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.until_import("cart", |_| true).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}").replace("port: 7070", "port: many"));
    let problem = program
        .until("the problem", async |it| {
            let status = it.get("/v1/status").await;
            status["manifests"]["problems"].as_array()?.first().cloned()
        })
        .await;
    assert_eq!((&problem["line"], &problem["field"]), (&json!(5), &json!("spec.ports[0].port")), "{problem}");
    program.until_import("cart", |import| import["ports"][0]["port"] == 7070).await;
    program.stop().await;
}
