"""The command `kinemic`: a verb, its arguments, one line for every error.

A verb is a function that adds its parser and sets `run`, a function of the parsed arguments that returns the exit code.
Modules are imported when their verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import kinemic

__all__ = ["main"]

GRID = """\
The grid is a YAML file:

  base: embedded                              # scale that every run starts from (notebooks/params)
  fixed: {draws: 1}                           # the same in every run
  grid:                                       # lists; every combination is a run
    shots: [1, 3, 5]
    settings.adapt.window: [mined, random]    # fields of sections: settings.SECTION.FIELD
  show: ["kinemic: top-1"]                    # metrics in the printed table; default the first three

All combinations are validated before any is run. A run is found again by the code of the notebook, its settings and
the code of the package: the same command resumes, finished runs are skipped and failed ones are tried again.
Each run has a folder below sweeps/NOTEBOOK in the cache (KINEMIC_CACHE, default .cache/kinemic) with notebook.ipynb,
manifest.json and log.txt; the table of the grid, with all metrics, is sweeps/NOTEBOOK/GRID.csv.

A run gets one core; set OMP_NUM_THREADS to give it more, and lower --workers accordingly.

exit code: 0 all runs are finished, 1 some failed, 2 nothing was run because of an error, 130 interrupted
"""


def _add_sweep(verbs) -> None:
    parser = verbs.add_parser(
        "sweep",
        help="run a notebook for every combination of parameters in a grid",
        description="Run a notebook for every combination of parameters in a grid, side by side.",
        epilog=GRID,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", help="notebook with a parameters cell, e.g. notebooks/06_ablations.ipynb")
    parser.add_argument("--grid", required=True, metavar="FILE", help="YAML file of parameters, see below")
    parser.add_argument(
        "--scheduler", default="local", metavar="local|ADDRESS",
        help="'local' (default): processes on this machine; else the address of a Dask scheduler, tcp://HOST:PORT",
    )  # fmt: skip
    parser.add_argument("--workers", type=_count, metavar="N", help="local processes, default one per core")
    parser.set_defaults(run=_sweep)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)


def _sweep(args: argparse.Namespace) -> int:
    from kinemic import sweep
    from kinemic.artefacts import Store

    grid = sweep.Grid.read(args.grid)
    runs = sweep.plan(args.notebook, grid)
    store = Store()
    asked = len(grid.points())
    twins = f" ({asked} combinations, some equal)" if asked != len(runs) else ""
    print(f"{runs[0].notebook.name}: {len(runs)} to be finished{twins}", file=sys.stderr)
    try:
        made = sweep.sweep(runs, store, args.scheduler, args.workers)
    except KeyboardInterrupt:
        finished = sum(sweep.manifest_of(run, store).get("status") == "finished" for run in runs)
        print(f"interrupted: {finished} of {len(runs)} runs are finished, the same command resumes", file=sys.stderr)
        return 130
    frame = sweep.table(runs, made)
    path = store.root / runs[0].folder.parent / f"{grid.path.stem}.csv"
    frame.to_csv(path, index=False)
    metrics = sorted({name for manifest in made for name in manifest["metrics"]})
    hidden = {"error", *metrics} - set(grid.show or metrics[:3])
    print(frame[[c for c in frame if c not in hidden]].to_string(index=False, na_rep="", float_format="{:.4g}".format))
    print(f"all metrics: {path}")
    failed = [(run, manifest) for run, manifest in zip(runs, made, strict=True) if manifest["status"] != "finished"]
    for run, manifest in failed:
        print(f"failed: {run}: {manifest['error']} ({store.root / run.folder})", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again", file=sys.stderr)
    return int(bool(failed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; what a user can mend is one line on stderr, and code 2."""
    parser = argparse.ArgumentParser(prog="kinemic", description=kinemic.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"kinemic {kinemic.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs, each with its own --help")
    for add in (_add_sweep,):
        add(verbs)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        print(f"kinemic: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
