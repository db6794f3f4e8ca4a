"""Exact retrieval: time for 120 labels among 45,000 captions, and a streamed bank of a million.

    python benchmarks/retrieve.py [--quick] [--folder FOLDER] [--out FILE]

The vectors are random, as wide as CLIP's; embedding the captions is not part of the times. The baseline sorts the
cosines of every label with the whole bank, which is what `soft_positives` did. Both are timed with a bank that is
normalised in the call, and with one that was normalised before: a bank that answers more than one call needs that once,
so the second is the time of a search. `product` is the matrix product alone, which no exact search can avoid. Runs
alternate, the median counts.

The streamed bank is a float16 file that is written, and read back, a chunk at a time; it needs 1 GB of disk in FOLDER.
Peak memory is what NumPy allocates, counted in a run of its own; pages of the file that the system keeps are not in it.
The time for ten million is extrapolated on a straight line through the measured sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from kinemic.artefacts import RECORD, environment, write_json
from kinemic.retrieval import ROWS, Neighbours, soft_positives, unit_rows

WIDTH, LABELS, TOP_K = 512, 120, 250


def full_sort(queries: np.ndarray, bank: np.ndarray, normalised: bool) -> Neighbours:
    """The baseline: all cosines of a label, sorted."""
    scores = unit_rows(queries) @ (bank if normalised else unit_rows(bank)).T
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    return Neighbours(indices, np.take_along_axis(scores, indices, axis=1))


def timed(work: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each; they take turns."""
    seconds = {name: [] for name in work}
    for _ in range(repetitions):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(all_of_it) for name, all_of_it in seconds.items()}


def peak_megabytes(call: Callable[[], object]) -> float:
    """Most memory that the call holds at once, beyond what was there before."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small banks, few repetitions: does it run?")
    parser.add_argument("--folder", type=Path, help="for the file of the streamed bank; default the temporary folder")
    parser.add_argument("--out", type=Path, default=RECORD / "benchmarks" / "retrieve.json")
    options = parser.parse_args(argv)
    captions, many, repetitions = (5000, 40_000, 3) if options.quick else (45_000, 1_000_000, 15)

    rng = np.random.default_rng(0)
    queries = rng.standard_normal((LABELS, WIDTH), np.float32)
    bank = rng.standard_normal((captions, WIDTH), np.float32)
    unit, unit_queries = unit_rows(bank), unit_rows(queries)
    in_call, before = "normalised in the call", "normalised before"
    work = {
        ("full sort", in_call): lambda: full_sort(queries, bank, False),
        ("full sort", before): lambda: full_sort(queries, unit, True),
        ("top-k", in_call): lambda: soft_positives(queries, bank, TOP_K),
        ("top-k", before): lambda: soft_positives(queries, unit, TOP_K, normalised=True),
        ("product", before): lambda: unit_queries @ unit.T,
    }
    slow, fast = work["full sort", before](), work["top-k", before]()
    same = float((slow.indices == fast.indices).mean())
    seconds = timed(work, repetitions)
    rows = [{"search": search, "bank": captions, "bank is": state, "milliseconds": 1000 * seconds[search, state],
             "speed-up": seconds["full sort", state] / seconds[search, state],
             "peak MB": peak_megabytes(work[search, state])} for search, state in work]  # fmt: skip

    sizes = [many // 4, many // 2, many]
    places = np.arange(LABELS) * (many // 4 // LABELS)  # each label is hidden in the bank, also in its smallest part
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stored = np.memmap(Path(folder) / "bank.f16", np.float16, "w+", shape=(many, WIDTH))
        for first in range(0, many, ROWS):
            stored[first : first + ROWS] = rng.standard_normal((min(ROWS, many - first), WIDTH), np.float32)
        stored[places] = queries
        work = {size: lambda size=size: soft_positives(queries, stored[:size], TOP_K) for size in sizes}
        if not np.array_equal(work[many]().indices[:, 0], places):
            raise SystemExit("the streamed search does not find the labels that were hidden in its bank")
        streamed = timed(work, max(1, repetitions // 5))
        rows += [{"search": "streamed", "bank": size, "bank is": f"a float16 file, {in_call}",
                  "milliseconds": 1000 * streamed[size], "peak MB": peak_megabytes(work[size])}
                 for size in sizes]  # fmt: skip
    slope, offset = np.polyfit(sizes, [streamed[size] for size in sizes], 1)
    summary = {
        "milliseconds": 1000 * seconds["top-k", before],
        "milliseconds of a full sort": 1000 * seconds["full sort", before],
        "speed-up": seconds["full sort", before] / seconds["top-k", before],
        "share of equal neighbours": same,
        "seconds for the largest bank": streamed[many],
        "peak MB of the largest bank": rows[-1]["peak MB"],
        "seconds for ten million, extrapolated": float(offset + slope * 1e7),
        "GB of a file of ten million": 1e7 * WIDTH * 2 / 1e9,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {
        "name": "retrieve", "made": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(),
        "settings": {"labels": LABELS, "width": WIDTH, "top_k": TOP_K, "rows of a chunk": ROWS,
                     "repetitions": repetitions, "threads": torch.get_num_threads(), "quick": options.quick},
        "rows": rows, "summary": summary,
    })  # fmt: skip
    sys.stdout.write(f"{options.out}: {summary}\n")


if __name__ == "__main__":
    main()
