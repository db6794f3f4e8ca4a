"""Results that are computed once: a content-addressed store, manifests, and numbers for the prose.

A step's key is its name, the settings it reads, the keys of its inputs and the source of the modules that compute it,
so a chapter that is run again with nothing changed only loads. A step writes into a `.partial` folder, which survives
an interruption (training resumes from it), and is renamed when it is complete.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from kinemic.launch import several

__all__ = [
    "Artefact", "Missing", "Store", "code_of", "environment", "fingerprint", "glue", "load_benchmark", "load_manifest",
    "promote", "publish", "source_hash",
]  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results"
PACKAGES = ("torch", "numpy", "scipy", "diffusers", "peft", "transformers", "open_clip_torch", "jupyter-book")


def fingerprint(value: Any) -> str:
    """Hash of plain data (numbers, strings, lists, dicts), the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def source_hash(*modules: str) -> str:
    """Hash of what the modules of this package do; comments, layout and docstrings do not count.

    Args:
        modules: names without the package, e.g. 'motion', 'mining'.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        spec = importlib.util.find_spec(f"kinemic.{name}")
        if spec is None:
            raise ValueError(f"no module kinemic.{name}")
        tree = ast.parse(Path(spec.origin).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0].value.value = ""
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Code version, package versions and machine, for manifests."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "modified": bool(git("status", "--porcelain", "--", "kinemic", "notebooks")),
        "python": platform.python_version(),
        "packages": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def code_of(*functions: Callable) -> str:
    """Hash of what single functions do, where a whole module would be too much for a key."""
    return fingerprint([ast.dump(ast.parse(textwrap.dedent(inspect.getsource(f)))) for f in functions])


class Artefact:
    """A finished step: its folder, key and manifest."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    @property
    def manifest(self) -> dict[str, Any]:
        """What made it: step, settings, inputs, versions, seconds, metrics."""
        return load_manifest(self.folder / "manifest.json")


class Missing(LookupError):
    """A step was asked of a store that may only load, and it has no such artefact."""


class Store:
    """Content-addressed results below one folder.

    Args:
        root: default `KINEMIC_CACHE`, else `.cache/kinemic` beside the package.

    Raises:
        ValueError: the folder cannot be written; names it and the variable that moves it.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or os.environ.get("KINEMIC_CACHE") or ROOT / ".cache" / "kinemic")
        self._loads_only = False
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"{self.root}: cannot be written ({error.strerror}); set KINEMIC_CACHE to a folder of your own"
            ) from None

    @contextmanager
    def loading_only(self) -> Iterator[None]:
        """Within this context `run` raises `Missing` instead of computing: tells what is still to be done."""
        self._loads_only = True
        try:
            yield
        finally:
            self._loads_only = False

    def run(
        self,
        step: str,
        settings: dict[str, Any],
        compute: Callable[[Path], dict[str, Any] | None],
        *,
        inputs: Sequence[Artefact] = (),
        modules: Sequence[str] = (),
    ) -> Artefact:
        """The finished artefact of a step; computed only if no equal one exists.

        The processes of one launch must all ask for the same steps in the same order. The main one decides, holds the
        lock and writes; the others compute along, into a folder that is thrown away, and wait until the result is
        there. If one of them fails, the launcher ends them all.

        Args:
            step: name of the step, also the folder's.
            settings: everything the step reads, plain data.
            compute: called with the partial folder (which may hold what an interrupted run left), writes its files
                there and returns metrics for the manifest.
            inputs: artefacts it reads.
            modules: modules of this package that decide the result.
        """
        key = fingerprint([step, settings, [a.key for a in inputs], source_hash(*modules) if modules else ""])
        folder = self.root / step / key
        done = folder / "manifest.json"
        if not several() and done.is_file():
            return Artefact(folder, key)
        if not several() and self._loads_only:
            raise Missing(f"{step} {key}")
        from filelock import FileLock

        from kinemic.launch import Team

        team = Team()
        folder.parent.mkdir(parents=True, exist_ok=True)
        # two chapters may ask for the same step at the same time
        with FileLock(str(folder) + ".lock") if team.main else nullcontext():
            if team.from_main(done.is_file()):
                return Artefact(folder, key)
            if self._loads_only:
                raise Missing(f"{step} {key}")
            if not team.main:
                with tempfile.TemporaryDirectory() as scratch:
                    compute(Path(scratch))
                team.wait()
                return Artefact(folder, key)
            partial = folder.with_name(key + ".partial")
            partial.mkdir(exist_ok=True)
            started = time.perf_counter()
            metrics = compute(partial) or {}
            manifest = {
                "step": step, "key": key, "settings": settings, "inputs": {a.folder.parent.name: a.key for a in inputs},
                "modules": list(modules), **environment(), "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - started, 2), "metrics": metrics,
            }  # fmt: skip
            write_json(partial / "manifest.json", manifest)
            if folder.exists():  # a folder without manifest is no artefact
                shutil.rmtree(folder)
            partial.rename(folder)
            team.wait()
        return Artefact(folder, key)


def write_json(path: Path, value: Any) -> None:
    """Write plain data atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")
    partial.replace(path)


