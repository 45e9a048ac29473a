//! Networks with real pods, for tests that look at those from outside.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Home, await_that};

pub const NODES: &str = "\
apiVersion: flatnet.dev/v1
kind: Topology
metadata: {name: real}
spec:
  nodes:
    - {name: node-1, address: 192.168.66.11/24}
    - {name: node-2, address: 192.168.66.12/24}
  seed: 7
";

/// A real pod of one container; `rest` are further fields of both.
pub fn pod(name: &str, node: &str, command: &str, (of_pod, of_container): (&str, &str)) -> String {
    let command = serde_json::json!(["sh", "-c", command]);
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  \
         runtimeClassName: netns\n{of_pod}  containers:\n    - name: main\n      command: {command}\n{of_container}"
    )
}

pub const SIMULATED: &str = "\
---
apiVersion: v1
kind: Pod
metadata: {name: simulated, labels: {app: simulated}}
spec: {nodeName: node-2, containers: [{name: nginx, image: nginx}]}
";

/// A Service of the pods of a name.
pub fn service(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {address}\n  selector: {{app: \
         {name}}}\n  ports: [{{port: 80}}]\n"
    )
}

/// A home with a network of these documents.
pub fn network(documents: &[&str]) -> Home {
    let home = Home::new();
    let file = home.file("real.yaml");
    std::fs::write(&file, documents.concat()).unwrap();
    home.text(&format!("up -d -f {}", file.display()));
    home
}

/// The directory of a pod's files.
pub fn files(home: &Home, pod: &str) -> PathBuf {
    files_of(home, "default", pod)
}

pub fn files_of(home: &Home, namespace: &str, pod: &str) -> PathBuf {
    let all = std::fs::read_dir(home.file("flatnet/real.pods")).unwrap();
    let mut paths = all.map(|entry| entry.unwrap().path());
    let prefix = format!("{namespace}_{pod}_");
    paths.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).unwrap()
}

/// What a pod's container has written, without times.
pub fn log(home: &Home, pod: &str) -> String {
    let text = std::fs::read_to_string(files(home, pod).join("main/0.log")).unwrap_or_default();
    // The last one may not have been written to its end.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect()
}

/// The status of a pod as people read it.
pub fn status(home: &Home, pod: &str) -> String {
    let table = home.text("get pods");
    let line = table.lines().find(|line| line.starts_with(&format!("{pod} "))).unwrap();
    line.split_whitespace().nth(2).unwrap().to_owned()
}

/// Asks a web server until it answers, and prints what that says.
pub fn fetch(address: &str) -> String {
    format!(
        "until python3 -c 'import urllib.request as r; print(r.urlopen(\"http://{address}/\", timeout=5).read().decode())'; do \
         sleep 0.1; done 2>/dev/null"
    )
}

/// The program of a container's directory.
pub fn process(state: &Path) -> Pid {
    let file = state.join("pid");
    await_that("it has begun", || file.exists());
    Pid::from_raw(std::fs::read_to_string(file).unwrap().parse().unwrap()).unwrap()
}

pub fn is_there(process: Pid) -> bool {
    let Ok(file) = pidfd_open(process, PidfdFlags::empty()) else { return false };
    let mut fds = [rustix::event::PollFd::new(&file, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 0
}
