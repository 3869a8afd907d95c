//! `isthmus explain`: where a sidecar's requests to a service go and why, and what would be if something failed.
//!
//! The sidecar answers, with the balancer that picks; this shows it.

mod wire;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::{self, ANSWER_DEADLINE};
use crate::arguments::Explain;
use crate::failure::Failure;
use crate::output::{Output, Tone, Toned};
use crate::time::{brief, round_trip};
use wire::{Ejection, Explanation, Group, Member, Port, State};

/// Asks and shows.
pub(crate) async fn explain(arguments: &Explain, output: &Output) -> Result<(), Failure> {
    let explanation = ask(arguments).await?;
    output.show(&explanation, |output| page(&explanation, &arguments.without, output))
}

async fn ask(arguments: &Explain) -> Result<Explanation, Failure> {
    #[derive(Serialize)]
    struct Question<'a> {
        service: String,
        port: Option<u16>,
        failed: &'a [String],
    }
    let address = &arguments.sidecar;
    let broken = |reason: String| Failure::Sidecar { address: address.clone(), reason };
    let service = arguments.service.label();
    let question = Question { service, port: arguments.port, failed: &arguments.without };
    let body = serde_json::to_vec(&question).map_err(|error| broken(error.to_string()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/debug/explain")
        .header(header::HOST, "isthmus")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(|error| broken(error.to_string()))?;
    let asked = async {
        let stream = TcpStream::connect(address.as_str())
            .await
            .map_err(|source| Failure::NoSidecar { address: address.clone(), source })?;
        admin::exchange(stream, request).await.map_err(&broken)
    };
    let (status, body) = timeout(ANSWER_DEADLINE, asked)
        .await
        .map_err(|_| broken(format!("no answer within {}", brief(ANSWER_DEADLINE))))??;
    if !status.is_success() {
        return Err(broken(admin::reason(status, &body)));
    }
    serde_json::from_slice(&body).map_err(|error| broken(format!("the answer is not understood: {error}")))
}

fn page(explanation: &Explanation, without: &[String], output: &Output) -> String {
    let ports = explanation.ports.iter().map(|port| of_port(explanation, port, without, output));
    ports.collect::<Vec<_>>().join("\n")
}

fn of_port(explanation: &Explanation, port: &Port, without: &[String], output: &Output) -> String {
    let policy = port.policy.as_ref().map(|policy| format!(", policy {policy}")).unwrap_or_default();
    let sticky = if port.sticky { ", clients stay with one endpoint" } else { "" };
    let mut page = format!("{}:{} ({}{policy}{sticky})\n", explanation.service, port.port, port.protocol);
    let mut say = |text: Toned| page.push_str(&(output.paint(&text) + "\n"));
    if let Some(sentence) = panic(&port.now) {
        say(Toned::new(sentence, Tone::Bad));
    }
    if let Some(what_if) = &port.what_if {
        say(format!("\"if\" columns: {} failed", without.join(" and ")).into());
        if let Some(sentence) = panic(what_if) {
            say(Toned::new(format!("if: {sentence}"), Tone::Bad));
        }
    }
    page.push('\n');
    page.push_str(&groups(port, output));
    page.push('\n');
    page.push_str(&members(port, output));
    page
}

fn panic(state: &State) -> Option<&'static str> {
    state.panic.then_some("no group anywhere is healthy: all members are used")
}

/// One line for each group, in order of use now.
fn groups(port: &Port, output: &Output) -> String {
    let mut header = vec!["PRIORITY", "GROUP", "WHY", "SHARE"];
    header.extend(port.what_if.is_some().then_some("IF"));
    header.extend(["HEALTHY", "STATE"]);
    let rows = port.now.groups().map(|(priority, group)| {
        let priority = priority.map_or_else(|| "last".to_owned(), |priority| priority.to_string());
        let mut row: Vec<Toned> = vec![
            priority.into(),
            group.name.clone().into(),
            Toned::or_dash(group.why.clone().unwrap_or_default()),
            share(group.load),
        ];
        if let Some(what_if) = &port.what_if {
            let other = what_if.groups().find(|(_, other)| other.name == group.name);
            row.push(other.map_or_else(|| Toned::or_dash(""), |(_, group)| share(group.load)));
        }
        row.push(healthy(group));
        row.push(state_of(group));
        row
    });
    output.table(&header, rows.collect())
}

