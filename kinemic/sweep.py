"""Many runs of one notebook: a grid of parameters, executed by papermill on the workers of a Dask scheduler.

Three kinds of process take part. The caller plans the runs and hands them to the scheduler; a worker starts one runner
per run (`python -m kinemic.sweep`) and waits for it; the runner holds the lock of the run, drives the notebook's kernel
and writes the manifest. The pipe between worker and runner is the life line: when the worker closes it or dies, the
runner kills its kernel with everything that the kernel started, and only then is the lock free. So a run that lost its
worker can begin again elsewhere at once, and never runs beside its own remains.

A run is found again by its key: the code of the notebook, the full settings and the code of the package. Data folders
and checkpoints count by their names. All folders must be on a disk that every worker sees.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from kinemic.artefacts import Store, environment, fingerprint, load_manifest, source_hash, write_json
from kinemic.config import Experiment

__all__ = ["Grid", "Run", "manifest_of", "plan", "sweep", "table"]

CONNECT_SECONDS = 8  # in which a scheduler must answer
NAME = re.compile(r"settings\.\w+\.\w+|(?!settings$)\w+")


@dataclass(frozen=True)
class Grid:
    """A grid file, read: what every run has, and what is crossed.

    Attributes:
        path: the file.
        base: scale that all runs start from, a file of `notebooks/params`.
        fixed: parameter -> value, the same in all runs. Fields of sections are named `settings.SECTION.FIELD`.
        crossed: parameter -> values; every combination is a run.
        show: metrics of the notebook that the printed table has.
    """

    path: Path
    base: str
    fixed: dict[str, Any]
    crossed: dict[str, list]
    show: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Grid:
        """Read a YAML file with `base`, `fixed`, `grid` and `show`; only `grid` must be there.

        In `fixed` and `grid`, fields of sections may be nested as in the files of the scales or named with dots.

        Raises:
            FileNotFoundError, ValueError: one line that names the file, the place and the mend.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such grid file")
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not valid YAML ({str(error).splitlines()[-1].strip()})") from None
        if not isinstance(given, Mapping):
            raise ValueError(f"{path}: expected a mapping with base, fixed, grid and show, found {given!r:.60}")
        if unknown := [str(name) for name in given if name not in ("base", "fixed", "grid", "show")]:
            raise ValueError(f"{path}: unknown entry {', '.join(unknown)}; a grid has base, fixed, grid and show")
        fixed, crossed = (_flat(path, part, given.get(part) or {}) for part in ("fixed", "grid"))
        if not crossed:
            raise ValueError(f"{path}: grid is missing or empty; give parameters with lists of values")
        for name, values in crossed.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{path}: grid: {name}: expected a list of values, found {values!r:.60}")
            if name in fixed:
                raise ValueError(f"{path}: {name} is in fixed and in grid; keep one of them")
        base, show = given.get("base", "embedded"), given.get("show") or []
        if not isinstance(base, str) or base.endswith((".yaml", ".yml")):
            raise ValueError(f"{path}: base: expected the name of a scale, such as embedded, found {base!r:.60}")
        if not isinstance(show, list) or not all(isinstance(name, str) for name in show):
            raise ValueError(f"{path}: show: expected a list of names of metrics, found {show!r:.60}")
        return cls(path, base, fixed, crossed, tuple(show))

    def points(self) -> list[dict[str, Any]]:
        """The combinations, in the order of the file; the last parameter varies fastest."""
        return [dict(zip(self.crossed, values, strict=True)) for values in itertools.product(*self.crossed.values())]


