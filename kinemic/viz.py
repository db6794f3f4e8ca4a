"""Pictures of motions and results: one house style, data in, figure out.

Every figure function takes arrays or a table and an optional `ax`, returns the matplotlib figure and neither computes
nor shows anything; `show` puts a figure on the page together with its text for readers who cannot see it. `viewer`
makes motions that play in any page, also one opened from disk: the animation is a small custom element whose script
(`viewer.js` in this package) travels with it.

Colours are fixed for the whole book: one per method (`METHOD_COLORS`), one each for left and right limbs, for the
attention curve and for the mined window, the same in stills and animations. They stay apart under simulated colour
blindness, and no figure relies on colour alone.
"""

from __future__ import annotations

import base64
import html
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import boxplot_stats
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from .motion import BONES, FPS, JOINT_NAMES, NUM_JOINTS

# fmt: off
__all__ = [
    "METHOD_COLORS", "Viewer", "attention", "confusion", "curves", "distributions", "embedding_scatter", "frames",
    "intervals", "show", "similarity", "strip", "strips", "use_style", "viewer", "viewer_data",
]
# fmt: on

METHOD_COLORS = {
    "real": "#777777",
    "augmented": "#3ea0ff",
    "retrieved": "#468a4b",
    "mined": "#8800ee",
    "scratch": "#c787c3",
    "naive": "#da8c0d",
    "kinemic": "#bc0100",
    "oracle": "#4b46ac",
    "full": "#111111",
}

_INK = "#22262b"  # text and trunk
_OTHERS = ("#00838f", "#7b4b94", "#5f7f1e", "#b0486b", "#3d5a80", "#8f8578")  # for names that are no methods
_LEFT, _RIGHT, _PEAK, _MINED = "#3a80d2", "#dd6a35", "#14967a", "#cc9010"  # mid tones: legible on black too
_TINTS = ("#7aa6c2", "#d9a05b", "#9b8ac4", "#7fb08a", "#cf8da0", "#a8a25a")  # segments, in order of first appearance
_SHADES = sns.light_palette("#1b4f7a", as_cmap=True)  # from white: nothing looks like nothing
_MARKERS = "os^DvPX*"
_HEAD = JOINT_NAMES.index("head")
_SIDES = tuple({"left": 1, "right": 2}.get(JOINT_NAMES[child].split("_")[0], 0) for _, child in BONES)
_YAWS = {"front": 0.0, "three_quarter": 40.0, "side": 90.0}  # degrees of the camera about the vertical
_DPI = 160  # of pictures on a page
_MARGIN = 0.15  # metres between two poses of a strip, and under the floor