/// One line for each endpoint or path, with where it leads.
fn members(port: &Port, output: &Output) -> String {
    let mut header = vec!["SHARE"];
    header.extend(port.what_if.is_some().then_some("IF"));
    header.extend(["GROUP", "ENDPOINT", "GATEWAY", "IN FLIGHT", "LATENCY", "STATE"]);
    let of = |state: &State| -> Vec<(String, Member)> {
        let groups = state.groups();
        groups.flat_map(|(_, group)| group.members.iter().map(|it| (group.name.clone(), it.clone()))).collect()
    };
    let others = port.what_if.as_ref().map(of);
    let rows = of(&port.now).into_iter().map(|(group, member)| {
        let mut row = vec![share(member.load)];
        if let Some(others) = &others {
            let other = others.iter().find(|(_, other)| other.via == member.via);
            row.push(other.map_or_else(|| Toned::or_dash(""), |(_, other)| share(other.load)));
        }
        let latency = member.latency_microseconds.map(std::time::Duration::from_micros).map(round_trip);
        row.extend([
            group.into(),
            Toned::or_dash(member.endpoint.clone().unwrap_or_default()),
            Toned::or_dash(member.gateway.clone().unwrap_or_default()),
            member.in_flight.to_string().into(),
            Toned::or_dash(latency.unwrap_or_default()),
            standing(&member),
        ]);
        row
    });
    output.table(&header, rows.collect())
}

fn share(load: f64) -> Toned {
    let text = format!("{:.1}%", load * 100.0);
    if load > 0.0 { text.into() } else { Toned::new(text, Tone::Faint) }
}

/// `1.5/2 of 3`: healthy with slow start, ready, all.
fn healthy(group: &Group) -> Toned {
    let tone = if group.healthy + 0.001 < f64::from(group.ready) { Tone::Doubtful } else { Tone::Plain };
    let healthy = format!("{:.1}", group.healthy);
    let healthy = healthy.strip_suffix(".0").unwrap_or(&healthy);
    Toned::new(format!("{healthy}/{} of {}", group.ready, group.total), tone)
}

fn state_of(group: &Group) -> Toned {
    match group {
        Group { ejected: Some(ejection), .. } => ejected(ejection),
        Group { demoted: true, .. } => Toned::new("suspect and failing: used last", Tone::Bad),
        Group { suspect: true, .. } => Toned::new("suspect: its cluster's lease is gone", Tone::Doubtful),
        Group { ready: 0, .. } => Toned::new("none ready", Tone::Doubtful),
        _ => Toned::new("in use", Tone::Good),
    }
}

fn standing(member: &Member) -> Toned {
    match (member.unavailable.as_deref(), &member.ejected) {
        (_, Some(ejection)) => ejected(ejection),
        (Some("GroupEjected"), None) => Toned::new("its group is ejected", Tone::Bad),
        (Some("GatewayEjected"), None) => Toned::new("its gateway is ejected", Tone::Bad),
        (Some("EndpointEjected"), None) => Toned::new("its endpoint is ejected", Tone::Bad),
        (Some(other), None) => Toned::new(other.to_owned(), Tone::Bad),
        (None, None) if member.slow_start < 1.0 => {
            Toned::new(format!("slow start, {:.0}%", member.slow_start * 100.0), Tone::Doubtful)
        }
        (None, None) => Toned::new("in use", Tone::Good),
    }
}

/// `ejected for 3s: 5 failures in a row (2nd time)`
fn ejected(ejection: &Ejection) -> Toned {
    let remaining = brief(std::time::Duration::from_millis(ejection.remaining_milliseconds));
    let cause = match ejection.cause.as_str() {
        "ConsecutiveFailures" => "failures in a row",
        "SuccessRate" => "too many failures",
        "FailedTrial" => "failed again on trial",
        other => other,
    };
    Toned::new(format!("ejected for {remaining}: {cause}, {} in all", ejection.times), Tone::Bad)
}
