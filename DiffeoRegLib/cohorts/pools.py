"""Workers for a cohort on Dask: on this computer, behind a scheduler elsewhere, or as jobs of SLURM.

Dask is imported here only, when workers are wanted.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DiffeoRegLib.cohorts.job import Job, Outcome
from DiffeoRegLib.cohorts.runner import Ending, WorkerDied
from DiffeoRegLib.errors import ClusterError, SettingsError

CONNECT_SECONDS = 15.0
LOCAL, SLURM = "local", "slurm"
LOGGERS = ("distributed", "tornado", "asyncio")
SCHEMES = ("tcp://", "tls://")
CONFIGURATION: dict[str, Any] = {
    # A row that kills its workers is given up by its own record of attempts; the cluster's count, which also
    # blames rows that only waited there, must not come first.
    "distributed.scheduler.allowed-failures": 100,
    "distributed.scheduler.work-stealing": False,
    # Dask sheds its own data under pressure. Ours is torch's: shedding finds none, and a pause never ends.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}
LOST = "The scheduler does not answer any more."
Task = Callable[..., Outcome]


@dataclass(frozen=True)
class Slurm:
    """What a job of SLURM asks for; one worker, so one row at a time, in each.

    walltime: as in 02:00:00.  memory: as in 16GB.  cores: of a job, the threads of its row.
    options: further lines for sbatch, as in --gres=gpu:1.  setup: shell lines before the worker starts.
    """

    queue: str | None = None
    account: str | None = None
    walltime: str = "04:00:00"
    memory: str = "16GB"
    cores: int = 4
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


@dataclass
class DaskPool:
    """Workers behind a Dask client.

    task: called on a worker with `fixed`, a row, and the place of every worker among those of its computer.
    most: workers to use at a time; None = all there are.
    """

    client: Any
    task: Task
    fixed: tuple[Any, ...]
    topic: str
    most: int | None = None
    _progress: dict[str, tuple[float, str]] = field(default_factory=dict)
    _futures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client.subscribe_topic(self.topic, self._heard)

    def workers(self) -> Sequence[str]:
        """Addresses of the workers that are there; raises ClusterError when the scheduler is lost."""
        if self.client.status != "running":
            raise ClusterError(LOST)
        try:
            return list(self.client.nthreads())[: self.most]
        except (OSError, TimeoutError) as error:
            raise ClusterError(LOST) from error

    def submit(self, job: Job, worker: str, ended: Callable[[Ending], None]) -> None:
        """Hand a row to a worker; another takes it if that one dies."""
        future = self.client.submit(
            self.task, *self.fixed, job, places(self.workers()),
            workers=[worker], allow_other_workers=True, pure=False, retries=0,
            key=f"{self.topic}-{job.name}",
        )  # fmt: skip
        self._futures[job.name] = future
        future.add_done_callback(lambda done: ended(self._result(job.name, done)))

    def progress(self) -> dict[str, tuple[float, str]]:
        """Share done and phase, by row."""
        return self._progress

    def _heard(self, event: tuple[float, Any]) -> None:
        name, share, phase = event[1]
        self._progress[name] = (float(share), str(phase))

    def _result(self, name: str, future: Any) -> Ending:
        from distributed.scheduler import KilledWorker

        self._futures.pop(name, None)
        try:
            if future.status not in ("finished", "error"):
                return ClusterError(LOST)
            problem = future.exception(timeout=CONNECT_SECONDS)
            outcome = None if problem is not None else future.result(timeout=CONNECT_SECONDS)
        except Exception:  # noqa: BLE001 - raised here, in a thread of Dask's, it would be heard by nobody
            return ClusterError(LOST)
        if isinstance(problem, KilledWorker):
            return WorkerDied(problem.allowed_failures + 1)
        if problem is not None:
            text = " ".join(str(problem).split())
            return ClusterError(f"The workers cannot run a row: {type(problem).__name__}: {text}")
        assert isinstance(outcome, Outcome)
        return outcome


def places(addresses: Sequence[str]) -> dict[str, int]:
    """The number of every worker among those of its computer, from 0: which of its GPUs is whose."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    for address in sorted(addresses):
        host = address.rpartition(":")[0]
        found[address] = counts.get(host, 0)
        counts[host] = found[address] + 1
    return found