def load_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; names the file and the mend.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no manifest there; run the chapter that makes it")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: damaged manifest (line {error.lineno}); delete its folder and run the chapter again"
        ) from None


def load_benchmark(name: str) -> dict[str, Any]:
    """Committed result of a script in the folder `benchmarks`.

    Returns:
        name, made, environment, settings, rows (list of flat dicts) and summary (flat dict).

    Raises:
        FileNotFoundError: not measured yet; gives the command.
    """
    path = RECORD / "benchmarks" / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"not measured yet; make it with:\npython benchmarks/{name}.py")
    return load_manifest(path)


def publish(
    chapter: str, scale: str, metrics: dict[str, dict[str, Any]], settings: dict[str, Any], store: Store
) -> dict:
    """Write a chapter's manifest of results; what its prose glues comes from here.

    Args:
        chapter: slug of the chapter.
        scale: edition of the experiment (`Experiment.edition`); every result carries it.
        metrics: name -> {value, unit, n, and where there is one low, high, method of the interval}.
        settings: the whole experiment (`Experiment.record`).
        store: manifests go to `results/<scale>/<chapter>.json` below its root.

    Returns:
        The manifest.
    """
    for name, metric in metrics.items():
        if not {"value", "unit", "n"} <= set(metric):
            raise ValueError(f"metric {name!r} of {chapter}: needs value, unit and n, has {sorted(metric)}")
    manifest = {
        "chapter": chapter,
        "scale": scale,
        "settings": settings,
        **environment(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": metrics,
    }
    path = store.root / "results" / scale / f"{chapter}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():  # unchanged results keep their date, so that nothing downstream is made again
        old = load_manifest(path)
        if {k: old.get(k) for k in ("metrics", "settings")} == json.loads(
            json.dumps({"metrics": metrics, "settings": settings}, default=str)
        ):
            return old
    write_json(path, manifest)
    return load_manifest(path)


def promote(store: Store | None = None, scales: Sequence[str] | None = None) -> list[Path]:
    """Copy run manifests into `book/results/`, the committed record; smoke runs are not results and stay out."""
    source = (store or Store()).root / "results"
    made = []
    for path in sorted(source.glob("*/*.json")):
        scale = path.parent.name
        if scale == "smoke" or (scales and scale not in scales):
            continue
        target = RECORD / scale / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        made.append(target)
    return made


def glue(key: str, value: Any, form: str = "") -> None:
    """Name a number for the prose of the book.

    The value becomes a string first, because a glued NumPy scalar is printed with its type.
    """
    import logging

    logging.getLogger("myst_nb").setLevel(logging.ERROR)
    from myst_nb import glue as book_glue

    book_glue(key, format(value, form) if form else str(value), display=False)


if __name__ == "__main__":
    if sys.argv[1:2] != ["promote"]:
        sys.exit("usage: python -m kinemic.artefacts promote [SCALE ...]")
    for made in promote(scales=sys.argv[2:] or None):
        sys.stdout.write(f"{made.relative_to(ROOT)}\n")
