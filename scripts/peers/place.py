"""What a system has on this machine while it is measured: namespaces, interfaces, processes, files."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections import namedtuple
from pathlib import Path

START_LIMIT = 10.0

# A machine: its namespace, its address, and the one that others ask for it.
Machine = namedtuple("Machine", "namespace address asked")


def run(*words, **options):
    """Runs a command to its end and returns what it said; what it complained of comes with the error."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def ip(*words):
    return run("ip", *words)


def await_that(what, holds):
    """Waits until something holds that another process brings about."""
    end = time.monotonic() + START_LIMIT
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"after {START_LIMIT:.0f} s still not so: {what}")
        time.sleep(0.01)


class Place:
    """What one system has on this machine: a directory, namespaces, processes. All of it goes when it is left."""

    def __init__(self, name):
        self.prefix = f"peers-{os.getpid()}-{name}"
        self.undo = contextlib.ExitStack()
        # What moves frames, when that is no kernel.
        self.processes = []
        self.directory = Path(self.undo.enter_context(tempfile.TemporaryDirectory(prefix="flatnet-peers-")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.signal(signal.SIGCONT)
        self.undo.close()

    def rest(self):
        """Stops what moves frames, until it is measured: a switch that looks for them would take a core from others meanwhile."""
        self.signal(signal.SIGSTOP)

    def signal(self, kind):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, kind)

    def namespace(self, name):
        name = f"{self.prefix}-{name}"
        ip("netns", "add", name)
        self.undo.callback(subprocess.run, ["ip", "netns", "delete", name], capture_output=True)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def start(self, *words, namespace=None, **options):
        """Starts a process that ends with this place."""
        words = [str(word) for word in words]
        words = ["ip", "netns", "exec", namespace, *words] if namespace else words
        log = open(self.directory / f"log-{time.monotonic_ns()}", "w+", encoding="utf-8")
        process = subprocess.Popen(words, **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | options)
        self.undo.callback(end, process)
        self.processes.append(process.pid)
        return process

    @contextlib.contextmanager
    def at_work(self, cores):
        """Has what moves frames run meanwhile, on some cores or on all."""
        every = os.sched_getaffinity(0)
        self.keep_on(cores or every)
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.rest()
            self.keep_on(every)

    def keep_on(self, cores):
        for process in self.processes:
            # Its threads, too.
            run("taskset", "-acp", ",".join(map(str, cores)), process)

    def path(self, name, text=None):
        path = self.directory / name
        if text is not None:
            path.write_text(text, encoding="utf-8")
        return path


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(START_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def address(machine, interface, prefix, mtu, gateway=None):
    """Gives a machine's interface its name, address and MTU, and has it up."""
    ip("-n", machine.namespace, "link", "set", interface, "name", "eth0")
    ip("-n", machine.namespace, "address", "add", f"{machine.address}/{prefix}", "dev", "eth0")
    ip("-n", machine.namespace, "link", "set", "eth0", "mtu", mtu, "up")
    if gateway:
        ip("-n", machine.namespace, "route", "add", "default", "via", gateway)


def veth(namespace, port, machine):
    """Makes a cable from a port in a namespace to a machine."""
    ip("-n", namespace, "link", "add", port, "type", "veth", "peer", "name", "other", "netns", machine.namespace)
    ip("-n", namespace, "link", "set", port, "up")


def machines(place, *addresses):
    return [Machine(place.namespace(chr(ord("a") + number)), text, text) for number, text in enumerate(addresses)]
