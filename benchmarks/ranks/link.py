"""Two hosts on one machine, which are network namespaces of Linux, with a link of limited speed between them."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["BITS", "hosts", "missing"]

BITS = 10**9  # per second, each way
ADDRESSES = ("10.77.0.1", "10.77.0.2")

# What stands in for ssh: it is called with options, the name of a host, and a command.
SSH = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in
    {0[0]}) space={1[0]} ;;
    {0[1]}) space={1[1]} ;;
    *) echo "unknown host $1" >&2; exit 1 ;;
esac
shift
exec ip netns exec $space sh -c "$*"
"""


def missing() -> str:
    """Return why there can be no such hosts here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"the command {lacking[0]} is missing" if lacking else ""


@contextmanager
def hosts() -> Iterator[tuple[tuple[str, str], tuple[str, ...], Path]]:
    """Make two hosts, and give their names, what runs a command on the first, and what stands in for ssh."""
    spaces = [f"fusedstep{os.getpid()}{end}" for end in "ab"]
    try:
        for space in spaces:
            _ip("netns", "add", space)
        _ip("link", "add", "link0", "netns", spaces[0], "type", "veth", "peer", "name", "link0", "netns", spaces[1])
        for space, address in zip(spaces, ADDRESSES, strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "link0")
            for device in ("lo", "link0"):
                _ip("-n", space, "link", "set", device, "up")
            limit = ("rate", f"{BITS}bit", "burst", "256kb", "latency", "50ms")
            _run("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", "link0", "root", "tbf", *limit)
        for space in spaces:
            _wait_for_link(space)
        with TemporaryDirectory(prefix="fusedstep-link-") as folder:
            ssh = Path(folder) / "ssh"
            ssh.write_text(SSH.format(ADDRESSES, spaces))
            ssh.chmod(0o755)
            yield ADDRESSES, ("ip", "netns", "exec", spaces[0]), ssh
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _wait_for_link(space: str) -> None:
    """Wait until a link is up, without which MPI finds no way to the other host."""
    for _ in range(500):
        if " state UP " in subprocess.check_output(["ip", "-n", space, "-o", "link", "show", "link0"], text=True):
            return
        time.sleep(0.01)
    raise OSError(f"link0 of {space} is not up after 5 s")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
