//! `flatnet get` and `flatnet delete`: the objects that a network holds, as kubectl shows them.
//!
//! Asks the instance. Invariants: `-o json` is a Kubernetes list of what the store holds; a column that kubectl has says
//! what kubectl's says.
//!
//! May depend on [`crate::client`], k8s-openapi. Read first: `agents/src/objects.rs`.

mod subnets;

use std::process::ExitCode;

use comfy_table::CellAlignment;
use flatnet_agents::objects::{DEFAULT_NAMESPACE, pod_name};
use hyper::Method;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{ContainerState, Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use miette::IntoDiagnostic;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::args::{Delete, Get, Kind, Output};
use crate::client::{self, Client, encode};
use crate::output::{plain_table, print, print_json};

/// Runs `flatnet get`.
///
/// # Errors
/// [`client::ClientError`].
pub fn run(arguments: &Get) -> miette::Result<ExitCode> {
    if arguments.kind == Kind::Subnets {
        return subnets::run(arguments);
    }
    if !arguments.etcd.etcd.is_empty() {
        return Err(subnets::SubnetsError::Objects(arguments.kind.name()).into());
    }
    let client = Client::find(arguments.selection.name.as_deref())?;
    let items: Vec<Value> =
        client::run(client.ask(Method::GET, &path(arguments.kind, arguments.object.as_deref())))?;
    match arguments.output {
        Output::Json => print_json(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?,
        Output::Table => print(&table(arguments.kind, items)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `flatnet delete`.
///
/// # Errors
/// [`client::ClientError`].
pub fn delete(arguments: &Delete) -> miette::Result<ExitCode> {
    let client = Client::find(arguments.selection.name.as_deref())?;
    let Delete { kind, object, .. } = arguments;
    let (): () = client::run(client.ask(Method::DELETE, &path(*kind, Some(object))))?;
    print(&format!("{} \"{object}\" deleted\n", kind.singular()))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns where objects of a kind are asked for, or one.
pub(crate) fn path(kind: Kind, name: Option<&str>) -> String {
    let query = name.map(|name| format!("?name={}", encode(name))).unwrap_or_default();
    format!("/v1/objects/{}{query}", kind.name())
}

fn table(kind: Kind, items: Vec<Value>) -> miette::Result<String> {
    match kind {
        Kind::Pods => rows(["NAME", "READY", "STATUS", "RESTARTS", "IP", "NODE"], items, pod),
        Kind::Services => rows(["NAME", "TYPE", "CLUSTER-IP", "PORT(S)", "SELECTOR"], items, service),
        Kind::Nodes => rows(["NAME", "STATUS", "INTERNAL-IP"], items, node),
        Kind::Endpointslices => rows(["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS"], items, slice),
        Kind::Subnets => rows(subnets::HEADER, items, |entry| subnets::row(&entry)),
    }
}

fn rows<T: DeserializeOwned, const N: usize>(
    header: [&str; N],
    items: Vec<Value>,
    row: impl Fn(T) -> [String; N],
) -> miette::Result<String> {
    if items.is_empty() {
        return Ok("there are none\n".to_owned());
    }
    let mut table = plain_table(header);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Left));
    for item in items {
        table.add_row(row(serde_json::from_value(item).into_diagnostic()?));
    }
    Ok(table.trim_fmt() + "\n")
}

fn name(object: &impl Metadata<Ty = ObjectMeta>) -> String {
    let metadata = object.metadata();
    let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    pod_name(namespace, metadata.name.as_deref().unwrap_or_default())
}

fn pod(pod: Pod) -> [String; 6] {
    let name = name(&pod);
    let status = pod.status.unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let wanted = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let ready = containers.iter().filter(|container| container.ready).count();
    // As kubectl: what a container waits for or ended with says more than the phase.
    let phase = status.phase.unwrap_or_else(|| "Pending".to_owned());
    let reason = containers
        .iter()
        .filter(|container| !container.ready)
        .find_map(|container| container.state.as_ref().and_then(reason));
    // One that has done its work does not say that the pod has.
    let reason = match reason {
        Some(ended) if ended == "Completed" && ready > 0 => {
            let conditions = status.conditions.unwrap_or_default();
            let is_ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
            Some(if is_ready { "Running" } else { "NotReady" }.to_owned())
        }
        reason => reason,
    };
    [
        name,
        format!("{ready}/{wanted}"),
        reason.unwrap_or(phase),
        containers.iter().map(|container| container.restart_count).sum::<i32>().to_string(),
        status.pod_ip.unwrap_or_else(|| "<none>".to_owned()),
        pod.spec.and_then(|spec| spec.node_name).unwrap_or_else(|| "<none>".to_owned()),
    ]
}

fn reason(state: &ContainerState) -> Option<String> {
    let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
    waiting.or_else(|| state.terminated.as_ref().and_then(|terminated| terminated.reason.clone()))
}

fn service(service: Service) -> [String; 5] {
    let name = name(&service);
    let spec = service.spec.unwrap_or_default();
    let selector = spec.selector.unwrap_or_default();
    let selector: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    [
        name,
        spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        spec.cluster_ip.unwrap_or_else(|| "<none>".to_owned()),
        listed(spec.ports.unwrap_or_default().iter().map(service_port)),
        listed(selector.into_iter()),
    ]
}

fn service_port(port: &ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match port.node_port {
        Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
        None => format!("{}/{protocol}", port.port),
    }
}

fn node(node: Node) -> [String; 3] {
    let status = node.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let said = match ready.map(|condition| &*condition.status) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    };
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses.into_iter().find(|address| address.type_ == "InternalIP");
    [
        node.metadata.name.unwrap_or_default(),
        said.to_owned(),
        internal.map_or_else(|| "<none>".to_owned(), |address| address.address),
    ]
}

fn slice(slice: EndpointSlice) -> [String; 4] {
    let name = name(&slice);
    let ports = slice.ports.unwrap_or_default();
    let ports = ports.into_iter().filter_map(|port| port.port).map(|port| port.to_string());
    let ready = slice.endpoints.into_iter().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    let addresses = ready.flat_map(|endpoint| endpoint.addresses);
    [name, slice.address_type, listed(ports), listed(addresses)]
}

fn listed(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    if words.is_empty() { "<none>".to_owned() } else { words.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    #[test]
    fn a_pods_status_says_what_kubectls_does() {
        let running = || json!({"ready": true, "state": {"running": {}}});
        let ended = |reason: &str| json!({"ready": false, "state": {"terminated": {"reason": reason, "exitCode": 0}}});
        let waits = || json!({"ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let cases: [(Vec<Value>, &str, &str); 7] = [
            (vec![running()], "True", "Running"),
            (vec![ended("Completed"), running()], "False", "NotReady"),
            (vec![ended("Completed"), running()], "True", "Running"),
            (vec![ended("Completed"), ended("Completed")], "False", "Completed"),
            (vec![ended("Error"), running()], "False", "Error"),
            (vec![running(), waits()], "False", "CrashLoopBackOff"),
            (vec![ended("Error"), waits()], "False", "Error"),
        ];
        for (mut containers, is_ready, expected) in cases {
            for container in &mut containers {
                let rest = json!({"name": "c", "image": "i", "imageID": "", "restartCount": 0});
                container.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            }
            let status = json!({"phase": "Running", "containerStatuses": containers,
                "conditions": [{"type": "Ready", "status": is_ready}]});
            let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
            assert_eq!(super::pod(pod)[2], expected, "{status}");
        }
    }
}
