//! An answer as dig prints it, and as JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record};
use serde::Serialize;

use super::exchange::{Question, Reply, Transport};
use crate::output::visible;

/// `isthmus dig -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    /// With its final dot.
    name: String,
    #[serde(rename = "type")]
    record_type: String,
    server: SocketAddr,
    /// `udp` or `tcp`.
    transport: &'static str,
    /// `NOERROR`, `NXDOMAIN`, …
    status: String,
    /// `qr`, `aa`, `tc`, `rd`, `ra`, `ad`, `cd`: those that are set.
    flags: Vec<&'static str>,
    answers: Vec<Line>,
    authority: Vec<Line>,
    additional: Vec<Line>,
    query_time_ms: f64,
    message_bytes: usize,
    #[serde(skip)]
    id: u16,
    #[serde(skip)]
    udp_payload: Option<u16>,
}

/// A record.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    ttl: u32,
    class: String,
    #[serde(rename = "type")]
    record_type: String,
    /// In the presentation format of its type.
    data: String,
}

impl Line {
    fn of(record: &Record) -> Self {
        Self {
            name: record.name.to_ascii(),
            ttl: record.ttl,
            class: record.dns_class.to_string(),
            record_type: record.record_type().to_string(),
            data: data(&record.data),
        }
    }

    fn text(&self) -> String {
        let Self { name, ttl, class, record_type, data } = self;
        visible_line(&[name, &ttl.to_string(), class, record_type, data])
    }
}

impl Answer {
    /// What a server replied to a question.
    pub(super) fn of(question: &Question, server: SocketAddr, reply: &Reply) -> Self {
        let message = &reply.message;
        let lines = |records: &[Record]| records.iter().map(Line::of).collect();
        Self {
            name: question.name.to_ascii(),
            record_type: question.record_type.to_string(),
            server,
            transport: match reply.transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            },
            status: status(message.metadata.response_code),
            flags: flags(message),
            answers: lines(&message.answers),
            authority: lines(&message.authorities),
            additional: lines(&message.additionals),
            query_time_ms: (reply.took.as_secs_f64() * 1e6).round() / 1e3,
            message_bytes: reply.bytes,
            id: message.metadata.id,
            udp_payload: message.edns.as_ref().map(hickory_proto::op::Edns::max_payload),
        }
    }

    /// The data of the answers, a line each.
    pub(super) fn short(&self) -> String {
        self.answers.iter().map(|line| visible(&line.data) + "\n").collect()
    }

    /// As dig prints it.
    pub(super) fn page(&self) -> String {
        let Self { name, record_type, status, id, server, .. } = self;
        let edns = usize::from(self.udp_payload.is_some());
        let mut page = format!(
            "; <<>> isthmus dig <<>> {name} {record_type}\n;; Got answer:\n\
             ;; ->>HEADER<<- opcode: QUERY, status: {status}, id: {id}\n\
             ;; flags: {}; QUERY: 1, ANSWER: {}, AUTHORITY: {}, ADDITIONAL: {}\n\n",
            self.flags.join(" "),
            self.answers.len(),
            self.authority.len(),
            self.additional.len() + edns,
        );
        if let Some(payload) = self.udp_payload {
            page.push_str(&format!(";; OPT PSEUDOSECTION:\n; EDNS: version: 0, flags:; udp: {payload}\n"));
        }
        page.push_str(&format!(";; QUESTION SECTION:\n;{}\n\n", visible_line(&[name, "", "IN", record_type])));
        for (title, lines) in
            [("ANSWER", &self.answers), ("AUTHORITY", &self.authority), ("ADDITIONAL", &self.additional)]
        {
            if !lines.is_empty() {
                let lines: String = lines.iter().map(|line| line.text() + "\n").collect();
                page.push_str(&format!(";; {title} SECTION:\n{lines}\n"));
            }
        }
        page.push_str(&format!(
            ";; Query time: {:.0} msec\n;; SERVER: {}#{} ({})\n;; MSG SIZE  rcvd: {}\n",
            self.query_time_ms,
            server.ip(),
            server.port(),
            self.transport.to_ascii_uppercase(),
            self.message_bytes,
        ));
        page
    }
}

/// Tabs between columns, as dig does; names and data are the server's, so they are shown with care.
fn visible_line(columns: &[&str]) -> String {
    let columns: Vec<_> = columns.iter().map(|column| visible(column)).collect();
    columns.join("\t")
}

/// In presentation format (RFC 1035, 5.1). Texts are quoted here; types that cannot be printed have no data.
fn data(data: &RData) -> String {
    if let RData::TXT(text) = data {
        let quoted = text.txt_data.iter().map(|part| {
            let escaped: String = part.iter().map(|byte| escape(*byte)).collect();
            format!("\"{escaped}\"")
        });
        return quoted.collect::<Vec<_>>().join(" ");
    }
    let mut text = String::new();
    // Formatting some types fails by design, which `to_string` would panic on.
    let _ = write!(text, "{data}");
    text
}

fn escape(byte: u8) -> String {
    match byte {
        b'"' | b'\\' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\{byte:03}"),
    }
}

/// As dig names them.
fn status(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::BADVERS => "BADVERS".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

fn flags(message: &Message) -> Vec<&'static str> {
    let header = &message.metadata;
    let all = [
        ("qr", true),
        ("aa", header.authoritative),
        ("tc", header.truncation),
        ("rd", header.recursion_desired),
        ("ra", header.recursion_available),
        ("ad", header.authentic_data),
        ("cd", header.checking_disabled),
    ];
    all.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{OPT, TXT};

    #[test]
    fn texts_are_quoted_and_escaped() {
        let text = TXT::from_bytes(vec![b"1.0.0".as_slice(), b"a\"b\x07"]);
        assert_eq!(data(&RData::TXT(text)), "\"1.0.0\" \"a\\\"b\\007\"");
    }

    #[test]
    fn data_that_cannot_be_printed_panics_nobody() {
        assert_eq!(data(&RData::OPT(OPT::new(Vec::new()))), "");
    }
}