def _flat(path: Path, part: str, given: Any) -> dict[str, Any]:
    """Nested or dotted parameters as one mapping with dotted names."""

    def leaves(mapping: Mapping, prefix: str = ""):
        for name, value in mapping.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    if not isinstance(given, Mapping):
        raise ValueError(f"{path}: {part}: expected a mapping of parameters, found {given!r:.60}")
    flat: dict[str, Any] = {}
    for name, value in leaves(given):
        if name == "scale":
            raise ValueError(f"{path}: {part}: scale: the scale of all runs is given by base")
        if not NAME.fullmatch(name):
            raise ValueError(f"{path}: {part}: {name}: fields of sections are named settings.SECTION.FIELD")
        if name in flat:
            raise ValueError(f"{path}: {part}: {name} is given twice")
        flat[name] = value
    return flat


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters.

    Attributes:
        notebook: the file.
        scale: scale the parameters start from.
        parameters: dotted name -> value, the fixed ones and those of the combination.
        varied: those of the combination only, by which a reader tells runs apart.
    """

    notebook: Path
    scale: str
    parameters: dict[str, Any]
    varied: dict[str, Any] = field(default_factory=dict)

    @property
    def nested(self) -> dict[str, Any]:
        """Parameters as the notebook takes them: top-level fields, and `settings` by section."""
        nested: dict[str, Any] = {}
        for name, value in self.parameters.items():
            *sections, last = name.split(".")
            inner = nested
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[last] = value
        return nested

    @cached_property
    def experiment(self) -> Experiment:
        """The validated settings.

        Raises:
            FileNotFoundError, ValueError: see `Experiment.load`.
        """
        return Experiment.load(self.scale, **self.nested)

    @cached_property
    def key(self) -> str:
        """Hash of what decides the result: code cells, full settings and all modules that a notebook may import."""
        package = Path(__file__).parent
        names = {".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("*.py")}
        modules = {name.removesuffix(".__init__") for name in names - {"__init__", "cli", "sweep"}}
        code = ["".join(cell["source"]) for cell in _code_cells(self.notebook)]
        return fingerprint([code, self.experiment.model_dump(), source_hash(*sorted(modules))])

    @property
    def folder(self) -> Path:
        """Where its notebook and manifest are, relative to the root of the store."""
        return Path("sweeps") / self.notebook.stem / self.key

    def __str__(self) -> str:
        return ", ".join(f"{name.removeprefix('settings.')}={value}" for name, value in self.varied.items())


def _code_cells(path: Path) -> list[dict[str, Any]]:
    try:
        return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such notebook") from None
    except (ValueError, KeyError, TypeError):  # not text, not JSON, not of this shape
        raise ValueError(f"{path}: not a notebook of format 4") from None


def plan(notebook: str | Path, grid: Grid) -> list[Run]:
    """The different runs of a grid, each validated before any begins.

    Combinations that come to the same settings are one run.

    Raises:
        FileNotFoundError, ValueError: no notebook, or a combination that is no experiment; one line that names it.
    """
    notebook = Path(notebook).resolve()
    if not any("parameters" in cell["metadata"].get("tags", []) for cell in _code_cells(notebook)):
        raise ValueError(f"{notebook.name}: no cell is tagged 'parameters', so a grid cannot reach it")
    runs: dict[str, Run] = {}
    for point in grid.points():
        run = Run(notebook, grid.base, grid.fixed | point, point)
        try:
            runs.setdefault(run.key, run)
        except ValueError as error:
            raise ValueError(f"{grid.path}: {run}: {error}") from None
        except FileNotFoundError as error:
            raise ValueError(f"{grid.path}: base: {error}") from None
    return list(runs.values())


def manifest_of(run: Run, store: Store) -> dict[str, Any]:
    """What is known of a run: its manifest, or an empty mapping where it has none."""
    path = store.root / run.folder / "manifest.json"
    return load_manifest(path) if path.is_file() else {}


# --- the caller -------------------------------------------------------------------------------------------------------


def sweep(runs: Sequence[Run], store: Store, scheduler: str = "local", workers: int | None = None) -> list[dict]:
    """Execute the runs that are not finished, and return the manifests of all, in their order.

    Args:
        runs: from `plan`.
        store: results of the notebooks, and the folders of the runs below `sweeps`.
        scheduler: 'local' for processes on this machine, or the address of a Dask scheduler.
        workers: local processes; default one per core.

    Raises:
        ValueError: no scheduler answers at the address.
        KeyboardInterrupt: after the runs under way were stopped; finished ones are kept.
    """
    made = {run.key: manifest_of(run, store) for run in runs}
    todo = [run for run in runs if made[run.key].get("status") != "finished"]
    if todo:
        with (
            _client(scheduler, min(workers or os.cpu_count() or 1, len(todo))) as client,
            tqdm(total=len(runs), initial=len(runs) - len(todo), unit="run", disable=None) as bar,
        ):
            made |= _drive(client, todo, store, bar)
    return [made[run.key] for run in runs]


@contextlib.contextmanager
def _client(scheduler: str, workers: int):
    from distributed import Client, LocalCluster

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what is lost is reported by run
    with contextlib.ExitStack() as stack:
        if scheduler == "local":
            # A terminal sends Ctrl-C to workers too. Blocked here, it stays blocked in them, also in replaced ones; the
            # tracker is started first because starting it unblocks.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    memory_limit=0,  # the memory is used by kernels, which Dask does not see
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            scheduler = stack.enter_context(cluster)
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
        except Exception as error:  # another protocol's answer may fail as anything, even as a lack of memory
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"--scheduler {scheduler}: no Dask scheduler answers there ({said})") from None
        yield stack.enter_context(client)


def _drive(client: Any, todo: list[Run], store: Store, bar: tqdm) -> dict[str, dict]:
    from distributed import as_completed

    token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"  # two sweeps must not share tasks, only folders
    futures = {}
    for run in todo:
        job = {
            "notebook": str(run.notebook), "scale": run.scale, "parameters": run.parameters, "key": run.key,
            "store": str(store.root.resolve()), "folder": str(store.root.resolve() / run.folder),
        }  # fmt: skip
        futures[client.submit(work, job, key=f"{run.notebook.stem}-{run.key}-{token}", pure=False)] = run
    made: dict[str, dict] = {}
    try:
        for future in as_completed(futures):
            run = futures[future]
            # The answer, not the file: a network disk may show the file only later.
            made[run.key] = (future.result() if future.status == "finished" else None) or _lost(run, store, future)
            bar.set_postfix(failed=sum(manifest["status"] != "finished" for manifest in made.values()))
            bar.update()
    finally:
        # Workers see this within a second and stop what they run; without it closing a cluster would wait for them.
        client.cancel(list(futures), force=True)
    return made


def _lost(run: Run, store: Store, future: Any) -> dict[str, Any]:
    """Manifest of a run that gave no answer: written here, unless it had finished and only the answer was lost."""
    from distributed.scheduler import KilledWorker

    found = manifest_of(run, store)
    if found.get("status") == "finished":
        return found
    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        cause = "every worker that tried it died, perhaps for lack of memory"
    else:
        cause = _first_line(error) if error else "the scheduler was lost or gave it up"
    folder = store.root / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    made = _manifest(run, "failed", error=cause)
    write_json(folder / "manifest.json", made)
    return made


def _first_line(error: BaseException) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"


def _manifest(run: Run, status: str, **more: Any) -> dict[str, Any]:
    known = {
        "notebook": run.notebook.name, "key": run.key, "scale": run.experiment.edition, "parameters": run.parameters,
        "settings": run.experiment.record(), "status": status, "seconds": None, "worker": None, "metrics": {},
        "error": None, "traceback": [], "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return known | environment() | more


def table(runs: Sequence[Run], manifests: Sequence[Mapping[str, Any]]):
    """One row per run: key, status, seconds, varied parameters, the value of every metric, error.

    Returns:
        pandas.DataFrame
    """
    import pandas as pd

    rows = [
        {"run": run.key[:8], "status": made["status"], "seconds": made["seconds"] or float("nan")}
        | {name.removeprefix("settings."): value for name, value in run.varied.items()}
        | {name: metric["value"] for name, metric in made["metrics"].items()}
        | {"error": made["error"]}
        for run, made in zip(runs, manifests, strict=True)
    ]
    frame = pd.DataFrame(rows)
    return frame[[*(c for c in frame if c != "error"), "error"]]


# --- the worker -------------------------------------------------------------------------------------------------------


def work(job: dict[str, Any]) -> dict[str, Any] | None:
    """Task of a Dask worker: one runner, from start to end; returns the manifest, or None if nobody wants it any more.

    A run gets one core; `OMP_NUM_THREADS` in the worker's environment gives it more.
    """
    from distributed import Status, get_worker

    worker = get_worker()
    task = worker.get_current_task()
    cores = os.environ.get("OMP_NUM_THREADS", "1")
    usual = {"LOKY_MAX_CPU_COUNT": cores, "JUPYTER_PREFER_ENV_PATH": "1", "TOKENIZERS_PARALLELISM": "false"}
    env = usual | os.environ | {"OMP_NUM_THREADS": cores, "PYTHONHASHSEED": "0", "KINEMIC_CACHE": job["store"]}
    env.pop("MPLBACKEND", None)  # it would replace the notebook's own
    with tempfile.TemporaryFile() as said:
        runner = subprocess.Popen(
            [sys.executable, "-m", "kinemic.sweep"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, env=env,
            start_new_session=True,  # so that the runner can end its whole group
        )  # fmt: skip
        runner.stdin.write(json.dumps(job | {"worker": worker.address}).encode() + b"\n")
        runner.stdin.flush()
        while True:
            try:
                runner.wait(0.5)
                break
            except subprocess.TimeoutExpired:
                state = worker.state.tasks.get(task)
                unwanted = state is None or state.state == "cancelled"
                if unwanted or worker.status in (Status.closing, Status.closed, Status.failed):
                    runner.stdin.close()
                    runner.wait()
                    return None
        runner.stdin.close()
        if runner.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"the runner ended with code {runner.returncode}")
    return load_manifest(Path(job["folder"]) / "manifest.json")


# --- the runner -------------------------------------------------------------------------------------------------------


def _end_with_the_worker() -> None:
    """Wait for the end of the pipe, then kill kernels, what they started, and this process.

    A kernel leads a process group of its own, which its children stay in; killing groups leaves none of them time to
    start another.
    """
    import psutil

    while os.read(sys.stdin.fileno(), 1):  # not through a file object, whose lock would outlive the interpreter
        pass
    groups = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(child.pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _run(job: dict[str, Any]) -> None:
    from filelock import FileLock

    store = Store(job["store"])
    run = Run(Path(job["notebook"]), job["scale"], job["parameters"])
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / "lock")):
        if run.key != job["key"]:
            raise RuntimeError("notebook or package changed since the sweep began; start it again")
        if manifest_of(run, store).get("status") == "finished":
            return
        (folder / "manifest.json").unlink(missing_ok=True)
        started = time.perf_counter()
        error, tail = _execute(run, folder)
        metrics = {}
        if error is None:
            published = store.root / "results" / run.experiment.edition / f"{run.notebook.stem}.json"
            metrics = load_manifest(published)["metrics"] if published.is_file() else {}
            (folder / "notebook.partial.ipynb").replace(folder / "notebook.ipynb")
        made = _manifest(
            run, "failed" if error else "finished", seconds=round(time.perf_counter() - started, 2),
            worker=job["worker"], metrics=metrics, error=error, traceback=tail,
        )  # fmt: skip
        write_json(folder / "manifest.json", made)


def _execute(run: Run, folder: Path) -> tuple[str | None, list[str]]:
    """Run the notebook into `notebook.partial.ipynb`; the cause and the end of the traceback where it failed."""
    import papermill
    from papermill.exceptions import PapermillExecutionError, strip_color
    from traitlets.config import Config

    logging.basicConfig(filename=folder / "log.txt", filemode="w", level=logging.INFO, format="%(message)s", force=True)
    with tempfile.TemporaryDirectory(prefix="kinemic-") as scratch:
        # Kernels that start side by side would race for TCP ports and for one profile.
        os.environ["IPYTHONDIR"] = f"{scratch}/ipython"
        channel = {"transport": "ipc", "connection_file": f"{scratch}/kernel.json"}
        try:
            papermill.execute_notebook(
                str(run.notebook), str(folder / "notebook.partial.ipynb"), {"scale": run.scale, **run.nested},
                cwd=str(run.notebook.parent), kernel_name="python3", progress_bar=False, log_output=True,
                config=Config({"KernelManager": channel}),
            )  # fmt: skip
        except PapermillExecutionError as error:
            said = next((line.strip() for line in strip_color(error.evalue).splitlines() if line.strip()), "")
            tail = strip_color("\n".join(error.traceback)).splitlines()
            return f"{error.ename}: {said}", tail[-20:]
        except Exception as error:  # a kernel that dies or does not start; whatever it is, the sweep goes on
            return _first_line(error), str(error).splitlines()[-20:]
    return None, []


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # else kernels inherit the block
    # Two runners of one run may start together, so all they say goes to the worker until the lock is theirs.
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    _run(given)