def require_dask(scheduler: str) -> None:
    """Raises SettingsError where the packages for this kind of scheduler are missing, or for no such kind."""
    if scheduler not in (LOCAL, SLURM) and not scheduler.startswith(SCHEMES):
        raise SettingsError(
            f"There is no scheduler '{scheduler}': use local, slurm, or an address like tcp://host:8786."
        )
    needed = ["dask", "distributed", *(["dask_jobqueue"] if scheduler == SLURM else [])]
    missing = [name.replace("_", "-") for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"`diffeoreg batch` needs {' and '.join(missing)}: install them with pip install "
            "'diffeoreg[cluster]'."
        )


@contextmanager
def local_client(workers: int, threads: int, memory_bytes: int | None) -> Iterator[Any]:
    """A client of worker processes on this computer; they end with it, however it ends.

    threads, memory_bytes: of each worker.
    """
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(dask.config.set(CONFIGURATION))
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=threads, processes=True, host="127.0.0.1",
            memory_limit=memory_bytes or 0, dashboard_address=None, silence_logs=logging.CRITICAL,
        )  # fmt: skip
        stack.callback(_close_local, cluster)
        client = Client(cluster)
        stack.callback(_close, client, 2)
        yield client


@contextmanager
def remote_client(address: str, seconds: float = CONNECT_SECONDS) -> Iterator[Any]:
    """A client of a scheduler that runs already; raises ClusterError when none answers in time."""
    from distributed import Client

    with _quiet():
        try:
            client = Client(address, timeout=seconds, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"No Dask scheduler answers at '{address}' (waited up to {seconds:g} s). Is it running, and "
                "is the address the one it shows?"
            ) from error
        try:
            yield client
        finally:
            _close(client, 2)


@contextmanager
def slurm_client(options: Slurm, jobs: int, logs: Path) -> Iterator[Any]:
    """A client of workers that SLURM starts, one a job; raises ClusterError where there is no SLURM."""
    if shutil.which("sbatch") is None:
        raise ClusterError("There is no 'sbatch' on this computer: start from one that can submit to SLURM.")
    import dask
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(dask.config.set(CONFIGURATION))
        cluster = _slurm_cluster(options, logs)
        stack.callback(_close, cluster, 30)
        cluster.scale(jobs=jobs)
        client = Client(cluster)
        stack.callback(_close, client, 2)
        yield client


def slurm_script(options: Slurm, logs: Path) -> str:
    """The job script that would be submitted for every worker."""
    with _quiet(), _slurm_cluster(options, logs) as cluster:
        return str(cluster.job_script())


def _slurm_cluster(options: Slurm, logs: Path) -> Any:
    from dask_jobqueue import SLURMCluster

    memory = [name for name in CONFIGURATION if ".memory." in name]
    exports = [f"export DASK_{name.upper().replace('.', '__')}=False" for name in memory]
    return SLURMCluster(
        queue=options.queue, account=options.account, walltime=options.walltime, memory=options.memory,
        cores=options.cores, processes=1, job_name="diffeoreg", python=sys.executable,
        job_extra_directives=list(options.options), job_script_prologue=[*exports, *options.setup],
        log_directory=str(logs), scheduler_options={"dashboard": False, "dashboard_address": ":0"},
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the logs of Dask and of what it stands on to themselves: what matters is said in sentences."""
    # Dask gives loggers of its own levels when it is loaded: those are what has to be told.
    importlib.import_module("distributed")
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LOGGERS]
    loggers = [logging.getLogger(name) for name in known]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _close_local(cluster: Any) -> None:
    """End the workers at once: a row at work would otherwise be waited for."""
    import psutil

    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if nanny.pid is not None and psutil.pid_exists(nanny.pid):
            psutil.Process(nanny.pid).kill()
    _close(cluster, 10)


def _close(what: Any, seconds: float) -> None:
    """Close a client or a cluster; one that hangs ends with this process."""
    with suppress(TimeoutError, OSError):
        what.close(timeout=seconds)
