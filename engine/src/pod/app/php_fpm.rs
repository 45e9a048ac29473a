//! A FastCGI responder: the page says which pod computed it and for which request.
//!
//! nginx of the same pod reaches it at localhost:9000, others through a Service. Where a volume is mounted at the script's document root, the
//! script must be there: its text is the page, and each `<?php … ?>` in it becomes those lines, for PHP itself is not run. Invariants: one request at a time per connection,
//! as PHP does; parameters are bounded. Depends on `fastcgi`, `session`. Read first: `fastcgi.rs`.

use super::super::socket::{Event, TcpId};
use super::super::sockets::Sockets;
use super::connection;
use super::fastcgi::{self, Kind, Parsed, Record};
use super::session::Session;
use std::collections::BTreeMap;

/// Octets of a request's parameters.
const PARAMETERS_LIMIT: usize = 64 * 1024;
const FLAG_KEEP_CONNECTION: u8 = 1;

#[derive(Debug, Default)]
struct Responder {
    session: Session,
    keep_connection: bool,
    parameters: Vec<u8>,
    body: usize,
}

/// The application.
#[derive(Debug, Default)]
pub(in super::super) struct PhpFpm {
    responders: BTreeMap<TcpId, Responder>,
}

impl PhpFpm {
    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        let Some(id) = connection(event) else { return };
        let responder = self.responders.entry(id).or_default();
        responder.session.fill(id, sockets);
        loop {
            match fastcgi::parse(&responder.session.input) {
                Parsed::Record(record, length) => {
                    responder.session.input.drain(..length);
                    responder.take(&record, sockets);
                }
                Parsed::Incomplete => break,
                Parsed::Malformed => {
                    responder.session.close_after = true;
                    break;
                }
            }
        }
        if responder.session.drain(id, sockets) {
            self.responders.remove(&id);
        }
    }
}

impl Responder {
    fn take(&mut self, record: &Record, sockets: &Sockets<'_, '_>) {
        match record.kind {
            Kind::BeginRequest => {
                self.keep_connection =
                    record.content.get(2).is_some_and(|flags| flags & FLAG_KEEP_CONNECTION != 0);
                self.parameters.clear();
                self.body = 0;
            }
            Kind::Params if self.parameters.len() + record.content.len() <= PARAMETERS_LIMIT => {
                self.parameters.extend_from_slice(&record.content);
            }
            Kind::Stdin if record.content.is_empty() => self.answer(record.request, sockets),
            Kind::Stdin => self.body += record.content.len(),
            Kind::Params | Kind::AbortRequest => self.session.close_after = true,
            Kind::EndRequest | Kind::Stdout | Kind::Stderr | Kind::Unknown(_) => {}
        }
    }

    fn answer(&mut self, request: u16, sockets: &Sockets<'_, '_>) {
        let parameters = fastcgi::parse_parameters(&self.parameters).unwrap_or_default();
        let value = |name: &str| {
            parameters.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str()).to_owned()
        };
        let facts = format!(
            "pod: {}\naddress: {}\nscript: {}\nclient: {}\nbody: {} octets\n",
            sockets.pod.name,
            sockets.pod.address,
            value("REQUEST_URI"),
            value("REMOTE_ADDR"),
            self.body
        );
        let script = value("SCRIPT_FILENAME");
        let page = if sockets.files.is_mounted(&value("DOCUMENT_ROOT")) {
            let text = sockets.files.read(&script);
            text.map(|text| render(&String::from_utf8_lossy(&text), &facts))
        } else {
            Ok(facts)
        };
        let page = match page {
            Ok(page) => {
                format!("Content-type: text/html; charset=UTF-8\r\nX-Powered-By: php-fpm\r\n\r\n{page}")
            }
            // As php-fpm answers for a primary script that it cannot open.
            Err(_) => String::from(
                "Status: 404 Not Found\r\nContent-type: text/html; charset=UTF-8\r\n\r\nFile not found.\n",
            ),
        };
        let mut bytes = Vec::new();
        fastcgi::write_stream(&mut bytes, Kind::Stdout, request, page.as_bytes());
        fastcgi::write_record(&mut bytes, Kind::EndRequest, request, &[0; 8]);
        self.session.push(&bytes);
        self.session.close_after = !self.keep_connection;
    }
}

/// Puts the facts in place of each part of a script that PHP would run.
fn render(script: &str, facts: &str) -> String {
    let mut page = String::new();
    let mut rest = script;
    while let Some((text, code)) = rest.split_once("<?") {
        page.push_str(text);
        page.push_str(facts);
        // The last tag may stay open. PHP takes one line break behind a closing one along.
        rest = code.split_once("?>").map_or("", |(_, rest)| rest.strip_prefix('\n').unwrap_or(rest));
    }
    page.push_str(rest);
    page
}
