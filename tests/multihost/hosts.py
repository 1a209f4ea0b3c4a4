"""Hosts of our own on one machine: network namespaces on a bridge, each with sshd, processes and
/tmp/ray of its own.

Everything else of the file system is shared, as an NFS export would be. Needs root, iproute2,
nftables, openssh-server and rsync.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PREFIX = "rsft"
NETWORK = "10.77.0"
TOOLS = ("ip", "nft", "ssh", "ssh-keygen", "sshd", "rsync", "unshare")


def missing() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    absent = [tool for tool in TOOLS if _which(tool) is None]
    if absent:
        return (
            f"needs {', '.join(absent)} (Debian: iproute2 nftables openssh-server "
            "openssh-client rsync util-linux)"
        )
    done = subprocess.run(["ip", "netns", "add", f"{PREFIX}probe"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", f"{PREFIX}probe"], capture_output=True)
    return (
        f"network namespaces cannot be made here ({done.stderr.strip()})"
        if done.returncode
        else None
    )


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def run(*words: object) -> str:
    """Run a command of the system; returns what it printed."""
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout


@dataclass
class Host:
    """One namespace with its address, home folder and the process that holds it."""

    name: str
    address: str
    home: Path
    process: subprocess.Popen | None = None

    def execute(self, *words: object) -> str:
        """Run a command in the host's network."""
        return run("ip", "netns", "exec", self.name, *words)

    def kill(self) -> None:
        """Pull the plug: every process of the host is gone at once, and its address does not
        answer.
        """
        if self.process is not None:
            run("ip", "-n", self.name, "link", "set", "eth0", "down")
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Network:
    """A bridge with hosts on it; this machine is there as NETWORK.1, as a person outside the
    cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.hosts: list[Host] = []
        self._clean()
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "hostkey")
        run("ip", "link", "add", f"{PREFIX}br", "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", f"{PREFIX}br")
        run("ip", "link", "set", f"{PREFIX}br", "up")

    def add(self, sshd: bool = True) -> Host:
        """A new host; with an sshd that lets the network's key in as root."""
        number = 11 + len(self.hosts)
        host = Host(f"{PREFIX}{number}", f"{NETWORK}.{number}", self.folder / f"home-{number}")
        self.hosts.append(host)
        host.home.mkdir()
        run("ip", "netns", "add", host.name)
        run(
            "ip",
            "link",
            "add",
            f"{PREFIX}v{number}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            host.name,
        )
        run("ip", "link", "set", f"{PREFIX}v{number}", "master", f"{PREFIX}br", "up")
        run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", host.name, "link", "set", device, "up")
        # Without a default route Ray takes the loopback for the host's address.
        run("ip", "-n", host.name, "route", "add", "default", "via", f"{NETWORK}.1")
        if sshd:
            self._boot(host)
        return host

    def close(self) -> None:
        for host in self.hosts:
            if host.process is not None:
                os.killpg(host.process.pid, signal.SIGKILL)
                host.process.wait()
        self._clean()

    def _boot(self, host: Host) -> None:
        config = self.folder / f"sshd-{host.address}"
        config.write_text(
            f"Port 22\nHostKey {self.folder / 'hostkey'}\nAuthorizedKeysFile {self.key}.pub\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile "
            "none\n"
            "MaxStartups 100\nMaxSessions 100\nUseDNS no\n"
        )
        home = Path.home().resolve()
        # Python itself may lie in the home folder that the host gets its own of.
        kept = {
            p
            for p in map(Path, (sys.base_prefix, sys.prefix, Path(__file__).parents[2]))
            if p.resolve().is_relative_to(home)
        }
        script = [
            "set -e",
            "mount --make-rprivate /",
            "mount -t proc proc /proc",
            "mkdir -p /tmp/ray",
            "mount -t tmpfs tmpfs /tmp/ray",
            "mount -t tmpfs -o size=3g tmpfs /dev/shm",
            "mount -t tmpfs tmpfs /run",
            "mkdir -p /run/sshd",
        ]
        for path in sorted(kept):
            inside = shlex.quote(str(host.home / path.relative_to(home)))
            script += [f"mkdir -p {inside}", f"mount --bind {shlex.quote(str(path))} {inside}"]
        script += [
            f"mount --rbind {shlex.quote(str(host.home))} {shlex.quote(str(home))}",
            f"exec {_which('sshd')} -D -e -f {shlex.quote(str(config))}",
        ]
        command = [
            "ip",
            "netns",
            "exec",
            host.name,
            "unshare",
            "--pid",
            "--mount",
            "--fork",
            "--kill-child",
            "bash",
            "-c",
            "\n".join(script),
        ]
        with (self.folder / f"log-{host.address}").open("w") as log:
            host.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._await_sshd(host)

    def _await_sshd(self, host: Host) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["ssh", *self.ssh_options(), f"root@{host.address}", "true"], capture_output=True
            )
            if done.returncode == 0:
                return
            time.sleep(0.2)
        raise RuntimeError((self.folder / f"log-{host.address}").read_text())

    def ssh_options(self) -> list[str]:
        return [
            "-i",
            str(self.key),
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=2",
        ]

    def _clean(self) -> None:
        """Remove what is left, also of an earlier test that was killed."""
        for line in run("ip", "-o", "link").splitlines():
            name = line.split(": ")[1].partition("@")[0]
            if name.startswith(PREFIX):
                subprocess.run(["ip", "link", "del", name], capture_output=True)
        for line in run("ip", "netns", "list").splitlines():
            name = line.split()[0]
            if name.startswith(PREFIX):
                run("ip", "netns", "del", name)
