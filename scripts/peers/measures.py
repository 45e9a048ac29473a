"""What is measured between two machines, from one to the other."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections import namedtuple
from pathlib import Path

from .place import run

# What is measured: its name, congestion control, where both ends run or what was offered, and the unit.
Measure = namedtuple("Measure", "name congestion placement unit")

# Megabits a second of datagrams of 64 bytes that are offered, of which the best delivery counts: beyond it a flood starves all.
OFFERED = [40, 80, 120, 160, 240, 320]
OFFERED_QUICK = [80, 160]
# Where servers listen, and by which they are asked: ports that a Service may have on every node.
PORT, RPC_PORT, HTTP_PORT = 30001, 30002, 30003


def inside(machine, *words):
    return ["ip", "netns", "exec", machine.namespace, *map(str, words)]


@contextlib.contextmanager
def served(machine, ready, *words):
    """Runs a server on a machine until it has said what it says when it is ready, and while it is asked."""
    server = subprocess.Popen(inside(machine, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        if not any(ready in line for line in iter(server.stdout.readline, "")):
            raise RuntimeError(f"{words[0]} ended before it was ready")
        yield
    finally:
        server.terminate()
        server.communicate()


def iperf(client, server, seconds, *words):
    with served(server, "listening", "iperf3", "-s", "-p", PORT, "--forceflush"):
        asks = ["iperf3", "-J", "-c", server.asked, "-p", PORT, "-t", seconds, *words]
        return json.loads(run(*inside(client, *asks)))["end"]


def stream(client, server, seconds, congestion, count):
    figures = iperf(client, server, seconds, "-C", congestion, "-P", count)
    return figures["sum_received"]["bits_per_second"] / 1e9


def datagrams(client, server, seconds, offered):
    """Thousands a second that arrive, of 64 bytes each."""
    of_all = iperf(client, server, seconds, "-u", "-l", 64, "-b", f"{offered}M")["sum"]
    return (of_all["packets"] - of_all["lost_packets"]) / of_all["seconds"] / 1e3


def round_trips(client, server, seconds, cores):
    """Median and 99th percentile of a request and its answer, in microseconds."""
    own, other = (["taskset", "-c", core] for core in cores)
    with served(server, "SERVER", *other, "sockperf", "server", "-i", server.address, "-p", RPC_PORT):
        asks = ["sockperf", "ping-pong", "--full-rtt", "-i", server.asked, "-p", RPC_PORT, "-m", 64, "-t", seconds]
        said = run(*inside(client, *own, *asks))
    return [float(re.search(rf"percentile {rank} *= *([0-9.]+)", said)[1]) for rank in ("50.000", "99.000")]


NGINX = """daemon off; master_process off; pid {home}/pid; error_log stderr notice;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
        uwsgi_temp_path {home}; scgi_temp_path {home}; server {{ listen {address}:{port}; return 200 "ok"; }} }}
"""


def connections(client, server, seconds):
    """Connections a second, each with one request and its answer."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "nginx.conf"
        file.write_text(NGINX.format(home=home, address=server.address, port=HTTP_PORT), encoding="utf-8")
        with served(server, "event method", "nginx", "-c", file, "-e", "stderr"):
            asks = ["wrk", "-t1", "-c32", f"-d{seconds}s", "-H", "Connection: close", f"http://{server.asked}:{HTTP_PORT}/"]
            said = run(*inside(client, *asks))
    return float(re.search(r"Requests/sec: *([0-9.]+)", said)[1])


def measures(quick):
    """All that is measured: a function of client, server and seconds for each, which gives as many figures; and the cores that what
    is between the two may use, unless it may use all."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text(encoding="ascii").split()
    every = []
    for congestion in ["cubic", "bbr"]:
        for count in [1, 4]:
            if congestion in available and not (quick and congestion == "bbr"):
                what = [Measure(f"tcp-{count}", congestion, None, "Gbit/s")]
                every.append((what, lambda *ends, c=congestion, n=count: [stream(*ends, c, n)], None))
    for offered in OFFERED_QUICK if quick else OFFERED:
        what = [Measure("udp-small", None, f"{offered} Mbit/s offered", "thousand/s")]
        every.append((what, lambda *ends, o=offered: [datagrams(*ends, o)], None))
    cores = sorted(os.sched_getaffinity(0))
    placements = {"one core": (cores[0], cores[0])} | ({"two cores": (cores[0], cores[1])} if len(cores) > 1 else {})
    for placement, pair in placements.items():
        what = [Measure(f"rr-{rank}", None, placement, "us") for rank in ("p50", "p99")]
        every.append((what, lambda *ends, p=pair: round_trips(*ends, p), pair))
    every.append(([Measure("connections", None, None, "1/s")], lambda *ends: [connections(*ends)], None))
    return every
