"""Test hosts on this machine: each with its own address, name, process table, disk and ssh server.

Nothing is common to them but the network and what is named: a host sees this machine's files as they are, at the same paths,
and writes into a layer of its own (overlayfs) that is gone with it. Home and temporary folders are empty at first. The
name of a host leads to loopback (127.0.1.1), as Debian and Ubuntu have it.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("ip", "unshare", "setpriv", "mount", "chroot", "sshd", "ssh", "ssh-keygen", "rsync")
"""Debian: iproute2, util-linux, coreutils, openssh-server, rsync."""
KEPT = (ROOT, Path(sys.prefix), Path(sys.base_prefix))
"""What must be seen on a host although it may lie in a home, a temporary folder or on another disk; read-only there."""
EMPTY = ("/tmp", "/var/tmp", "/run", str(Path.home()))

MACHINE = r"""
set -eu
place=$1 address=$2 gateway=$3 shm=$4 name=$5 kept=$6 shared=$7
mount --make-rprivate /
mount -t tmpfs tmpfs "$place"
root=$place/root
mkdir "$place/upper" "$place/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "size=$shm" tmpfs "$root/dev/shm"
for folder in EMPTY; do mkdir -p "$root$folder"; mount -t tmpfs -o mode=1777 tmpfs "$root$folder"; done
chmod 700 "$root$HOME"
IFS=:
for folder in $kept; do mkdir -p "$root$folder"; mount --bind -o ro "$folder" "$root$folder"; done
for folder in $shared; do mkdir -p "$root$folder"; mount --bind "$folder" "$root$folder"; done
unset IFS
hostname "$name"
echo "$name" >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" >"$root/etc/hosts"
mkdir -p "$root/run/sshd" "$root/etc/cddpm"
cp "$place.files/"* "$root/etc/cddpm"
chmod 600 "$root/etc/cddpm/key"
cp "$place.files/profile" "$root/etc/profile.d/cddpm.sh"
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
cd "$root"
# a shell is the first process: it takes in the orphans
exec chroot "$root" bash -c '"$0" -D -e -f /etc/cddpm/sshd_config & wait' "$(command -v sshd)"
""".replace("EMPTY", " ".join(EMPTY))


def missing() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if os.geteuid():
        return "test hosts need root"
    if absent := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"test hosts need {', '.join(absent)} (Debian: iproute2, openssh-server, rsync)"
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "bash", "-c", "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
         "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r && "
         "ip link add cddpm0 type veth peer name cddpm1"],
        capture_output=True, text=True,
    )  # fmt: skip
    return f"test hosts need namespaces, overlayfs and veth: {tried.stderr.strip()}" if tried.returncode else None


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Hosts:
    """Hosts by number, from 2 on; a context manager that ends them all. They end with this process, too.

    ``shared``: folders that all hosts and this machine see as the same, and may write to. A host's files that are to outlive
    it for a look (its log) are in ``folder``.
    """

    def __init__(self, folder: Path, shared: Iterable[Path] = ()) -> None:
        self.folder, self._shared = folder, tuple(shared)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.key = folder / "key"
        folder.mkdir(parents=True, exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        self.name, self._subnet = _bridge()

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def address(self, number: int) -> str:
        """Of a host."""
        return f"{self._subnet}.{number}"

    def start(self, *numbers: int, shm: str = "1g") -> None:
        """Start hosts and wait until their ssh servers answer; ``shm``: size of their /dev/shm."""
        for number in numbers:
            self._start(number, shm)
        for number in numbers:
            self._await(number)

    def _start(self, number: int, shm: str) -> None:
        place, name = self.folder / f"host{number}", f"host{number}"
        place.mkdir(exist_ok=True)
        self._write_files(place.with_suffix(".files"), number)
        outside = f"{self.name}p{number}"
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]
        command += ["--kill-child=SIGKILL", "bash", "-c", MACHINE, "machine", str(place), self.address(number)]
        command += [self.address(1), shm, name, ":".join(map(str, KEPT)), ":".join(map(str, self._shared))]
        with (self.folder / f"{name}.log").open("a") as log:
            # the environment of a test is not that of a host
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": _path(), "HOME": str(Path.home())},
                start_new_session=True,
            )  # fmt: skip
        self._processes[number] = process
        ours = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{process.pid}/ns/net").readlink() == ours:
            time.sleep(0.01)
        card = f"02:00:00:00:00:{number:02x}"  # that of the host before it, else the others would look for that one
        inside = ("name", "eth0", "address", card, "netns", str(process.pid))
        _run("ip", "link", "add", outside, "type", "veth", "peer", *inside)
        _run("ip", "link", "set", outside, "master", self.name, "up")

    def _write_files(self, files: Path, number: int) -> None:
        files.mkdir(exist_ok=True)
        path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        shutil.copy(self.key, files)
        shutil.copy(self.key.with_suffix(".pub"), files)
        (files / "profile").write_text(f"export PATH={path} PYTHONPATH={ROOT}\n")
        (files / "sshd_config").write_text(
            f"ListenAddress {self.address(number)}\nHostKey /etc/cddpm/key\nAuthorizedKeysFile /etc/cddpm/key.pub\n"
            "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\nUseDNS no\n"
            f"SetEnv PATH={path} PYTHONPATH={ROOT}\n"
        )

    def _await(self, number: int, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while self.run(number, "true", check=False).returncode:
            log = (self.folder / f"host{number}.log").read_text()
            assert self._processes[number].poll() is None, f"host {number} ended:\n{log}"
            assert time.monotonic() < end, f"host {number} did not answer in {seconds} s:\n{log}"
            time.sleep(0.1)

    def ssh(self, number: int) -> list[str]:
        """The beginning of a command line that runs the rest of it on a host."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=2")
        given = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self.key), *given, f"root@{self.address(number)}"]

    def run(
        self, number: int, command: str, check: bool = True, seconds: float = 120, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host to its end. With ``check`` a failure of it fails the test, with what it printed."""
        done = subprocess.run(
            [*self.ssh(number), command], capture_output=True, text=True, timeout=seconds, input=stdin
        )
        assert not (check and done.returncode), f"host {number}: {command}\n{done.stdout}{done.stderr}"
        return done

    def launch(self, number: int, command: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start a shell command on a host; what it prints goes to ``log``."""
        with log.open("w") as stream:
            return subprocess.Popen(
                [*self.ssh(number), command], stdout=stream, stderr=stream, stdin=subprocess.DEVNULL
            )

    def kill(self, number: int) -> None:
        """As if a host lost its power: nobody hears from it any more, and all that it had is gone."""
        process = self._processes.pop(number)
        _run("ip", "link", "del", f"{self.name}p{number}")  # first: no process may say farewell
        process.kill()
        process.wait()

    def down(self) -> None:
        """End all of them, and the network."""
        for number in list(self._processes):
            with contextlib.suppress(AssertionError):
                self.kill(number)
        _run("ip", "link", "del", self.name)


def _bridge() -> tuple[str, str]:
    """A bridge that no other test process has, and the first three bytes of its addresses; this machine is number 1."""
    for number in itertools.chain(range(os.getpid() % 250, 250), range(1, 250)):
        name, subnet = f"cddpm{number}", f"10.77.{number}"
        _remove_if_left_behind(name)
        made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, env={"PATH": _path()})
        if made.returncode == 0:
            _run("ip", "link", "set", name, "alias", str(os.getpid()))
            _run("ip", "addr", "add", f"{subnet}.1/24", "dev", name)
            _run("ip", "link", "set", name, "up")
            return name, subnet
    raise AssertionError("no free network for test hosts: ip link shows who has them (cddpm1, ...)")


def _remove_if_left_behind(name: str) -> None:
    alias = Path("/sys/class/net", name, "ifalias")
    with contextlib.suppress(OSError, ValueError):
        if not Path("/proc", str(int(alias.read_text()))).exists():
            _run("ip", "link", "del", name)


def _run(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": _path()})
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
