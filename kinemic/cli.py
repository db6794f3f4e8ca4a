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

IMPORT = """\
kinds of SOURCE (a file, or a folder that is searched for them):
  .bvh                  any channel order; the skeleton is recognised by its bone names
  .amc                  CMU, with the .asf beside it; needs --fps (most trials: 120)
  .npz of AMASS         poses and trans, on a standard body; needs --fps where the file has no rate
  .npy, .npz            joints (frames, joints, 3), in the .npz with fps and names; .npy needs --fps
  .skeleton             NTU RGB+D: of several bodies the one that moves most
  .pkl                  annotations of pyskl; read without running anything
  a folder              in the layout of HumanML3D, KIT-ML or NTU-VIBE

examples:
  kinemic import walk.bvh --to mine
  kinemic import takes/ --to mine --labels takes.csv --licence "CC BY 4.0, A. Name" --jobs 4
  kinemic import cmu/02 --to cmu02 --fps 120
  kinemic import robot.bvh --to mine --skeleton robot.yaml
  kinemic export mine/walk --format gif                         # look at what was read

The label table is a CSV file with the column name (of the file, without ending) and any of caption, action, subject,
setup, split; a name with several captions has several rows. A target for the chapters needs actions, subjects, a
caption per class and the lists (split) pool and test; a source needs captions and the list train, the default.

A skeleton file (YAML) says which bones of yours are the 22 joints, how long a unit is and which axis points up. A joint
is where a bone begins: left_elbow is what most files call the forearm. Names, or weights that add up to 1:
  metres_per_unit: 0.01
  up: y
  mapping: {
    pelvis: hip, spine1: {hip: 0.5, abdomen: 0.5}, spine2: abdomen, spine3: chest, neck: neck, head: head,
    left_hip: lThigh, left_knee: lShin, left_ankle: lFoot, left_foot: lToe,
    right_hip: rThigh, right_knee: rShin, right_ankle: rFoot, right_foot: rToe,
    left_collar: lCollar, left_shoulder: lShldr, left_elbow: lForeArm, left_wrist: lHand,
    right_collar: rCollar, right_shoulder: rShldr, right_elbow: rForeArm, right_wrist: rHand}
Known skeletons: humanml3d, kinemic, smpl22, smplh, kinect25, kit21, bandai, cmu, mixamo; with `base: cmu` in the file
the mapping needs only what differs from one of them.

Recordings are brought to 20 frames per second and the reference bones, and cut into pieces of at most 199 frames.
The import stops at the first file that cannot be read; the same command then goes on where it was. Until all is there
the clips wait in the hidden folder .NAME.importing beside FOLDER; delete it to give up.

exit code: 0 imported, 2 nothing was written because of an error, 130 interrupted
"""


def _verb(verbs, name: str, epilog: str, **texts: str) -> argparse.ArgumentParser:
    """Parser of one verb; the epilog is printed as it is written."""
    return verbs.add_parser(name, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)


