"""The command `kinemic`: a verb, its arguments, one line for every error.

A verb is a function that adds its parser and sets `run`, a function of the parsed arguments that returns the exit code.
Modules are imported when their verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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


AUDIT = """\
A folder has the layout of HumanML3D (train.txt, new_joint_vecs, texts, perhaps labels.csv) or of NTU-VIBE (splits).
It is read whatever is wrong with its files; what cannot be read is a finding like any other.

  kinemic audit PATH/HumanML3D                                    # all lists of the folder
  kinemic audit PATH/NTU-VIBE --split official-xsub               # clips on the sides their names give them
  kinemic audit PATH/mine --threshold jitter=0.3 --threshold skating=inf --json report.json --figures pictures

A threshold is the largest value that is accepted; inf turns a check off. --checks lists them all.

exit code: 0 nothing found, 1 a threshold is crossed, 2 the folder could not be audited
"""


def _add_audit(verbs) -> None:
    parser = verbs.add_parser(
        "audit",
        help="say what is wrong with a folder of motions",
        description="Check a folder of motions: files, captions, defects of the motion, duplicates, splits.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=AUDIT,
    )
    parser.add_argument("folder", help="folder in the layout of HumanML3D or NTU-VIBE")
    parser.add_argument(
        "--split", action="append", metavar="NAME",
        help="list to read, more than once for several; official-xsub and official-xset go by names; default all lists",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the whole report there")
    parser.add_argument("--figures", metavar="FOLDER", help="write pictures of lengths, speeds and spectrum there")
    parser.add_argument(
        "--threshold", action="append", default=[], type=_threshold, metavar="NAME=VALUE",
        help="accept other values than the default; more than once for several, see below",
    )  # fmt: skip
    parser.add_argument("--checks", action=_Checks, nargs=0, help="list checks, thresholds and their origin, and stop")
    parser.set_defaults(run=_audit)


class _Checks(argparse.Action):
    def __call__(self, parser, *_):
        from kinemic.audit import CHECKS, CLEAN

        for name, check in CHECKS.items():
            print(f"{name:10} {check.threshold:g} {check.unit}: {check.what} ({check.origin})")
        print(f"clean data: {CLEAN}")
        parser.exit()


def _threshold(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name, float(value if equals else "nothing")
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with a number, found {text!r}") from None


def _audit(args: argparse.Namespace) -> int:
    from kinemic import audit
    from kinemic.artefacts import write_json

    report = audit.audit_folder(args.folder, args.split, dict(args.threshold))
    # a report that is asked for is written before anything else can fail
    if args.json:
        write_json(Path(args.json), report.record())
    table = report.table()
    found = table[table["findings"] > 0]
    print(f"{len(report.clips)} clips, {report.clips['frames'].sum() / 20 / 60:.1f} minutes")
    for name, row in found.iterrows():
        what = f"{audit.CHECKS[name].what} (above {row['threshold']:g} {row['unit']})"
        print(f"\n{name}, {row['findings']:.0f} findings: {what}")
        members = [f for f in report.findings if f.check == name]
        for finding in members[:5]:
            print(f"  {finding}")
        if len(members) > 5:
            print(f"  and {len(members) - 5} more{'' if args.json else ' (all of them with --json)'}")
    print(f"\n{len(report.findings) or 'no'} findings, {len(found)} of {len(table)} checks")
    if args.figures and len(report.clips):
        folder = Path(args.figures)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in report.figures().items():
            figure.savefig(folder / f"{name}.png", dpi=150)
    return int(not report.clean)


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
    for add in (_add_sweep, _add_audit):
        add(verbs)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        print(f"kinemic: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
