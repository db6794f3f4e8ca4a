"""From recordings to a folder in the layout of HumanML3D, which every chapter reads.

    files --formats--> recordings --skeleton--> 22 joints --cut--> pieces --motion.process--> clips --> folder

The clips of each file wait in a folder of their own, in a hidden draft beside the folder to make. An import that was
interrupted or stopped goes on where it was; the folder itself appears when all is there. Two imports of the same files
give the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from kinemic import artefacts, data, formats, motion, skeletons
from kinemic.formats import Recording, Source

__all__ = ["MAX_FRAMES", "convert", "cut", "read_label_table", "summary"]

MAX_FRAMES = 199  # rows of the longest clip that a HumanML3D loader accepts
MIN_FRAMES = 40  # rows of the shortest
REPORT = "import.json"
NO_LICENCE = "Not stated at import. Find out what the owner of these recordings allows before you pass this folder on."
_COLUMNS = ("name", "caption", "action", "subject", "setup", "split")
_RECORD = "record.json"
_PARTS = ("new_joint_vecs", "new_joints", "texts")


@dataclass(frozen=True)
class _Settings:
    """What the result of one file depends on, beside the file and the code."""

    skeleton: skeletons.Skeleton | None
    fps: float | None
    retarget: bool
    max_frames: int


def convert(
    source: str | Path | Iterable[Recording],
    folder: str | Path,
    *,
    skeleton: str | Path | None = None,
    labels: str | Path | None = None,
    fps: float | None = None,
    licence: str | None = None,
    retarget: bool = True,
    max_frames: int = MAX_FRAMES,
    skip_bad: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
    """Write recordings as a HumanML3D folder.

    Beside the layout of HumanML3D, the folder gets `labels.csv` (if there are labels), `LICENCE.txt`, `Mean.npy` and
    `Std.npy` (of the list `train`, else of all clips), and `import.json`, the report.

    Args:
        source: a file, a folder (see `formats.sources`), or recordings.
        folder: to make; must not exist, or be empty.
        skeleton: name of a known skeleton, or the path of a YAML file; by default recognised by joint names.
        labels: CSV file, see `read_label_table`.
        fps: frames per second, for files that do not state it; it overrides what a file states, with a note.
        licence: terms of the recordings, for `LICENCE.txt`.
        retarget: give all bodies the reference bones, see `motion.process`.
        max_frames: longer recordings are cut into pieces of nearly equal length (rows at 20 fps); 0 does not cut.
        skip_bad: leave out files that cannot be read and list them in the report, instead of stopping at the first.
        jobs: processes.

    Returns:
        The report: plain data, the same for two runs. `files` has one entry per recording (file, format, skeleton, fps,
        frames, seconds, rows, clips, notes), `skipped` file and reason, `ignored` the endings that are no motion.

    Raises:
        FileNotFoundError: no source, label table or skeleton file.
        ValueError: the folder is not empty, a file that cannot be read (the first one), nothing to write, or two clips
            of one name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; delete it first or choose another folder")
    if fps is not None and not 1 <= fps <= 1000:
        raise ValueError(f"the frame rate is {fps:g}, expected 1 to 1000 frames per second")
    if max_frames < 0 or jobs < 1:
        raise ValueError(f"max_frames is {max_frames} and jobs {jobs}, expected at least 0 and 1")
    settings = _Settings(skeletons.load(skeleton) if skeleton is not None else None, fps, retarget, max_frames)
    rows = read_label_table(labels) if labels is not None else {}
    if isinstance(source, str | Path):
        root = Path(source)
        items, ignored = formats.sources(root)
        root, origin = (root if root.is_dir() else root.parent), root.resolve().name
    else:
        items, ignored, root, origin = list(source), Counter(), None, "recordings"
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.importing"
    draft.mkdir(exist_ok=True)
    tables = {name: str(table) for name, table in skeletons.known().items()}
    code = artefacts.source_hash("data", "formats", "importing", "mocap", "motion", "skeletons", "untrusted")
    same = artefacts.fingerprint([code, tables, str(settings)])
    work = (delayed(_import)(item, root, draft, settings, _labels_of(item, rows), same) for item in items)
    entries, skipped, owners, keys = [], [], {}, []
    try:
        made_of = tqdm(_run(work, jobs), total=len(items), unit="file", disable=None)  # silent where nobody watches
        for number, (item, made) in enumerate(zip(items, made_of, strict=True)):
            where = _place(item, root)
            if "error" in made:
                if not skip_bad:
                    raise ValueError(_stopped(made["error"], len(entries), len(items)))
                skipped.append({"file": where, "why": made["error"].replace(f"{root}/", "") if root else made["error"]})
                continue
            if not made["recordings"]:
                skipped.append({"file": where, "why": "holds no motion"})
                continue
            keys.append(made["key"])
            for entry in made["recordings"]:
                for clip in entry["clips"]:
                    owner, other = owners.setdefault(clip["name"].casefold(), (number, where))
                    if owner != number:
                        raise ValueError(f"{other} and {where} both give a clip {clip['name']}; rename one")
            entries += made["recordings"]
        if not entries:
            first = f"; the first: {skipped[0]['file']}, {skipped[0]['why']}" if skipped else ""
            raise ValueError(f"nothing of {origin} could be read{first}")
        report = _finish(draft, keys, entries, licence) | {
            "source": origin, "skipped": skipped, "ignored": dict(sorted(ignored.items())),
            "labels without a clip": sorted(rows.keys() - {entry["name"] for entry in entries}),
        }  # fmt: skip
        _write_text(draft / "whole" / REPORT, json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        (draft / "whole").replace(folder)
    finally:
        if folder.is_dir() and any(folder.iterdir()) or not any(draft.glob(f"*/{_RECORD}")):
            shutil.rmtree(draft, ignore_errors=True)
    return report


def read_label_table(path: str | Path) -> dict[str, list[dict[str, str]]]:
    """What a user knows about recordings: a CSV file with the column `name` and any of `caption`, `action`, `subject`,
    `setup` and `split`.

    `name` is the name of the file without its ending, or of the clip in a file of several. A name may have several
    rows, one per caption.

    Returns:
        Name -> its rows, without empty cells.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other columns, a row of another length, no name, a caption that is not one line without `#`, a
            split that is not a file name, or rows of one name that contradict each other.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, expected a CSV file with a column name; check the path")
    table: dict[str, list[dict[str, str]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            columns = next(reader, [])
            if "name" not in columns or len(set(columns)) != len(columns) or not set(columns) <= set(_COLUMNS):
                raise ValueError(f"{path}, line 1: columns are {columns}, expected name and any of {_COLUMNS[1:]}")
            for values in reader:
                if len(values) != len(columns):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: found {len(values)} values, expected {len(columns)} "
                        "(a caption with a comma needs quotes); mend the line"
                    )
                row = {key: value.strip() for key, value in zip(columns, values, strict=True) if value.strip()}
                try:
                    if "name" not in row:
                        raise ValueError("name is empty")
                    if "caption" in row:
                        data.Caption(row["caption"])
                    if not re.fullmatch(r"[\w-]{1,100}", row.get("split", "train")):
                        raise ValueError(f"split is {row['split']!r}, expected letters, digits, '_' or '-'")
                except ValueError as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}; mend the line") from error
                earlier = table.setdefault(formats.clip_name(row.pop("name")), [])
                for field in ("action", "subject", "setup"):
                    if len({other[field] for other in [*earlier, row] if field in other}) > 1:
                        raise ValueError(
                            f"{path}, line {reader.line_num}: another {field} than in a row above for the same name; "
                            "mend the line"
                        )
                earlier.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not UTF-8 text with commas ({error}); save it as CSV, UTF-8") from error
    return table


def cut(recording: Recording, *, retarget: bool = True, max_frames: int = MAX_FRAMES) -> list[data.Clip]:
    """The clips of one recording: 22 joints at 20 fps, in pieces of at most `max_frames` rows and nearly equal length.

    Each piece is placed by its own first frame. Captions about the whole recording go to every piece, those with times
    to the pieces that they touch.

    Args:
        recording: what was read.
        retarget: see `motion.process`.
        max_frames: rows; 0 does not cut.

    Raises:
        ValueError: as `Recording.body` and `motion.process`.
    """
    joints = motion.resample(recording.body(), recording.fps)
    rows = len(joints) - 1
    count = max(1, -(-rows // max_frames)) if max_frames else 1
    edges = np.linspace(0, rows, count + 1).round().astype(int)
    clips = []
    for index, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        clip = data.Clip.from_joints(
            recording.name if count == 1 else f"{recording.name}_part{index:02d}",
            joints[start : stop + 1], motion.FPS, retarget=retarget, floor=recording.floor,
            captions=_within(recording.captions, start, stop) if count > 1 else recording.captions,
            action=recording.action, subject=recording.subject, setup=recording.setup,
        )  # fmt: skip
        clips.append(clip)
    return clips


def summary(report: Mapping[str, Any]) -> str:
    """The report as a table for people, with everything that they should look at below it."""
    groups: dict[tuple, list] = {}
    for entry in report["files"]:
        groups.setdefault((entry["format"], entry["skeleton"], entry["fps"]), []).append(entry)
    head = ("format", "skeleton", "fps", "read", "frames", "seconds", "clips", "rows")
    lines = ["{:20} {:12} {:>7} {:>6} {:>8} {:>9} {:>6} {:>8}".format(*head)]
    for (kind, skeleton, fps), entries in sorted(groups.items()):
        frames, seconds = sum(e["frames"] for e in entries), sum(e["seconds"] for e in entries)
        clips, rows = (sum(f(e) for e in entries) for f in (lambda e: len(e["clips"]), lambda e: e["rows"]))
        lines.append(
            f"{kind:20} {skeleton:12} {fps:7.4g} {len(entries):6} {frames:8} {seconds:9.1f} {clips:6} {rows:8}"
        )
    lines.append(f"all at {report['fps']} fps; lists: " + ", ".join(f"{k} {n}" for k, n in report["lists"].items()))
    lines += [f"skipped {each['file']}: {each['why']}" for each in report["skipped"]]
    lines += [f"{what}: {count}" for what, count in report["look at"].items() if count]
    notes = Counter(note for entry in report["files"] for note in entry["notes"])
    first = {note: entry["file"] for entry in reversed(report["files"]) for note in entry["notes"]}
    shown = notes.most_common(20)
    lines += [f"note, {n} times, first {first[note]}: {note}" if n > 1 else f"note, {first[note]}: {note}"
              for note, n in shown]  # fmt: skip
    if len(notes) > len(shown):
        lines.append(f"and {len(notes) - len(shown)} other notes in {REPORT}")
    if report["labels without a clip"]:
        names = report["labels without a clip"]
        lines.append(f"{len(names)} names of the label table have no clip, such as {names[0]}")
    if report["ignored"]:
        endings = ", ".join(f"{n} {ending}" for ending, n in report["ignored"].items())
        lines.append(f"files that are no motion: {endings}")
    if report["licence"] is None:
        lines.append("no licence was given (--licence TEXT); LICENCE.txt says so")
    return "\n".join(lines)


def _run(work: Iterable, jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        return (call(*arguments, **options) for call, arguments, options in work)
    return Parallel(n_jobs=jobs, return_as="generator")(work)


def _stopped(error, done, total):
    if total == 1:
        return error
    kept = f"{done} of {total} files are kept for the next run; " if done else ""
    return f"{error} ({kept}--skip-bad leaves out what cannot be read)"


def _place(item, root):
    if isinstance(item, Source):
        return item.path.relative_to(root).as_posix()
    return item.name


def _import(item, root, draft, settings, labels, same):
    """One file: its clips in a folder of the draft, with a record; found again if nothing changed."""
    partial = None
    try:
        key = _key(item, root, labels, same)
        if (draft / key / _RECORD).is_file():
            return json.loads((draft / key / _RECORD).read_text(encoding="utf-8"))
        partial = draft / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        recordings = formats.read(item, settings.skeleton, settings.fps) if isinstance(item, Source) else [item]
        made, names = [], set()
        for recording in recordings:
            recording = _labelled(recording, labels.get(recording.name, []))
            try:
                clips = cut(recording, retarget=settings.retarget, max_frames=settings.max_frames)
            except ValueError as error:
                where = f"{item.path}: " if isinstance(item, Source) else ""
                raise ValueError(f"{where}{error}") from error
            for clip in clips:
                if clip.name.casefold() in names:
                    raise ValueError(f"{_place(item, root)} gives two clips {clip.name}; rename one")
                names.add(clip.name.casefold())
                data.write_clip(partial, clip)
            made.append(_entry(recording, clips, _place(item, root)))
        record = {"recordings": made, "key": key}
        if made:
            _write_text(partial / _RECORD, json.dumps(record))
            shutil.rmtree(draft / key, ignore_errors=True)  # what an interrupted end has left
            partial.replace(draft / key)
        return record
    except (ValueError, OSError) as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        return {"error": " ".join(str(error).split())}


def _key(item, root, labels, same):
    """What the clips of one file depend on: its bytes, its place, its labels, and what is the same for all files."""
    digest = hashlib.sha256()
    if isinstance(item, Source):
        for path in item.files:
            with open(path, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        about = [item.name, item.kind, dict(item.given)]
    else:
        digest.update(np.ascontiguousarray(item.joints).tobytes())
        about = [str(getattr(item, each.name)) for each in fields(item) if each.name != "joints"]
    return artefacts.fingerprint([_place(item, root), digest.hexdigest(), about, labels, same])


def _labels_of(item, rows):
    """The part of the label table that bears on a file: all of it where the file names its recordings."""
    if isinstance(item, Source) and item.kind == "pyskl":
        return rows
    return {item.name: rows[item.name]} if item.name in rows else {}


def _labelled(recording, rows):
    captions = tuple(data.Caption(row["caption"]) for row in rows if "caption" in row)
    told = {field: row[field] for row in rows for field in ("action", "subject", "setup") if field in row}
    splits = tuple(dict.fromkeys(row["split"] for row in rows if "split" in row))
    return replace(recording, captions=captions or recording.captions, splits=splits or recording.splits, **told)


def _within(captions: Sequence[data.Caption], start: int, stop: int) -> tuple[data.Caption, ...]:
    """Captions of the rows [start, stop), with times that begin there."""
    kept, (first, last) = [], (start / motion.FPS, stop / motion.FPS)
    for caption in captions:
        if caption.whole:
            kept.append(caption)
        elif caption.start < last and caption.end > first:
            begin, end = max(0.0, caption.start - first), min(caption.end, last) - first
            kept.append(data.Caption(caption.text, round(begin, 3), round(end, 3)))
    return tuple(kept)


def _entry(recording, clips, file):
    frames = len(recording.joints)
    notes = list(recording.notes)
    if len(clips) > 1:
        notes.append(f"cut into {len(clips)} pieces")
    return {
        "file": file, "name": recording.name, "format": recording.format, "skeleton": recording.skeleton.name,
        "fps": recording.fps, "frames": frames, "seconds": round(frames / recording.fps, 3),
        "rows": sum(map(len, clips)), "splits": list(recording.splits or ("train",)),
        "notes": notes + _doubts(recording.body()),
        "clips": [{"name": c.name, "rows": len(c), "captions": len(c.captions), "action": c.action,
                   "subject": c.subject, "setup": c.setup} for c in clips],
    }  # fmt: skip


def _doubts(body):
    """What looks like a wrong axis or exchanged sides; people do lie and stand on their hands, so it is only said."""
    trunk = (body[:, 12] - body[:, 0]).mean(axis=0)
    if abs(trunk[1]) < 0.3 * np.linalg.norm(trunk):
        return ["the trunk lies: if nobody does, the up axis of the skeleton is wrong"]
    if trunk[1] < 0:
        return ["the head is below the hips: if nobody stands on the hands, the up axis of the skeleton is wrong"]
    forward = body[:, 10] - body[:, 7] + body[:, 11] - body[:, 8]
    left = np.cross([0.0, 1.0, 0.0], forward)
    if ((left * (body[:, 1] - body[:, 2])).sum(axis=1) < 0).mean() > 0.9:
        return ["left and right look exchanged: the feet point backwards; check the mapping of the skeleton"]
    return []


def _finish(draft, keys, entries, licence):
    """The whole folder, from the folders of all files: lists, tables and statistics are added. Returns the report."""
    whole = draft / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    for part in _PARTS:
        (whole / part).mkdir(parents=True)
    for key in keys:
        (draft / key / _RECORD).unlink()  # first, so that an interrupted end does not count as done
        for part in _PARTS:
            for path in (draft / key / part).iterdir():
                path.replace(whole / part / path.name)
    clips = [clip for entry in entries for clip in entry["clips"]]
    lists: dict[str, list[str]] = {}
    for entry in entries:
        for split in entry["splits"]:
            lists.setdefault(split, []).extend(clip["name"] for clip in entry["clips"])
    lists = dict(sorted(lists.items()))
    data.write_tables(whole, lists, [(c["name"], c["action"], c["subject"], c["setup"]) for c in clips])
    notes = {
        f"clips under {MIN_FRAMES} frames, too short for a source": sum(c["rows"] < MIN_FRAMES for c in clips),
        "clips without a caption, which every source and target needs": sum(not c["captions"] for c in clips),
    }
    try:
        wanted = lists.get("train", [clip["name"] for clip in clips])
        _statistics([whole / "new_joint_vecs" / f"{name}.npy" for name in wanted]).save(whole)
    except ValueError:  # a feature that never changes has no spread; other folders' statistics then serve
        notes["clips too alike for Mean.npy and Std.npy: some feature never changes"] = len(clips)
    _write_text(whole / "LICENCE.txt", (licence or NO_LICENCE).strip() + "\n")
    return {
        "fps": motion.FPS, "clips": len(clips), "rows": sum(c["rows"] for c in clips), "files": entries,
        "licence": licence, "lists": {name: len(members) for name, members in lists.items()}, "look at": notes,
    }  # fmt: skip


def _statistics(paths):
    """Mean and spread over all rows of many files, one file at a time."""
    count, total = 0, np.zeros(motion.NUM_FEATURES)
    for path in paths:
        rows = np.load(path).astype(np.float64)
        count, total = count + len(rows), total + rows.sum(axis=0)
    mean, squares = total / count, np.zeros(motion.NUM_FEATURES)
    for path in paths:
        squares += ((np.load(path) - mean) ** 2).sum(axis=0)
    return motion.Normalizer.grouped(mean, np.sqrt(squares / count))


def _write_text(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")
