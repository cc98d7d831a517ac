"""A private Slurm of two nodes on this machine: each node in its own namespaces, with its own address and host name.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; the tests skip elsewhere. Nothing outside a
temporary folder is read or written, save a bridge and two virtual interfaces that are gone afterwards.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "ip")
BRIDGE = "amftbr0"
NETWORK = "10.77.0"
NAMES = ("n1", "n2")
CONFIGURATION = """
ClusterName=amft
SlurmctldHost={host}({network}.254)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
PlugStackConfig={base}/plugstack.conf
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=15
MinJobAge=3600
GresTypes=gpu
MailProg=/bin/true
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr={address} Port={port} CPUs=32 RealMemory=16000 Gres=gpu:1 State=UNKNOWN\n"
# Process 1 of a node: argv is base, name, address. Its end is the end of every process of the node.
INIT = r"""
base=$1 name=$2 address=$3
hostname "$name"
mount --bind "$base/hosts" /etc/hosts
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs -o size=4g tmpfs "$base/tmp"
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "${address%.*}.254"
mkdir -p "$base/spool/$name"
slurmd -D -N "$name" >"$base/slurmd.$name.out" 2>&1 &
slurmd=$!
trap 'kill -TERM $slurmd' TERM
while kill -0 $slurmd 2>/dev/null; do wait -n; done
"""


@pytest.fixture(scope="session", name="until")
def until_fixture() -> Callable:
    return until


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return when `condition()` holds; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s: {what}"
        time.sleep(0.2)


class SlurmCluster:
    """slurmctld and munge here, one slurmd per node in namespaces of its own."""

    def __init__(self, base: Path):
        self.base = base
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environment |= {"SLURM_CONF": str(base / "slurm.conf"), "TMPDIR": str(base / "tmp")}
        self.daemons: list[subprocess.Popen] = []
        self.nodes: dict[str, psutil.Process] = {}  # process 1 of each

    # ---- up and down -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._write_files()
        self._remove_bridge()  # of a session that was killed: the lock says that none is running
        self._network("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        self._network("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        self._network("link", "set", BRIDGE, "up")
        munge = self.base / "munge"
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "--force", "--foreground", *(f"--{k}={munge / v}" for k, v in files.items()))
        until((munge / "socket").exists, 10, "munged does not listen")
        self._daemon("slurmctld", "-D")
        for number, name in enumerate(NAMES, 1):
            self._start_node(name, f"{NETWORK}.{number}", f"amftv{number}")
        until(lambda: self.slurm("sinfo", "-hN", "-tidle", "-o%N").split() == list(NAMES), 30, "no idle nodes")

    def stop(self) -> None:
        """End everything that was started here: the nodes with all their processes, then the daemons."""
        for init in self.nodes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                init.kill()
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._remove_bridge()

    @staticmethod
    def _remove_bridge() -> None:
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)

    def _write_files(self) -> None:
        self.base.chmod(0o755)
        for name in ("munge", "state", "spool", "tmp"):
            (self.base / name).mkdir()
        (self.base / "munge").chmod(0o711)
        key = self.base / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host, port = socket.gethostname().split(".")[0], free_port()
        text = CONFIGURATION.format(host=host, network=NETWORK, port=port, base=self.base)
        hosts, devices = f"127.0.0.1 localhost\n{NETWORK}.254 {host}\n", ""
        for number, name in enumerate(NAMES, 1):
            text += NODE.format(name=name, address=f"{NETWORK}.{number}", port=port + 1)
            hosts += f"{NETWORK}.{number} {name}\n"
            devices += f"NodeName={name} Name=gpu File={self.base / f'gpu-{name}'}\n"
            (self.base / f"gpu-{name}").touch()
        for name, content in (("slurm.conf", text), ("gres.conf", devices), ("plugstack.conf", ""), ("hosts", hosts)):
            (self.base / name).write_text(content)

    def _start_node(self, name: str, address: str, interface: str) -> None:
        namespaces = ["--net", "--pid", "--fork", "--uts", "--mount", "--ipc", "--mount-proc", "--propagation=private"]
        outer = self._daemon("unshare", *namespaces, "bash", "-c", INIT, "init", str(self.base), name, address)
        started = psutil.Process(outer.pid)
        until(started.children, 10, f"node {name} did not start")
        (init,) = started.children()
        until(lambda: namespace(init.pid, "net") != namespace(os.getpid(), "net"), 10, "no network namespace")
        self.nodes[name] = init
        self._network("link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", str(init.pid))
        self._network("link", "set", interface, "master", BRIDGE, "up")

    def _daemon(self, *command: str) -> subprocess.Popen:
        with open(self.base / f"{command[0]}.out", "a") as log:
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons.append(daemon)
        return daemon

    def _network(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    # ---- jobs --------------------------------------------------------------------------------------------------

    def slurm(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Output of a Slurm client."""
        finished = subprocess.run(
            command, env=self.environment | variables, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, also after its end."""
        text = self.slurm("scontrol", "show", "job", "-o", number)
        return dict(item.split("=", 1) for item in text.split() if "=" in item)

    def wait(self, number: str, seconds: float) -> dict[str, str]:
        """The job at its end."""

        def ended() -> bool:
            return self.job(number)["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")

        until(ended, seconds, f"job {number} did not end")
        return self.job(number)

    def left(self, seconds: float = 20) -> list[str]:
        """What jobs left on the nodes after `seconds`: command lines that are not Slurm's own, and Ray's folders."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        folders = (Path(f"/proc/{init.pid}/root{self.base}/tmp") for init in self.nodes.values())
        return [" ".join(process.cmdline()[:4]) for process in found if process.is_running()] + [
            str(path) for folder in folders for path in folder.glob("amft-ray*")
        ]

    def processes(self) -> list[psutil.Process]:
        """Living processes of the nodes, without process 1 and Slurm's daemons."""
        inits = {namespace(init.pid, "pid"): init for init in self.nodes.values()}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                if namespace(process.pid, "pid") not in inits or process in inits.values():
                    continue
                if process.name() not in ("slurmd", "slurmstepd") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def on_node(self, name: str) -> list[psutil.Process]:
        """Those of `processes` that run on one node."""
        return [process for process in self.processes() if namespace(process.pid, "pid") == self._namespace_of(name)]

    def _namespace_of(self, name: str) -> str:
        return namespace(self.nodes[name].pid, "pid")


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    """Two nodes, n1 and n2, of one (pretended) GPU each."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and Debian's slurmctld, slurmd, slurm-client, munge; missing: {missing or 'root'}")
    base = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # short: Ray's sockets lie below it
    with open(Path(tempfile.gettempdir()) / f"{BRIDGE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one bridge of this name at a time
        cluster = SlurmCluster(base)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            alive = [name for name, init in cluster.nodes.items() if init.is_running()]
            shutil.rmtree(base, ignore_errors=True)
        assert not alive, f"nodes that did not end: {alive}"
