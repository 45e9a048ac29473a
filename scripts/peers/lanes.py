"""The lanes and the systems in them: how each comes up, with two machines that reach each other by it."""

import functools
import json
import os
import subprocess
from pathlib import Path

from .measures import HTTP_PORT, PORT, RPC_PORT
from .place import address, await_that, ip, machines, run, veth

ROOT = Path(__file__).resolve().parent.parent.parent
# Of all servers.
PORTS = [PORT, RPC_PORT, HTTP_PORT]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


@functools.cache
def flatnet_binary():
    run("cargo", "build", "--release", "--locked", "--quiet", cwd=ROOT)
    return TARGET / "release" / "flatnet"


def forward(namespace):
    """Lets the kernel forward in a namespace."""
    run("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")


# One node: two machines on it.


def same_node_kernel(place):
    """veth pairs at a bridge."""
    bridge, ends = place.namespace("bridge"), machines(place, "10.9.0.2", "10.9.0.3")
    ip("-n", bridge, "link", "add", "br0", "type", "bridge")
    ip("-n", bridge, "link", "set", "br0", "up")
    for number, machine in enumerate(ends):
        veth(bridge, f"port{number}", machine)
        ip("-n", bridge, "link", "set", f"port{number}", "master", "br0")
        address(machine, "other", 24, 1500)
    return ends


POD = """---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}, annotations: {{flatnet.dev/ip: {address}, flatnet.dev/attach: "netns:{namespace}"}}}}
spec:
  nodeName: {node}
  containers: [{{name: main, image: flatnet/pause}}]
"""

TOPOLOGY = """apiVersion: flatnet.dev/v1
kind: Topology
metadata: {name: peers}
spec:
  workers: 1
  nodes: [{name: node-1, address: 192.168.66.11/24, podCIDR: 10.1.15.0/24}]
"""
# Longer than what is between two requests, and over before another system is measured.
SPINNING = "  poll: 20ms\n"


def flatnet_home(place):
    """Directories of an instance's own."""
    return {**os.environ, "XDG_RUNTIME_DIR": str(place.directory), "XDG_STATE_HOME": str(place.directory)}


def has_started(place, name):
    """An instance runs in the background: it goes with its place."""
    home = flatnet_home(place)
    place.undo.callback(run, flatnet_binary(), "down", "--name", name, env=home)
    status = json.loads(run(flatnet_binary(), "status", "-o", "json", env=home))
    place.processes += [one["pid"] for one in status if one["name"] == name]


def same_node_flatnet(place, poll=""):
    """Two pods of a node, each a namespace."""
    ends = machines(place, "10.1.15.2", "10.1.15.3")
    pods = [POD.format(name=f"pod-{n}", node="node-1", **m._asdict()) for n, m in enumerate(ends)]
    file, home = place.path("peers.yaml", TOPOLOGY + poll + "".join(pods)), flatnet_home(place)
    run(flatnet_binary(), "up", "-d", "-f", file, env=home)
    has_started(place, "peers")
    return ends


def same_node_flatnet_spinning(place):
    """The same with a worker that looks for frames all the time, on a core that others want, too."""
    return same_node_flatnet(place, SPINNING)


def taps_of(ends, namespaces, names, mtu=1500):
    """Has TAPs that a program made become the machines' eth0, and waits until they run."""
    for machine, namespace, name in zip(ends, namespaces, names):
        await_that(f"{name} is there", lambda namespace=namespace, name=name: interface_is(namespace, name))
        # Whole in one datagram, if it gets there.
        ip("-n", namespace, "link", "set", name, "gso_max_size", 62000)
        ip("-n", namespace, "link", "set", name, "netns", machine.namespace, "name", "other")
        address(machine, "other", 24, mtu)
    return ends


def interface_is(namespace, name):
    return subprocess.run(["ip", "-n", namespace, "link", "show", name], capture_output=True, check=False).returncode == 0


@functools.cache
def bench_program(name):
    """One of the programs in `benches` that others are compared with."""
    built = run("cargo", "build", "--release", "--locked", "--quiet", "--bench", name, "--message-format", "json", cwd=ROOT)
    built = [line for line in map(json.loads, built.splitlines()) if line.get("executable")]
    # The product is built for it, too.
    return next(line["executable"] for line in built if line["target"]["name"] == name)


