"""Two real hosts on one machine: network namespaces joined by a veth pair, each with a name and an ssh server.

    node-a  10.77.0.1  eth0 ════ veth ════ eth0  10.77.0.2  node-b

They share the file system, as nodes with a shared folder do. Needs root and Debian's iproute2, openssh-server,
openssh-client and pdsh.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.pretrain.conftest import ROOT, environment

NODES = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
INTERFACE = "eth0"
PROGRAMS = ("ip", "unshare", "ssh", "ssh-keygen", "sshd", "pdsh")


def missing() -> str | None:
    """Why there can be no two hosts here, or None."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = ["unshare", "--net", "--uts", "sh", "-c", "ip link add name x type veth peer name y && hostname x"]
    tried = subprocess.run(probe, capture_output=True, text=True)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class TwoHosts:
    """Both hosts, with what a user would have put into place by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hostfile = folder / "hosts"
        self.log = folder / "sshd.log"
        self._servers: list[subprocess.Popen] = []

    def namespace(self, node: str) -> str:
        return f"tinypi-{os.getpid()}-{node}"

    def command(self, node: str, *words: str) -> list[str]:
        """A command line that runs `words` on a host, under the host's name."""
        inside = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', node]
        return ["ip", "netns", "exec", self.namespace(node), *inside, *words]

    def edited(self, script: str, config: Path) -> str:
        """A script of configs/launch with what a user would fill in."""
        text = (ROOT / "configs" / "launch" / script).read_text()
        values = {"HOSTFILE": self.hostfile, "MASTER": NODES["node-a"], "RANKS": 1, "CONFIG": config}
        for name, value in {**values, "INTERFACE": INTERFACE}.items():
            text = re.sub(rf"\b{name}=\S+", f"{name}={value}", text)
        path = self.folder / script
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def launch(self, node: str, words: Sequence[str], log: Path) -> subprocess.Popen:
        """Starts a command on a host, in a process group of its own."""
        path = [str(self.folder), str(Path(sys.executable).parent), os.environ["PATH"]]
        return subprocess.Popen(
            self.command(node, *words),
            cwd=ROOT,
            env=environment(PATH=os.pathsep.join(path), TMPDIR=str(self.folder)),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def cable(self, node: str, state: str) -> None:
        """Pulls ("down") or plugs in ("up") the cable at one host."""
        self._ip("-n", self.namespace(node), "link", "set", INTERFACE, state)

    def training(self, node: str) -> list[int]:
        """Processes on a host that are python."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace(node)], capture_output=True, text=True)
        pids = [int(pid) for pid in listed.stdout.split()]
        return [pid for pid in pids if "python" in _program(pid)]

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def set_up(self) -> None:
        for node in NODES:
            self._ip("netns", "add", self.namespace(node))
        a, b = map(self.namespace, NODES)
        self._ip("link", "add", INTERFACE, "netns", a, "type", "veth", "peer", "name", INTERFACE, "netns", b)
        for node, address in NODES.items():
            self._ip("-n", self.namespace(node), "address", "add", f"{address}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                self._ip("-n", self.namespace(node), "link", "set", device, "up")
        self._write_files()
        server = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
        assert server is not None
        Path("/run/sshd").mkdir(exist_ok=True)  # where the server separates its privileges
        for node in NODES:
            words = [server, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._servers.append(subprocess.Popen(self.command(node, *words), stderr=self.log.open("a")))
        self._await_servers()

    def _write_files(self) -> None:
        key, host_key = self.folder / "key", self.folder / "host_key"
        for path in (key, host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        (self.folder / "sshd_config").write_text(
            f"HostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PermitRootLogin yes\nPasswordAuthentication no\n"
        )
        # pdsh and the launcher call plain `ssh`: one that carries this key and notices a dead host.
        ssh = self.folder / "ssh"
        ssh.write_text(
            f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {key} -o StrictHostKeyChecking=no "
            "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ServerAliveInterval=1 -o ServerAliveCountMax=5 "
            '"$@"\n'
        )
        ssh.chmod(0o755)
        self.hostfile.write_text("".join(f"{address} slots=1\n" for address in NODES.values()))

    def _await_servers(self) -> None:
        deadline = time.monotonic() + 30
        for node, address in NODES.items():
            words = self.command("node-a", str(self.folder / "ssh"), address, "hostname")
            while (answer := subprocess.run(words, capture_output=True, text=True)).stdout.strip() != node:
                assert time.monotonic() < deadline, f"{node}: {answer.stderr} {self.log.read_text()}"
                time.sleep(0.2)

    def tear_down(self) -> None:
        """Ends every process on both hosts and removes them."""
        for node in NODES:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace(node)], capture_output=True, text=True)
            for pid in listed.stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            subprocess.run(["ip", "netns", "delete", self.namespace(node)], capture_output=True)
        for server in self._servers:
            server.wait()


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""  # ended meanwhile


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Both hosts for the body of a `with`; nothing of them remains."""
    hosts = TwoHosts(folder)
    try:
        hosts.set_up()
        yield hosts
    finally:
        hosts.tear_down()