def use_style() -> None:
    """Sets the house style for all figures that follow: white ground, dark ink, no frame, fonts for a page's width."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=list(METHOD_COLORS.values()),
        font_scale=0.9,
        rc={
            "axes.edgecolor": _INK,
            "axes.grid": False,
            "axes.labelcolor": _INK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",  # opaque: stays legible on a dark page
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.dpi": _DPI,
            "savefig.facecolor": "white",
            "text.color": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        },
    )


def show(fig, alt: str) -> None:
    """Puts a figure on the page with a text for readers who cannot see it.

    The picture goes out as HTML with an `alt` text, because book builders drop the text from the metadata of a bare
    PNG; it is sharp on dense screens and never wider than the page.

    Args:
        fig: matplotlib figure.
        alt: what there is to see, in a sentence.

    Raises:
        ValueError: alt is empty.
    """
    from IPython.display import display  # only notebooks need it

    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows")
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    png = buffer.getvalue()
    width = int.from_bytes(png[16:20], "big") * 96 // _DPI  # the header's width in pixels, as a page counts them
    picture = (
        f'<img class="kinemic-figure" alt="{html.escape(alt)}" width="{width}" style="max-width:100%;height:auto" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )
    display({"text/html": picture, "text/plain": alt}, raw=True)


def _axes(ax, width: float, height: float):
    """The given axes, or new ones on a figure that pyplot forgets, so that a notebook does not draw it twice."""
    if ax is None:
        fig, ax = plt.subplots(figsize=(width, height), layout="constrained")
        plt.close(fig)
    return ax


def _inches(ax) -> float:
    """Width of the axes, roughly: the layout, which widens them by about a fifth, comes only with drawing."""
    return 1.2 * ax.figure.get_figwidth() * ax.get_position().width


def _finish(ax, title, room: float = 0.0):
    """The figure; its title leaves `room` inches free at the right of the axes and takes more lines instead."""
    if title:
        ax.set_title(textwrap.fill(title, max(int((_inches(ax) - room) * 12), 20)), loc="left")
    return ax.figure


def _joints(joints, name: str = "joints") -> np.ndarray:
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3) or not len(joints):
        raise ValueError(f"{name} has shape {joints.shape}, expected (T, {NUM_JOINTS}, 3); decode features first")
    if not np.isfinite(joints).all():
        frame = int(np.argmin(np.isfinite(joints).all(axis=(1, 2))))
        raise ValueError(f"{name} is not finite in frame {frame}, expected metres; drop or mend the clip")
    return joints


def _span(span, frames: int, name: str) -> tuple[int, int]:
    start, stop = (int(frame) for frame in span)
    if not 0 <= start < stop <= frames:
        raise ValueError(f"{name} is [{start}, {stop}), expected frames within [0, {frames})")
    return start, stop


def _spans(segments, frames: int) -> list[tuple[str, int, int]]:
    """Ground truth as (label, start, stop), from `data.Segment` objects or such triples."""
    rows = [(s.label, s.start, s.end) if hasattr(s, "label") else tuple(s) for s in segments]
    return [(str(label), *_span((start, stop), frames, f"segment {label!r}")) for label, start, stop in rows]


def _tints(spans) -> dict[str, str]:
    labels = dict.fromkeys(label for label, _, _ in spans)
    return {label: _TINTS[k % len(_TINTS)] for k, label in enumerate(labels)}


def _curve(weights, frames: int | None = None) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights) or (frames is not None and len(weights) != frames):
        raise ValueError(f"attention has shape {weights.shape}, expected ({frames or 'T'},): one weight per frame")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("attention has negative or non-finite weights, expected weights of a softmax")
    return weights


def _poses(joints: np.ndarray, frames: int, view: str):
    """Frames (P,), and of each the points (P, 22, 2) in the picture plane, centred on the root, and depth (P, 22)."""
    if view not in _YAWS:
        raise ValueError(f"view is {view!r}, expected one of {', '.join(_YAWS)}")
    if frames < 1:
        raise ValueError(f"frames is {frames}, expected at least one pose")
    index = np.unique(np.linspace(0, len(joints) - 1, frames).round().astype(int))
    points, yaw = joints[index], np.deg2rad(_YAWS[view])
    x, z = points[..., 0] - points[:, :1, 0], points[..., 2] - points[:, :1, 2]
    right, depth = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    return index, np.stack([right, points[..., 1]], axis=-1), depth


def _limits(poses) -> tuple[float, float, float, float]:
    """Left, right, lowest and highest metre of all poses of all strips, so that they share one scale."""
    points = np.concatenate([points.reshape(-1, 2) for _, points, _ in poses])
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    return float(left), float(right), float(min(bottom, 0)), float(max(top, 1.5))


def _size(poses: int, limits) -> tuple[float, float]:
    """Inches for a strip: as wide as a page, unless that would make it higher than 3 inches."""
    left, right, bottom, top = limits
    width = poses * (right - left + _MARGIN) + _MARGIN
    scale = min(8 / width, 2.4 / (top - bottom + 2 * _MARGIN))
    return max(width * scale, 3.5), (top - bottom + 2 * _MARGIN) * scale + 0.6


def _draw_pose(ax, pose, far, color, scale: float = 1.0):
    """Limbs and head of one pose (22, 2) with its depth (22,), as drawn."""
    order = np.argsort([far[a] + far[b] for a, b in BONES])  # the nearest limb is drawn last
    sides = np.array(_SIDES)[order]
    widths = np.where(sides == 2, 1.5, 2.6)  # right limbs are thin: the sides differ without colour too
    bones = LineCollection(
        [pose[list(BONES[k])] for k in order],
        colors=np.array([color, _LEFT, _RIGHT])[sides],
        linewidths=widths * scale,
        capstyle="round",
    )
    head = Circle(pose[_HEAD], 0.09, color=color, linewidth=0, zorder=2)
    return ax.add_collection(bones), ax.add_patch(head)


def _draw_strip(ax, length, poses, limits, color, highlight, title) -> None:
    index, points, depth = poses
    left, right, bottom, top = limits
    pitch = right - left + _MARGIN  # at which no two neighbours touch
    step = pitch * max(len(index) - 1, 1) / max(length - 1, 1)  # metres on the page per frame
    if highlight is not None:
        start, stop = _span(highlight, length, "highlight")
        ax.axvspan((start - 0.5) * step, (stop - 0.5) * step, color=_MINED, alpha=0.22, linewidth=0)
    ax.axhline(0, color=_INK, linewidth=0.8, alpha=0.5, zorder=0)
    for frame, pose, far in zip(index, points, depth, strict=True):
        _draw_pose(ax, pose + [frame * step, 0], far, color)
    ax.set_xlim(left - _MARGIN, (len(index) - 1) * pitch + right + _MARGIN)
    ax.set_ylim(bottom - _MARGIN, top + _MARGIN)
    ax.set_aspect("equal")
    ax.set_xticks(index * step, [f"{frame / FPS:.2f} s" for frame in index])
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    _finish(ax, title, room=1.2)


def _name_sides(ax) -> None:
    for text, color, shift in (("left", _LEFT, -32), ("right", _RIGHT, 0)):
        ax.annotate(
            text, (1, 1), xytext=(shift, 6), xycoords="axes fraction", textcoords="offset points", ha="right",
            color=color, fontsize="small", fontweight="bold" if color == _LEFT else "normal",
        )  # fmt: skip


def strip(joints, frames: int = 8, view: str = "three_quarter", ax=None, color=_INK, highlight=None, title=None):
    """A motion as a row of poses from left to right, each at its time, the root in the middle of its place.

    Height is true, travel along the floor is left out. Left limbs are thick and blue, right limbs thin and orange.

    Args:
        joints: (T, 22, 3) metres, y up, 20 frames per second, floor at 0.
        frames: poses, evenly spread over the clip (fewer where the clip is shorter).
        view: "front" (a body facing +z looks at the reader), "three_quarter" or "side" (it walks to the right).
        ax: axes to draw on, or None for a new figure.
        color: of the trunk, for example one of `METHOD_COLORS`.
        highlight: (start, stop) frames to shade, such as the mined window, or None.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: joints, frames, view or highlight is not of this form.
    """
    joints = _joints(joints)
    poses = _poses(joints, frames, view)
    limits = _limits([poses])
    ax = _axes(ax, *_size(len(poses[0]), limits))
    _draw_strip(ax, len(joints), poses, limits, color, highlight, title)
    _name_sides(ax)
    return ax.figure


def strips(rows: Sequence[tuple[str, np.ndarray]], frames: int = 8, view: str = "three_quarter", colors=None):
    """Motion strips one above the other, all in the same scale.

    Args:
        rows: (title, joints (T, 22, 3)) pairs; clips may differ in length, each is spread over its own row.
        frames: poses per row.
        view: as for `strip`.
        colors: trunk colour per row, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: no rows, another number of colors than rows, or a clip that `strip` would refuse.
    """
    if not rows or (colors is not None and len(colors) != len(rows)):
        raise ValueError(f"{len(rows)} rows and {len(colors or ())} colors: give at least one row, and one color each")
    clips = [_joints(joints, f"joints of {title!r}") for title, joints in rows]
    poses = [_poses(joints, frames, view) for joints in clips]
    limits = _limits(poses)
    width, height = _size(max(len(index) for index, _, _ in poses), limits)
    fig, axes = plt.subplots(len(rows), 1, figsize=(width, height * len(rows)), layout="constrained", squeeze=False)
    plt.close(fig)
    for k, ax in enumerate(axes[:, 0]):
        _draw_strip(ax, len(clips[k]), poses[k], limits, colors[k] if colors else _INK, None, rows[k][0])
    _name_sides(axes[0, 0])
    return fig


def frames(joints, fps: float, view: str = "three_quarter", title: str | None = None, height: int = 360):
    """A motion as pictures, one per frame, for a film; marks on the floor, half a metre apart, show the travel.

    Args:
        joints: (T, 22, 3) metres, y up, floor at 0.
        fps: frames per second, for the clock in the corner.
        view: as for `strip`.
        title: text above, or None.
        height: of a picture, in pixels, even.

    Yields:
        T arrays (height, width, 3) uint8 of one even width, as video encoders want it.

    Raises:
        ValueError: joints or view is not of this form.
    """
    joints = _joints(joints)
    poses = _poses(joints, len(joints), view)
    left, right, bottom, top = _limits([poses])
    left, right, bottom, top = min(left, -0.7) - _MARGIN, max(right, 0.7) + _MARGIN, bottom - 2 * _MARGIN, top + 0.35
    width = 2 * round(height * (right - left) / (top - bottom) / 2)
    title = textwrap.fill(title, max(width // 8, 20), max_lines=2) if title else ""
    top += 0.12 * title.count("\n")
    width = 2 * round(height * (right - left) / (top - bottom) / 2)
    fig = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    canvas, ax = FigureCanvasAgg(fig), fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_axis_off()
    fig.text(0.02, 0.98, title, va="top", color=_INK, fontsize="medium")
    clock = fig.text(0.98, 0.02, "", ha="right", color=_INK, fontsize="small")
    for text, color, place in (("left", _LEFT, 6), ("right", _RIGHT, 38)):
        weight = "bold" if color == _LEFT else "normal"
        fig.text(place / width, 0.02, text, color=color, fontsize="small", fontweight=weight)
    ax.axhline(0, color=_INK, linewidth=0.8, alpha=0.5, zorder=0)
    floor = ax.add_collection(LineCollection([], colors=_INK, linewidths=0.8, alpha=0.5, zorder=0))
    yaw = np.deg2rad(_YAWS[view])
    travel = joints[:, 0, 0] * np.cos(yaw) + joints[:, 0, 2] * np.sin(yaw)
    for frame, pose, far in zip(*poses, strict=True):
        marks = np.arange(np.ceil(2 * (travel[frame] + left)), 2 * (travel[frame] + right)) / 2 - travel[frame]
        floor.set_segments([[(x, 0), (x, -0.06)] for x in marks])
        clock.set_text(f"{frame / fps:.2f} s")
        drawn = _draw_pose(ax, pose, far, _INK, height / 180)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
        for artist in drawn:
            artist.remove()


def attention(weights, window=None, truth=(), ax=None, title=None):
    """Attention over a clip, the window mined from it, and what the person truly does when.

    Args:
        weights: (T,) attention per frame at 20 frames per second.
        window: (start, stop) frames, or None.
        truth: `data.Segment` objects or (label, start, stop) triples.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: weights are not (T,) and non-negative, or a span leaves the clip.
    """
    weights = _curve(weights)
    spans = _spans(truth, len(weights))
    tints = _tints(spans)
    ax = _axes(ax, 7.5, 2.2)
    top = float(weights.max()) * 1.1 or 1.0
    if window is not None:
        start, stop = (frame / FPS for frame in _span(window, len(weights), "window"))
        ax.axvspan(start, stop, color=_MINED, alpha=0.28, linewidth=0, label="mined window")
    times = np.arange(len(weights)) / FPS
    ax.plot(times, weights, color=_PEAK, label="attention")
    ax.fill_between(times, weights, color=_PEAK, alpha=0.15, linewidth=0)
    inch = len(weights) / _inches(ax)  # frames
    for label, start, stop in spans:
        where = (start / FPS, (stop - start) / FPS)
        ax.broken_barh([where], (-0.2 * top, 0.15 * top), color=tints[label], alpha=0.6, linewidth=0)
        if len(label) * 0.08 * inch < stop - start:  # a label that does not fit is left out
            ax.text((start + 1) / FPS, -0.125 * top, label, va="center", fontsize="small")
    ax.set(xlim=(0, len(weights) / FPS), ylim=(-0.22 * top if spans else 0, top), xlabel="time (s)", ylabel="attention")
    ax.set_yticks([0, weights.max()], ["0", f"{weights.max():.2g}"])
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, fontsize="small")
    return _finish(ax, title, room=3.0)


def _matrix(matrix, rows, columns, name: str) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"{name} has shape {matrix.shape}, expected ({len(rows)}, {len(columns)}) for its labels")
    return matrix


def _heat(matrix, rows, columns, ax, fmt, **rest):
    few = matrix.size <= 400  # more numbers than that cannot be read
    ax = _axes(ax, 2.5 + 0.5 * len(columns), 1.6 + 0.36 * len(rows))
    sns.heatmap(
        matrix, ax=ax, cmap=_SHADES, annot=few, fmt=fmt, annot_kws={"size": "small"}, linewidths=0.5 if few else 0,
        xticklabels=list(columns), yticklabels=list(rows), **rest,
    )  # fmt: skip
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    plt.setp(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    return ax


def similarity(matrix, rows: Sequence[str], columns: Sequence[str], ax=None, title=None):
    """Similarities, such as cosines between class captions and source captions, as a heat map.

    Args:
        matrix: (N, M) similarities.
        rows: N labels.
        columns: M labels.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: the labels do not fit the matrix.
    """
    matrix = _matrix(matrix, rows, columns, "matrix")
    ax = _heat(matrix, rows, columns, ax, ".2f", cbar_kws={"label": "similarity"})
    return _finish(ax, title)


def confusion(matrix, classes: Sequence[str], ax=None, title=None):
    """A confusion matrix in per cent of each true class; cells of 0 stay empty.

    Args:
        matrix: (K, K) counts, true classes in rows, predictions in columns.
        classes: K names.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: the names do not fit the matrix.
    """
    matrix = _matrix(matrix, classes, classes, "confusion matrix")
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax = _heat(share, classes, classes, ax, ".0f", vmin=0, vmax=100, square=True, cbar_kws={"label": "% of the class"})
    for text in ax.texts:
        if text.get_text() == "0":
            text.set_visible(False)
    ax.set(xlabel="predicted", ylabel="true")
    return _finish(ax, title)


def intervals(table, xlabel: str = "", ax=None, title=None):
    """One dot with its interval per method, first row on top.

    Args:
        table: data frame with columns method, value, low and high; a column `paper` adds the published value as a
            hollow diamond where it is not missing.
        xlabel: quantity and unit.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: a column is missing, or an interval does not contain its value.
    """
    missing = {"method", "value", "low", "high"} - set(table.columns)
    if missing or not len(table):
        raise ValueError(f"table has {len(table)} rows and columns {list(table.columns)}, lacking {sorted(missing)}")
    outside = ~((table["low"] <= table["value"]) & (table["value"] <= table["high"])).to_numpy()
    if outside.any():
        row = table.iloc[int(outside.argmax())]
        raise ValueError(f"{row['method']}: value {row['value']} is outside [{row['low']}, {row['high']}]")
    ax = _axes(ax, 7, 0.9 + 0.38 * len(table))
    for y, row in enumerate(table.to_dict("records")):
        color = METHOD_COLORS.get(row["method"], _OTHERS[-1])
        ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.5, solid_capstyle="round")
        ax.plot(row["value"], y, "o", color=color, markersize=8, markeredgecolor="white")
    if "paper" in table:
        ax.plot(table["paper"], np.arange(len(table)), "D", mfc="none", mec=_INK, linestyle="none", label="paper")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, fontsize="small")
    ax.set_yticks(range(len(table)), table["method"])
    ax.set(ylim=(len(table) - 0.5, -0.5), xlabel=xlabel)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=_INK, alpha=0.12)
    ax.spines["left"].set_visible(False)
    return _finish(ax, title)


def curves(series: Mapping[str, object], xlabel: str = "step", ylabel: str = "loss", log=False, ax=None, title=None):
    """Curves over training, one per name; methods keep their colour.

    Args:
        series: name -> (N,) values, or a pair (steps (N,), values (N,)).
        xlabel: what is counted along the bottom.
        ylabel: quantity and unit.
        log: logarithmic values.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: no series, or steps and values of different lengths.
    """
    if not series:
        raise ValueError("series is empty, expected at least one curve")
    ax = _axes(ax, 7, 3.2)
    others = cycle(_OTHERS)
    for k, (name, values) in enumerate(series.items()):
        steps, values = values if isinstance(values, tuple) else (np.arange(len(values)), values)
        if np.ndim(values) != 1 or np.shape(steps) != np.shape(values):
            raise ValueError(f"{name}: {np.shape(steps)} steps for {np.shape(values)} values, expected (N,) each")
        style = ("-", "--", "-.", ":")[k % 4]
        ax.plot(steps, values, style, color=METHOD_COLORS.get(name) or next(others), label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    ax.grid(axis="y", color=_INK, alpha=0.12)
    ax.legend(fontsize="small")
    return _finish(ax, title)


def embedding_scatter(points, labels: Sequence[str], ax=None, title=None):
    """Embeddings in the plane, one colour and one marker per label; methods keep their colour.

    Args:
        points: (N, 2) coordinates, already projected; the axes carry no unit.
        labels: N names, shown in order of first appearance.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: points are not (N, 2), or there is not one label for each.
    """
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels).astype(str)
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"points {points.shape} and labels {labels.shape}, expected (N, 2) and (N,); project first")
    ax = _axes(ax, 6, 4.5)
    names = list(dict.fromkeys(labels.tolist()))
    others = cycle(_OTHERS)
    for k, name in enumerate(names):
        x, y = points[labels == name].T
        color = METHOD_COLORS.get(name) or next(others)
        ax.scatter(x, y, s=30, color=color, marker=_MARKERS[k % 8], edgecolor="white", linewidth=0.4, label=name)
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_color("#d5d8dc")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", ncols=1 + len(names) // 16)
    return _finish(ax, title)


def distributions(table, value: str, by: str, log=False, ax=None, title=None):
    """A box per group with its single items: median, middle half, whiskers to 1.5 times that range, items beyond.

    Args:
        table: data frame with one row per item.
        value: column of numbers, with its unit; rows where it is missing are left out.
        by: column of group names, drawn from top to bottom in order of first appearance.
        log: logarithmic values.
        ax: axes to draw on, or None for a new figure.
        title: text above, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: a column is missing, or no number is left.
    """
    missing = {value, by} - set(table)
    if missing:
        raise ValueError(f"table has no column {', '.join(sorted(missing))}, it has {', '.join(map(str, table))}")
    table = table[[value, by]].dropna()
    if table.empty:
        raise ValueError(f"column {value!r} has no numbers to draw")
    names = list(dict.fromkeys(table[by]))
    ax = _axes(ax, 7, 0.8 + 0.32 * len(names))
    # drawn by hand: seaborn's boxplot asks matplotlib in a way that is deprecated there and goes away in 3.13
    stats = boxplot_stats([table.loc[table[by] == name, value].to_numpy(dtype=np.float64) for name in names])
    for row, box in enumerate(stats):
        ax.hlines([row, row], [box["whislo"], box["q3"]], [box["q1"], box["whishi"]], color=_INK, linewidth=1.1)
        ax.barh(row, box["q3"] - box["q1"], left=box["q1"], height=0.6, color="#d9e4ec", edgecolor=_INK)
        ax.vlines(box["med"], row - 0.3, row + 0.3, color="#bc0100", linewidth=2)
        ax.plot(box["fliers"], np.full(len(box["fliers"]), row), "o", color=_INK, markersize=3, alpha=0.5)
    ax.invert_yaxis()
    if log:
        ax.set_xscale("log")
    ax.set_yticks(range(len(names)), [textwrap.fill(str(name), 30) for name in names])
    ax.set(xlabel=value, ylabel="")
    return _finish(ax, title)


@dataclass(frozen=True)
class Viewer:
    """Animated motions as a piece of HTML; a notebook shows it when it is the last value of a cell.

    Attributes:
        html: the script (harmless when it comes more than once) and the element with its data.
        titles: of the clips.
    """

    html: str = field(repr=False)
    titles: tuple[str, ...]

    def _repr_html_(self) -> str:
        return self.html


def viewer(clips, titles, fps=FPS, attention=None, window=None, segments=None, height=320) -> Viewer:
    """Skeletons that move, side by side on one timeline; turned by dragging, played and searched by mouse or keys.

    Positions are rounded to millimetres, so a clip of 60 frames adds about 11 kB to the page. The page needs neither a
    network nor a configuration. Put a `strip` beside it: an animation cannot be printed.

    Args:
        clips: one motion (T, 22, 3) or several of them; metres, y up, floor at 0. Shorter ones wait for the longest.
        titles: one text per clip (a plain string for one motion).
        fps: frames per second.
        attention: (T,) weights over the first clip, or None.
        window: (start, stop) frames mined from the first clip, or None.
        segments: ground truth of the first clip: `data.Segment` objects or (label, start, stop) triples, or None.
        height: of a picture, in CSS pixels.

    Returns:
        The viewer; display it.

    Raises:
        ValueError: shapes do not fit, titles do not match the clips, a motion leaves +-32 m, or a span leaves the clip.
    """
    motion = viewer_data(clips, titles, fps, attention, window, segments)
    titles = tuple(clip["title"] for clip in motion["clips"])
    script = files(__package__).joinpath("viewer.js").read_text(encoding="utf-8")
    content = html.escape(json.dumps(motion, separators=(",", ":")))
    fallback = html.escape("Animation (needs JavaScript): " + ", ".join(titles))
    return Viewer(
        f'<script>{script}</script>\n<kinemic-skeleton height="{height:d}" data-motion="{content}">'
        f"<p>{fallback}</p></kinemic-skeleton>",
        titles,
    )


def viewer_data(clips, titles, fps=FPS, attention=None, window=None, segments=None) -> dict:
    """What `viewer` puts into the page, as plain data for JSON; arguments and errors are those of `viewer`.

    Returns:
        fps, head (joint), colors, bones [parent, child, side (0 trunk, 1 left, 2 right)], clips [title, frames, data
        (base64 of little-endian int16 millimetres, (frames, 22, 3))], and attention, window, segments where given.
    """
    clips = [clips] if isinstance(clips, np.ndarray) and clips.ndim == 3 else list(clips)
    titles = (titles,) if isinstance(titles, str) else tuple(titles)
    if not clips or len(clips) != len(titles):
        raise ValueError(f"{len(clips)} clips and {len(titles)} titles, expected one title for each clip")
    if fps <= 0:
        raise ValueError(f"fps is {fps}, expected frames per second above 0")
    data = []
    for title, joints in zip(titles, clips, strict=True):
        joints = _joints(joints, f"joints of {title!r}")
        reach = np.abs(joints).max()
        if reach > 32.7:  # int16 millimetres end there
            raise ValueError(f"joints of {title!r} reach {reach:.1f} m, expected at most 32.7 m; are they in metres?")
        packed = base64.b64encode((joints * 1000).round().astype("<i2").tobytes()).decode()
        data.append({"title": title, "frames": len(joints), "data": packed})
    first = data[0]["frames"]
    motion = {
        "fps": fps,
        "head": _HEAD,
        "colors": [_LEFT, _RIGHT, _PEAK, _MINED],
        "bones": [[*bone, side] for bone, side in zip(BONES, _SIDES, strict=True)],
        "clips": data,
    }
    if attention is not None:
        weights = _curve(attention, first)
        motion["attention"] = (weights / (weights.max() or 1)).round(3).tolist()
    if window is not None:
        motion["window"] = _span(window, first, "window")
    if segments:
        spans = _spans(segments, first)
        motion["segments"] = [[*span, _tints(spans)[span[0]]] for span in spans]
    return motion