def _add_import(verbs) -> None:
    parser = _verb(
        verbs, "import", IMPORT,
        help="turn recorded motion into a folder that the chapters read",
        description="Turn recorded motion into a folder in the layout of HumanML3D, with a report.",
    )  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", help="a file, or a folder of files, see below")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--skeleton", metavar="NAME|FILE", help="a known skeleton or a YAML file; default: recognised")
    parser.add_argument("--labels", metavar="CSV", help="table of captions, actions, subjects, set-ups and lists")
    parser.add_argument("--fps", type=float, metavar="F", help="frames per second of files that do not state it")
    parser.add_argument("--licence", metavar="TEXT", help="terms of the recordings, kept in LICENCE.txt")
    parser.add_argument("--keep-bones", action="store_true", help="keep each body's own bone lengths")
    parser.add_argument("--max-frames", type=int, default=199, metavar="N", help="rows of a piece, 0 does not cut")
    parser.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be read, and list them")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="processes, default 1")
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    from kinemic import importing

    try:
        report = importing.convert(
            args.source, args.to, skeleton=args.skeleton, labels=args.labels, fps=args.fps, licence=args.licence,
            retarget=not args.keep_bones, max_frames=args.max_frames, skip_bad=args.skip_bad, jobs=args.jobs,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with the next file", file=sys.stderr)
        return 130
    print(importing.summary(report))
    print(f"{args.to}: {report['clips']} clips, {report['rows'] / report['fps']:.1f} seconds; report in import.json")
    return 0


def _add_sweep(verbs) -> None:
    parser = _verb(
        verbs, "sweep", GRID,
        help="run a notebook for every combination of parameters in a grid",
        description="Run a notebook for every combination of parameters in a grid, side by side.",
    )  # fmt: skip
    parser.add_argument("notebook", help="notebook with a parameters cell, e.g. notebooks/06_ablations.ipynb")
    parser.add_argument("--grid", required=True, metavar="FILE", help="YAML file of parameters, see below")
    parser.add_argument(
        "--scheduler", default="local", metavar="local|ADDRESS",
        help="'local' (default): processes on this machine; else the address of a Dask scheduler, tcp://HOST:PORT",
    )  # fmt: skip
    parser.add_argument("--workers", type=_count, metavar="N", help="local processes, default one per core")
    parser.set_defaults(run=_sweep)


EXPORT = """\
MOTION is one of
  clip.npy            joints (T, 22, 3) or (T, 66) in metres, with --fps; or features (T, 263), which are 20 fps
  clip.npz            what --format npz wrote: joints, frame rate, names, parents, caption, label, licence
  FOLDER/NAME         a clip of a folder in the layout of HumanML3D; FOLDER alone means all of them
  synthesize/KEY      generated clips, a folder of the cache (KINEMIC_CACHE, default .cache/kinemic)

--format is one of these or several, with commas; data are written before pictures, whatever the order, and a file
that cannot be written costs only itself
  bvh    hierarchy and rotations, centimetres, y up           json   what the viewer of the book embeds
  gltf   glTF 2.0: skin, animation and bones to look at       gif    moving picture
  npz    joints and all that is known about them              mp4    film; needs: pip install 'kinemic[video]'
  pyskl  one pickle of annotations for all motions, with labels

examples
  kinemic export walk.npy --fps 30 --format bvh
  kinemic export PATH/HumanML3D/000021 --format bvh,gltf,gif --to out
  kinemic export PATH/target --clips pool test --format pyskl --to target.pkl
  kinemic export PATH/NTU-VIBE --clips official-xsub/train official-xsub/test --format pyskl --to ntu.pkl
  kinemic export .cache/kinemic/synthesize/KEY --clips synth_000000 --format mp4

exit code: 0 everything is written, 2 an error; all files that could be written are there
"""


def _add_export(verbs) -> None:
    parser = _verb(
        verbs, "export", EXPORT,
        help="write motions as files that other tools open",
        description="Write motions as files that other tools open.",
    )  # fmt: skip
    parser.add_argument("motions", nargs="+", metavar="MOTION", help="file, clip or folder, see below")
    parser.add_argument("--format", required=True, metavar="F[,F...]", help="bvh, gltf, gif, mp4, json, npz, pyskl")
    parser.add_argument("--to", default=".", metavar="PATH", help="folder, or the file if there is only one; default .")
    parser.add_argument("--fps", type=float, metavar="F", help="frame rate of plain joints, which do not say it")
    parser.add_argument(
        "--clips", nargs="+", default=[], metavar="NAME",
        help="of a folder: these clips or lists only, also official-xsub/train and the like",
    )  # fmt: skip
    parser.add_argument("--label", metavar="NAME", help="class of all motions, instead of their own")
    parser.add_argument("--licence", metavar="TEXT", help="terms of the motions, noted in npz and gltf")
    parser.add_argument("--no-text", action="store_true", help="leave caption and label out of pictures")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    import warnings
    from dataclasses import replace

    from kinemic import export

    given = {key: getattr(args, key) for key in ("label", "licence") if getattr(args, key)}
    motions = [
        replace(motion, **given) for source in args.motions for motion in export.read(source, args.fps, args.clips)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: print(f"kinemic: {message}", file=sys.stderr)
        for path in export.save(motions, args.format.split(","), args.to, text=not args.no_text):
            print(path)
    return 0


AUDIT = """\
A folder has the layout of HumanML3D (train.txt, new_joint_vecs, texts, perhaps labels.csv) or of NTU-VIBE (splits).
It is read whatever is wrong with its files; what cannot be read is a finding like any other.

  kinemic audit PATH/HumanML3D                                    # all lists of the folder
  kinemic audit PATH/NTU-VIBE --split official-xsub               # clips on the sides their names give them
  kinemic audit PATH/mine --threshold jitter=0.3 --threshold skating=inf --json report.json --figures pictures

A threshold is the largest value that is accepted; inf turns a check off. --checks lists them all.
--json has the findings, lengths and speeds per class, the measures of every clip, all pairs of lists and the spectrum.

exit code: 0 nothing found, 1 a threshold is crossed, 2 the folder could not be audited
"""


def _add_audit(verbs) -> None:
    parser = _verb(
        verbs, "audit", AUDIT,
        help="say what is wrong with a folder of motions",
        description="Check a folder of motions: files, captions, defects of the motion, duplicates, splits.",
    )  # fmt: skip
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
    for add in (_add_import, _add_export, _add_audit, _add_sweep):
        add(verbs)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        print(f"kinemic: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
