//! `flatnet show`: a node's tables, printed as `bridge fdb`, `ip neigh`, `ip route`, `ipvsadm -Ln`, `conntrack -L` do.
//!
//! Asks the instance for the rows and prints them. Invariant: `-o json` is what the instance sent.
//!
//! May depend on [`crate::client`]. Read first: [`crate::instance`], the manual pages of those tools.

use std::fmt::Write as _;
use std::process::ExitCode;

use hyper::Method;
use miette::{IntoDiagnostic, WrapErr};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::{Output, Show, Table};
use crate::client::{self, Client, encode};
use crate::output::{plain_table, print, print_json};
use crate::views::{DropEntry, FdbEntry, FlowEntry, Half, NeighborEntry, RouteEntry, ServiceEntry};

/// Runs the command.
///
/// # Errors
/// [`client::ClientError`].
pub fn run(arguments: &Show) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let path = format!("/v1/show/{}?node={}", arguments.table.name(), encode(&arguments.node));
    let rows: Value = client::run(client.ask(Method::GET, &path))?;
    match arguments.output {
        Output::Json => print_json(&rows)?,
        Output::Table => print(&text(arguments.table, rows)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(table: Table, rows: Value) -> miette::Result<String> {
    Ok(match table {
        Table::Fdb => lines(&read(rows)?, fdb),
        Table::Neighbors => lines(&read(rows)?, neighbor),
        Table::Routes => lines(&read(rows)?, route),
        Table::Services => services(&read::<ServiceEntry>(rows)?),
        Table::Flows => lines(&read(rows)?, flow),
        Table::Drops => drops(&read::<DropEntry>(rows)?),
    })
}

fn read<T: DeserializeOwned>(rows: Value) -> miette::Result<Vec<T>> {
    serde_json::from_value(rows).into_diagnostic().wrap_err("the running network is of another version")
}

fn lines<T>(rows: &[T], line: impl Fn(&T) -> String) -> String {
    rows.iter().map(|row| line(row) + "\n").collect()
}

fn fdb(row: &FdbEntry) -> String {
    let how = match row.age {
        Some(age) => format!("used {}", age as u64),
        None => "static".to_owned(),
    };
    format!("{} dev {} master {} {how}", row.mac, row.device, row.bridge)
}

fn neighbor(row: &NeighborEntry) -> String {
    let mac = row.mac.as_ref().map_or(String::new(), |mac| format!("lladdr {mac} "));
    format!("{} dev {} {mac}{}", row.address, row.device, row.state)
}

fn route(row: &RouteEntry) -> String {
    let mut line = row.destination.clone();
    if let Some(via) = row.via {
        let _ = write!(line, " via {via}");
    }
    let _ = write!(line, " dev {} proto {}", row.device, row.protocol);
    if let Some(source) = row.source {
        let _ = write!(line, " scope link src {source}");
    }
    line
}

fn services(rows: &[ServiceEntry]) -> String {
    let mut text = String::from(
        "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
    );
    for row in rows {
        let flags = row.persistent.map_or_else(String::new, |seconds| format!(" persistent {seconds}"));
        let policy = if row.policy == "Local" { ", only backends on the node" } else { "" };
        let _ = writeln!(
            text,
            "{:4} {}:{} {}{flags}  # {}{policy}",
            row.protocol, row.address, row.port, row.scheduler, row.service
        );
        let forward = match row.forwarding.as_str() {
            "dr" => "Route",
            "tun" => "Tunnel",
            _ => "Masq",
        };
        for backend in &row.backends {
            let address = format!("{}:{}", backend.address, backend.port);
            let _ = writeln!(
                text,
                "  -> {address:<28} {forward:<7} {:<6} {:<10} {}",
                backend.weight, backend.active, backend.inactive
            );
        }
    }
    text
}

fn flow(row: &FlowEntry) -> String {
    let mut line = format!("{:8} {} {}", row.protocol, row.number, row.timeout);
    if let Some(state) = &row.state {
        let _ = write!(line, " {state}");
    }
    let (is_icmp, request) = (row.protocol == "icmp", row.original.destination_port);
    let half = |half: &Half| {
        let Half { source, destination, source_port, destination_port } = half;
        // An echo's request has (identifier, type) in place of ports, the answer (type of the request, identifier).
        let ports = match (is_icmp, half == &row.original) {
            (true, true) => format!("type={request} code=0 id={source_port}"),
            (true, false) => {
                format!("type={} code=0 id={destination_port}", if request == 8 { 0 } else { request + 1 })
            }
            (false, _) => format!("sport={source_port} dport={destination_port}"),
        };
        format!("src={source} dst={destination} {ports}")
    };
    let unreplied = if row.answered { "" } else { " [UNREPLIED]" };
    let assured = if row.assured { " [ASSURED]" } else { "" };
    let _ = write!(line, " {}{unreplied} {}{assured}", half(&row.original), half(&row.reply));
    line
}

fn drops(rows: &[DropEntry]) -> String {
    if rows.is_empty() {
        return "nothing was dropped\n".to_owned();
    }
    let mut table = plain_table(["REASON", "COUNT", "MEANING", "HINT"]);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    for row in rows {
        table.add_row([row.reason.clone(), row.count.to_string(), row.meaning.clone(), row.hint.clone()]);
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::BackendEntry;

    /// As `ipvsadm -Ln` of a director does: forwarding by its names, persistence in seconds.
    #[test]
    fn services_are_printed_as_ipvsadm_does() {
        let backend =
            BackendEntry { address: [10, 1, 15, 3].into(), port: 80, weight: 3, active: 2, inactive: 1 };
        let row = ServiceEntry {
            protocol: "TCP".into(),
            address: [10, 96, 0, 10].into(),
            port: 80,
            scheduler: "wlc".into(),
            forwarding: "dr".into(),
            persistent: Some(10_800),
            policy: "Local".into(),
            service: "default/web:http".into(),
            backends: vec![backend],
        };
        let text =
            services(&[row.clone(), ServiceEntry { forwarding: "tun".into(), persistent: None, ..row }]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "TCP  10.96.0.10:80 wlc persistent 10800  # default/web:http, only backends on the node",
                "  -> 10.1.15.3:80                 Route   3      2          1",
                "TCP  10.96.0.10:80 wlc  # default/web:http, only backends on the node",
                "  -> 10.1.15.3:80                 Tunnel  3      2          1",
            ]
        );
    }
}