def between_taps(place, program):
    """Two TAPs and a program that takes a frame from one and puts it into the other."""
    bridge, ends = place.namespace("bridge"), machines(place, "10.9.0.2", "10.9.0.3")
    place.start(bench_program(program), "tap0", "tap1", namespace=bridge)
    return taps_of(ends, [bridge, bridge], ["tap0", "tap1"])


def same_node_naive_tap(place):
    """One by one, without offloads, by the crate tun-tap."""
    return between_taps(place, "naive_tap")


def same_node_bare(place):
    """Superframes whole, by the engine's calls and nothing else of it: the bound of what goes through a program."""
    return between_taps(place, "bare")


def same_node_vde(place):
    """vde_switch with two TAPs."""
    bridge, ends = place.namespace("bridge"), machines(place, "10.9.0.2", "10.9.0.3")
    switch = place.path("switch")
    # It ends with its input.
    place.start("vde_switch", "-s", switch, namespace=bridge, stdin=subprocess.PIPE)
    await_that("the switch listens", (switch / "ctl").exists)
    for name in ["tap0", "tap1"]:
        place.start("vde_plug2tap", "-s", switch, name, namespace=bridge)
    return taps_of(ends, [bridge, bridge], ["tap0", "tap1"])


def same_node_ovs(place):
    """Open vSwitch' userspace datapath with two ports of its own, which are TAPs."""
    bridge, ends = place.namespace("bridge"), machines(place, "10.9.0.2", "10.9.0.3")
    database, socket = place.path("conf.db"), place.path("db.sock")
    home = {**os.environ, **dict.fromkeys(["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"], str(place.directory))}
    run("ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema", env=home)
    place.start("ovsdb-server", database, f"--remote=punix:{socket}", namespace=bridge, env=home)
    await_that("the database listens", socket.exists)
    control = ["ip", "netns", "exec", bridge, "ovs-vsctl", f"--db=unix:{socket}"]
    run(*control, "--no-wait", "init", env=home)
    place.start("ovs-vswitchd", f"unix:{socket}", namespace=bridge, env=home)
    run(*control, "--timeout=10", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", env=home)
    for name in ["tap0", "tap1"]:
        run(*control, "--timeout=10", "add-port", "br0", name, "--", "set", "interface", name, "type=internal", env=home)
    return taps_of(ends, [bridge, bridge], ["tap0", "tap1"])


# Two nodes with a cable between them, and a machine on each.


def underlay(place):
    nodes = [place.namespace("node-1"), place.namespace("node-2")]
    ip("-n", nodes[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", nodes[1])
    for number, node in enumerate(nodes):
        ip("-n", node, "address", "add", f"192.168.66.1{number + 1}/24", "dev", "eth0")
        ip("-n", node, "link", "set", "eth0", "up")
    return nodes


def bridged(place, nodes, mtu, subnets=("10.9.0", "10.9.0"), last=(1, 2)):
    """A bridge on each node with a machine at it."""
    ends = machines(place, *(f"{subnet}.{number}" for subnet, number in zip(subnets, last)))
    for node, machine in zip(nodes, ends):
        ip("-n", node, "link", "add", "br0", "type", "bridge")
        ip("-n", node, "link", "set", "br0", "mtu", mtu, "up")
        veth(node, "port", machine)
        ip("-n", node, "link", "set", "port", "mtu", mtu, "master", "br0")
    return ends


def two_nodes_kernel(place):
    """The kernel's VXLAN, as flannel sets it up: VNI 1, port 8472."""
    nodes = underlay(place)
    ends = bridged(place, nodes, 1450)
    for number, (node, machine) in enumerate(zip(nodes, ends)):
        tunnel = ["vxlan", "id", 1, "dstport", 8472, "nolearning", "dev", "eth0"]
        own, other = f"192.168.66.1{number + 1}", f"192.168.66.1{2 - number}"
        ip("-n", node, "link", "add", "flannel.1", "type", *tunnel, "local", own, "remote", other)
        ip("-n", node, "link", "set", "flannel.1", "mtu", 1450, "master", "br0", "up")
        address(machine, "other", 24, 1450)
    return ends


def two_nodes_hostgw(place):
    """Routes of the kernel's."""
    nodes, subnets = underlay(place), ("10.1.15", "10.1.20")
    ends = bridged(place, nodes, 1500, subnets, (2, 2))
    for number, (node, machine) in enumerate(zip(nodes, ends)):
        ip("-n", node, "address", "add", f"{subnets[number]}.1/24", "dev", "br0")
        ip("-n", node, "route", "add", f"{subnets[1 - number]}.0/24", "via", f"192.168.66.1{2 - number}")
        forward(node)
        address(machine, "other", 24, 1500, f"{subnets[number]}.1")
    return ends


def two_nodes_flatnet(place, *flags):
    """`flatnet node` in each node's namespace."""
    nodes, subnets = underlay(place), ("10.1.15", "10.1.20")
    ends = machines(place, *(f"{subnet}.2" for subnet in subnets))
    for number, (node, machine) in enumerate(zip(nodes, ends)):
        routes = place.path(f"routes-{number}.yaml", f"{subnets[1 - number]}.0/24: 192.168.66.1{2 - number}\n")
        flatnet_node(place, node, number + 1, machine, "--routes", routes, *flags)
    return ends


def two_nodes_flatnet_vxlan(place):
    """The same over a VXLAN."""
    return two_nodes_flatnet(place, "--backend", "vxlan")


def two_nodes_flatnet_hostgw(place):
    """The same without a tunnel."""
    return two_nodes_flatnet(place, "--backend", "host-gw")


def flatnet_node(place, namespace, number, machine, *flags):
    """Starts a node in a namespace, with a machine for a pod."""
    name, home = f"node-{number}", flatnet_home(place)
    pods = place.path(f"{name}.yaml", POD.format(name="pod", node=name, **machine._asdict()))
    subnet = machine.address.rsplit(".", 1)[0]
    own = ["--name", name, "--address", f"192.168.66.1{number}/24", "--pod-cidr", f"{subnet}.0/24", "-f", pods, "-d"]
    run("ip", "netns", "exec", namespace, flatnet_binary(), "node", *own, *flags, env=home)
    has_started(place, name)


def two_nodes_bare(place):
    """A TAP and a socket on each node, by the engine's calls and nothing else of it: the bound of a tunnel in a program."""
    nodes, ends = underlay(place), machines(place, "10.9.0.2", "10.9.0.3")
    for number, node in enumerate(nodes):
        own, other = f"192.168.66.1{number + 1}", f"192.168.66.1{2 - number}"
        place.start(bench_program("bare"), "tap0", own, other, namespace=node)
    return taps_of(ends, nodes, ["tap0", "tap0"], 1450)


def two_nodes_flannel(place, flanneld):
    """flannel's own udp backend, a flanneld on each node over an etcd that both reach."""
    nodes, subnets = underlay(place), []
    home = place.path("etcd")
    client = "http://192.168.66.11:2379"
    place.start("etcd", "--data-dir", home, "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", "http://127.0.0.1:2380", namespace=nodes[0])
    ask = ["ip", "netns", "exec", nodes[0], "etcdctl", "--endpoints", client]
    await_that("etcd answers", lambda: subprocess.run([*ask, "get", "x"], capture_output=True, check=False).returncode == 0)
    run(*ask, "put", "/coreos.com/network/config", '{"Network": "10.1.0.0/16", "Backend": {"Type": "udp", "Port": 8285}}')
    for number, node in enumerate(nodes):
        lease = place.path(f"subnet-{number}.env")
        place.start(flanneld, "--etcd-endpoints", client, "--iface", "eth0", "--subnet-file", lease, namespace=node)
        await_that("flanneld has a lease", lease.exists)
        subnets.append(dict(line.split("=", 1) for line in lease.read_text().split())["FLANNEL_SUBNET"].rsplit(".", 1)[0])
    ends = bridged(place, nodes, 1472, subnets, (2, 2))
    for node, machine, subnet in zip(nodes, ends, subnets):
        ip("-n", node, "address", "add", f"{subnet}.1/24", "dev", "br0")
        forward(node)
        address(machine, "other", 24, 1472, f"{subnet}.1")
    return ends


# A machine on a node that is masqueraded, and one outside that knows nothing of it.

NODE = "192.168.66.11"
POSTROUTING = "type nat hook postrouting priority srcnat"


def outside(place):
    """The node's namespace, a machine on it, and one at the other end of the node's cable."""
    node, inner, outer = place.namespace("node-1"), *machines(place, "10.1.15.2", "192.168.66.50")
    veth(node, "eth0", outer)
    ip("-n", node, "address", "add", f"{NODE}/24", "dev", "eth0")
    address(outer, "other", 24, 1500)
    return node, inner, outer


def outside_kernel(place):
    """The kernel's routes and nftables' masquerade."""
    node, inner, outer = outside(place)
    routed(node, inner)
    masquerade = "oifname eth0 masquerade"
    run("ip", "netns", "exec", node, "nft", f"table ip nat {{ chain out {{ {POSTROUTING}; {masquerade}; }}; }}")
    return [inner, outer]


def routed(node, inner):
    """A machine at a router that the kernel is."""
    veth(node, "port", inner)
    ip("-n", node, "address", "add", "10.1.15.1/24", "dev", "port")
    address(inner, "other", 24, 1500, "10.1.15.1")
    forward(node)


def outside_flatnet(place, *flags):
    """`flatnet node --uplink`, with half of all ports: nothing else of this host wants one."""
    node, inner, outer = outside(place)
    run("ip", "netns", "exec", node, "sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=32768-60999")
    flatnet_node(place, node, 1, inner, "--uplink", "--masquerade-ports", "32768-65535", *flags)
    return [inner, outer]


# The other way round: from outside to a Service of the machine's, by a port of the node.

def node_port_kernel(place):
    """nftables translates both addresses, as kube-proxy has it do for a NodePort."""
    node, inner, outer = outside(place)
    routed(node, inner)
    ports = f"ip daddr {NODE} meta l4proto {{ tcp, udp }} th dport {min(PORTS)}-{max(PORTS)} dnat to {inner.address}"
    first = f"chain in {{ type nat hook prerouting priority dstnat; {ports}; }}"
    last = f"chain out {{ {POSTROUTING}; ct status dnat masquerade; }}"
    run("ip", "netns", "exec", node, "nft", f"table ip nat {{ {first}; {last}; }}")
    return [outer, inner._replace(asked=NODE)]


SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: pod}
spec:
  type: NodePort
  selector: {app: pod}
  ports:
"""


def node_port_flatnet(place):
    """A Service of type NodePort."""
    ports = "".join(
        f"  - {{name: {kind}-{port}, protocol: {kind.upper()}, port: {port}, nodePort: {port}}}\n" for port in PORTS for kind in ["tcp", "udp"])
    inner, outer = outside_flatnet(place, "--file", place.path("service.yaml", SERVICE + ports))
    return [outer, inner._replace(asked=NODE)]


LANES = {
    "same-node": {
        "kernel": same_node_kernel,
        "flatnet": same_node_flatnet,
        "flatnet-spinning": same_node_flatnet_spinning,
        "bare": same_node_bare,
        "naive-tap": same_node_naive_tap,
        "vde": same_node_vde,
        "ovs": same_node_ovs,
    },
    "two-nodes": {
        "kernel": two_nodes_kernel,
        "kernel-hostgw": two_nodes_hostgw,
        "flatnet": two_nodes_flatnet,
        "flatnet-vxlan": two_nodes_flatnet_vxlan,
        "flatnet-hostgw": two_nodes_flatnet_hostgw,
        "bare": two_nodes_bare,
        "flannel": two_nodes_flannel,
    },
    "outside": {"kernel": outside_kernel, "flatnet": outside_flatnet},
    "node-port": {"kernel": node_port_kernel, "flatnet": node_port_flatnet},
}
# Lanes that have one way only: each is the other's.
ONE_WAY = {"outside", "node-port"}
