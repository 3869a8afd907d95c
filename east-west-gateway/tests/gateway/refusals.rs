//! What is not exported is not reachable, and whoever asks for it is told at once.

use rustls::AlertDescription;

use super::lab::{Authority, Endpoint, HOST, Running};

#[tokio::test]
async fn made_up_names_reach_nothing_and_get_the_alert_that_fits() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let unrecognised = AlertDescription::UnrecognisedName;
    let table = [
        (format!("outbound_.8080_.c-west_.{HOST}"), unrecognised, "other_cluster"),
        (format!("outbound_.8080_.c-west.e-1_.{HOST}"), unrecognised, "other_cluster"),
        ("outbound_.8080_.c-east_.secret.shop.svc.clusterset.local".to_owned(), unrecognised, "not_exported"),
        ("outbound_.8080_._.echo.other.svc.clusterset.local".to_owned(), unrecognised, "not_exported"),
        (format!("outbound_.8081_.c-east_.{HOST}"), unrecognised, "port_not_exported"),
        (format!("outbound_.15008_._.{HOST}"), unrecognised, "port_not_exported"),
        (HOST.to_owned(), unrecognised, "unknown_name"),
        ("localhost".to_owned(), unrecognised, "unknown_name"),
        (format!("outbound_.0_._.{HOST}"), unrecognised, "unknown_name"),
        (format!("outbound_.8080_.v1_.{HOST}"), unrecognised, "unknown_name"),
        (format!("outbound_.8080_.c-east.e-65536_.{HOST}"), unrecognised, "unknown_name"),
        ("outbound_.8080_._.echo.shop.svc.cluster.local".to_owned(), unrecognised, "unknown_name"),
        // An address sends no server name at all.
        ("127.0.0.1".to_owned(), AlertDescription::MissingExtension, "no_server_name"),
    ];
    for (name, alert, _) in &table {
        let refused = gateway.session(&authority, name).await.err();
        assert_eq!(refused, Some(Some(*alert)), "{name}");
    }
    for reason in ["other_cluster", "not_exported", "port_not_exported", "unknown_name", "no_server_name"] {
        let count = table.iter().filter(|row| row.2 == reason).count();
        gateway.metric(&format!("connections_closed_total{{reason=\"{reason}\"}} {count}")).await;
    }
    assert_eq!(echo.accepted(), 0);
}
