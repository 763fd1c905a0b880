"""
Two hosts on one machine: network namespaces with a link between them.

What ranks on different hosts say to each other goes over the link by TCP, where its bytes are counted. Needs Linux,
root, and `ip` (and `tc` for a link with a rate).
"""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("10.77.0.1", "10.77.0.2")
LINK = "wire"

# Stands in for ssh: its arguments are options, the host, and the words of a command.
SHELL = """#!/bin/sh
while case $1 in -*) true;; *) false;; esac; do shift; done
case $1 in
{cases}
*) echo "no host has the name $1" >&2; exit 1;;
esac
shift
exec ip netns exec $space sh -c "$*"
"""


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=20).stdout


class Hosts:
    """Two hosts, while they are there: what starts ranks on them, and what has gone over the link."""

    def __init__(self, spaces, shell):
        self._spaces, self._shell = spaces, shell

    def mpiexec(self, mpiexec):
        """Return the words of an mpiexec of MPICH that runs on the first host and starts ranks on both, by TCP."""
        tcp = ["-genv", "UCX_TLS", "tcp,self"]  # otherwise ranks on both hosts would share memory
        start = ["-launcher", "ssh", "-launcher-exec", str(self._shell), "-localhost", NAMES[0]]
        return ["ip", "netns", "exec", self._spaces[0], *mpiexec, *start, *tcp]

    def sent(self):
        """Return how many bytes each host has sent over the link so far."""
        words = [_ip("-n", space, "-s", "-j", "link", "show", LINK) for space in self._spaces]
        return [json.loads(text)[0]["stats64"]["tx"]["bytes"] for text in words]


@contextmanager
def two_hosts(folder, rate=None):
    """
    Make two hosts, and remove them at the end with all that runs on them; the test is skipped where that is impossible.

    Parameters
    ----------
    folder : Path
        Where a script is written that starts commands on the hosts.
    rate : str, optional
        How fast the link is each way, in the words of tc, such as "1gbit". By default as fast as the machine.
    """
    if not shutil.which("ip") or os.geteuid() != 0 or (rate and not shutil.which("tc")):
        pytest.skip("needs root, and the commands ip and tc")
    spaces = [f"fusedstep-{os.getpid()}-{time.monotonic_ns()}-{side}" for side in "ab"]
    try:
        try:
            for space in spaces:
                _ip("netns", "add", space)
            _ip("link", "add", LINK, "netns", spaces[0], "type", "veth", "peer", "name", LINK, "netns", spaces[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
        for space, name in zip(spaces, NAMES, strict=True):
            _ip("-n", space, "address", "add", f"{name}/24", "dev", LINK)
            for device in ("lo", LINK):
                _ip("-n", space, "link", "set", device, "up")
            if rate:
                shape = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
                subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", LINK, "root", *shape], check=True, timeout=20)
        _wait_until_up(spaces)
        shell = Path(folder) / "shell"
        pairs = zip(NAMES, spaces, strict=True)
        shell.write_text(SHELL.format(cases="\n".join(f"{name}) space={space};;" for name, space in pairs)))
        shell.chmod(0o755)
        yield Hosts(spaces, shell)
    finally:
        for space in spaces:
            _remove(space)


def _wait_until_up(spaces):
    """Wait for the link: MPI takes no device that is not up yet."""
    limit = time.monotonic() + 10
    while any(json.loads(_ip("-n", space, "-j", "link", "show", LINK))[0]["operstate"] != "UP" for space in spaces):
        if time.monotonic() > limit:
            raise TimeoutError("the link between two network namespaces has not come up in 10 s")
        time.sleep(0.01)


def _remove(space):
    """Remove a namespace if it is there; a process that is left in it would keep it, and the link."""
    left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, timeout=20).stdout.split()
    for process in left:
        os.kill(int(process), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", space], capture_output=True, timeout=20)
