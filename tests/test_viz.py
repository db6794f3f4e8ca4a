"""viz: pictures show what they are given, animations carry the motion unchanged."""

import base64
import itertools
import json
from html.parser import HTMLParser
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

from kinemic import motion, viz
from kinemic.data import Segment

SCRIPT = files("kinemic").joinpath("viewer.js").read_text(encoding="utf-8")


class Page(HTMLParser):
    """A page as a browser takes it apart: elements with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1][0] != "script" or self.cdata_elem is None:
            self.text += data

    @property
    def motion(self):
        (attrs,) = (attrs for tag, attrs in self.tags if tag == "kinemic-skeleton")
        return json.loads(attrs["data-motion"])


def unpack(clip):
    return np.frombuffer(base64.b64decode(clip["data"]), "<i2").reshape(clip["frames"], 22, 3) / 1000


def poses(ax):
    return [collection for collection in ax.collections if isinstance(collection, LineCollection)]


def mean_x(pose, color):
    bones = zip(pose.get_segments(), pose.get_colors(), strict=True)
    return np.mean([segment[:, 0].mean() for segment, other in bones if same_color(color, other)])


def table(**columns):
    rows = {"method": ["real", "kinemic"], "value": [40.0, 55.0], "low": [38.0, 51.0], "high": [43.0, 58.0]}
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize(("length", "frames", "drawn"), [(60, 8, 8), (60, 5, 5), (60, 1, 1), (3, 8, 3), (1, 8, 1)])
def test_strip_draws_every_bone_of_every_pose(walk, length, frames, drawn):
    (ax,) = viz.strip(walk(length), frames=frames).axes
    assert len(poses(ax)) == drawn == len(ax.get_xticks())
    assert all(len(pose.get_segments()) == len(motion.BONES) for pose in poses(ax))


def test_strip_is_labelled_in_seconds_from_the_first_frame_to_the_last(walk):
    (ax,) = viz.strip(walk(61), frames=4).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.00 s", "1.00 s", "2.00 s", "3.00 s"]


def test_a_body_that_faces_the_reader_has_its_left_limbs_to_the_right_of_the_page(walk):
    joints = walk(1, heading=0.0)
    (pose,) = poses(viz.strip(joints, view="front").axes[0])
    left, right = Page(viz.viewer(joints, "walk").html).motion["colors"][:2]  # animations share the colours
    assert mean_x(pose, left) > 0 > mean_x(pose, right)


def test_a_body_seen_from_the_side_looks_to_the_right(walk):
    (ax,) = viz.strip(walk(1, heading=0.0), view="side").axes
    (head,) = ax.patches
    assert head.center[0] > 0.05


def test_strip_heights_are_metres_and_neighbours_do_not_touch(walk):
    joints = walk(60, heading=1.5)
    (ax,) = viz.strip(joints, frames=60).axes
    drawn = [np.concatenate(pose.get_segments()) for pose in poses(ax)]
    np.testing.assert_allclose([p[:, 1].max() for p in drawn], joints[..., 1].max(axis=1))
    assert all(a[:, 0].max() < b[:, 0].min() for a, b in itertools.pairwise(drawn))


def test_highlight_covers_the_poses_inside_the_window_and_no_others(walk):
    (ax,) = viz.strip(walk(61), frames=61, highlight=(20, 40)).axes
    (band,) = (patch for patch in ax.patches if hasattr(patch, "get_xy") and not hasattr(patch, "center"))
    low, high = band.get_x(), band.get_x() + band.get_width()
    inside = [low < x < high for x in ax.get_xticks()]
    assert inside == [20 <= frame < 40 for frame in range(61)]


def test_strips_share_one_scale(walk):
    fig = viz.strips([("small", 0.5 * walk(30)), ("large", walk(60))], frames=6)
    assert len(fig.axes) == 2
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in fig.axes}) == 1


def figures(joints):
    matrix = np.array([[8, 2], [0, 5]])
    return {
        "strip": lambda **k: viz.strip(joints, title="t", **k),
        "attention": lambda **k: viz.attention(np.ones(60) / 60, (5, 20), [Segment("kick", 0, 30)], title="t", **k),
        "similarity": lambda **k: viz.similarity(matrix / 10, ["a", "b"], ["c", "d"], title="t", **k),
        "confusion": lambda **k: viz.confusion(matrix, ["a", "b"], title="t", **k),
        "intervals": lambda **k: viz.intervals(table(paper=[np.nan, 60.0]), title="t", **k),
        "curves": lambda **k: viz.curves({"naive": [3, 2, 1], "other": ([0, 5], [2.0, 1.0])}, title="t", **k),
        "embedding_scatter": lambda **k: viz.embedding_scatter(np.eye(3)[:, :2], ["real", "x", "x"], title="t", **k),
    }


@pytest.mark.parametrize("name", figures(None))
def test_figures_are_returned_not_shown_and_drawn_on_the_axes_given(walk, name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a figure function called show"))
    draw = figures(walk(60))[name]
    fig = draw()
    assert isinstance(fig, Figure) and not plt.get_fignums()  # pyplot would show it a second time
    fig.canvas.draw()
    own = Figure()
    ax = own.subplots()
    assert draw(ax=ax) is own and ax.get_title("left") == "t"


def test_confusion_shows_shares_of_the_true_class_and_hides_zeros():
    (ax, _) = viz.confusion([[8, 2], [0, 5]], ["a", "b"]).axes
    assert [text.get_text() for text in ax.texts if text.get_visible()] == ["80", "20", "100"]


def test_interval_dots_stand_at_their_values_in_the_colour_of_their_method():
    (ax,) = viz.intervals(table()).axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [40, 55]
    assert [dot.get_color() for dot in dots] == [viz.METHOD_COLORS[m] for m in ("real", "kinemic")]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["real", "kinemic"]


def test_method_colours_stay_apart_for_colour_blind_readers_and_from_white():
    machado = {  # full dichromacy in linear RGB, Machado et al. 2009
        "none": np.eye(3),
        "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
        "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    }
    rgb = np.array([to_rgb(color) for color in (*viz.METHOD_COLORS.values(), "white")])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    for kind, matrix in machado.items():
        f = np.cbrt(np.clip(linear @ np.transpose(matrix), 1e-3, 1) @ xyz.T / xyz.sum(axis=1))
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        distance = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(lab), 1)]
        assert distance.min() > 18, kind  # about 2 is the least that an eye can tell


def test_show_gives_the_picture_its_alt_text_and_scales_it_for_dense_screens(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    fig = viz.curves({"kinemic": [2, 1]})
    viz.show(fig, 'loss falls "fast" <here>')
    ((_, image),) = Page(shown[0]["text/html"]).tags
    png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert png.startswith(b"\x89PNG")
    assert image["alt"] == shown[0]["text/plain"] == 'loss falls "fast" <here>'
    assert int(image["width"]) < int.from_bytes(png[16:20], "big")
    with pytest.raises(ValueError, match="alt is empty"):
        viz.show(fig, " ")


def test_frames_are_pictures_of_one_even_size_that_move(walk):
    pictures = list(viz.frames(walk(5), 20, title="a person walks and walks and walks and walks and walks", height=200))
    assert len(pictures) == 5 and {picture.shape for picture in pictures} == {pictures[0].shape}
    high, wide, channels = pictures[0].shape
    assert high == 200 and wide % 2 == 0 and channels == 3 and pictures[0].dtype == np.uint8
    for before, after in itertools.pairwise(pictures):
        changed = (before != after).any(axis=-1)
        assert 0 < changed.mean() < 0.3  # the body and the marks on the floor, not the rest
        assert changed[:20].sum() == 0
    still = next(viz.frames(walk(5), 20, height=200))
    assert (still[:20] == 255).all() and (pictures[0][:20] != 255).any()  # no title, no ink


def test_viewer_carries_every_joint_within_half_a_millimetre(walk):
    clips = [walk(60), walk(45, heading=-2.0, seed=1)]
    page = Page(viz.viewer(clips, ["source", "target"]).html)
    assert [clip["title"] for clip in page.motion["clips"]] == ["source", "target"]
    for clip, joints in zip(page.motion["clips"], clips, strict=True):
        np.testing.assert_allclose(unpack(clip), joints, atol=0.00051)


def test_viewer_sends_the_bones_with_their_sides(walk):
    data = Page(viz.viewer(walk(2), "walk").html).motion
    assert [(a, b) for a, b, _ in data["bones"]] == list(motion.BONES)
    for _, child, side in data["bones"]:
        name = motion.JOINT_NAMES[child]
        assert side == (1 if name.startswith("left") else 2 if name.startswith("right") else 0)
    assert motion.JOINT_NAMES[data["head"]] == "head" and data["fps"] == 20


def test_viewer_sends_attention_window_and_segments_of_the_first_clip(walk):
    extra = {"window": (10, 30), "segments": [Segment("kick", 0, 10), ("sit", 10, 40), ("kick", 40, 60)]}
    weights = np.linspace(0, 0.02, 60)
    data = Page(viz.viewer([walk(60), walk(20)], ["a", "b"], attention=weights, **extra).html).motion
    np.testing.assert_allclose(np.array(data["attention"]) * 0.02, weights, atol=2e-5)
    assert data["window"] == [10, 30]
    assert [row[:3] for row in data["segments"]] == [["kick", 0, 10], ["sit", 10, 40], ["kick", 40, 60]]
    assert data["segments"][0][3] == data["segments"][2][3] != data["segments"][1][3]


def test_viewer_titles_cannot_break_the_page(walk):
    title = "</script><img src=x onerror=alert(1)> \"a\" & 'b'"
    page = Page(viz.viewer(walk(2), title)._repr_html_())
    assert [tag for tag, _ in page.tags] == ["script", "kinemic-skeleton", "p"]
    assert page.motion["clips"][0]["title"] == title and title in page.text


def test_a_page_carries_a_clip_in_12_kilobytes_and_the_script_in_10(walk):
    html = viz.viewer(walk(60), "walk").html
    assert SCRIPT in html and "</script" not in SCRIPT
    assert len(SCRIPT.encode()) < 10 * 1024
    assert len(html.encode()) - len(SCRIPT.encode()) < 12 * 1024


def test_the_script_may_come_twice_and_needs_nothing_from_elsewhere():
    code = "\n".join(line for line in SCRIPT.splitlines() if not line.startswith("//"))
    assert code.startswith('customElements.get("kinemic-skeleton") || ')  # a second definition would raise
    assert SCRIPT.isascii()  # whatever the page's encoding
    assert not any(word in SCRIPT for word in ("import ", "fetch(", "http:", "https:", "wheel"))


@pytest.mark.parametrize(
    "call",
    [
        lambda j: viz.strip(j[:, :21]),
        lambda j: viz.strip(j[0]),
        lambda j: viz.strip(j[:0]),
        lambda j: viz.strip(np.where(j > 1, np.nan, j)),
        lambda j: viz.strip(j, frames=0),
        lambda j: viz.strip(j, view="top"),
        lambda j: viz.strip(j, highlight=(10, 99)),
        lambda j: viz.strips([]),
        lambda j: viz.strips([("a", j)], colors=["red", "blue"]),
        lambda j: viz.attention(np.ones((3, 3))),
        lambda j: viz.attention([0.5, -0.1]),
        lambda j: viz.attention(np.ones(5), window=(4, 4)),
        lambda j: viz.attention(np.ones(5), truth=[("kick", 0, 6)]),
        lambda j: viz.similarity(np.ones((2, 3)), "ab", "cd"),
        lambda j: viz.confusion(np.ones((2, 2)), "abc"),
        lambda j: viz.intervals(table().drop(columns="low")),
        lambda j: viz.intervals(table(low=[41.0, 50.0])),
        lambda j: viz.curves({}),
        lambda j: viz.curves({"a": ([1, 2], [1, 2, 3])}),
        lambda j: viz.embedding_scatter(np.ones((4, 3)), list("abcd")),
        lambda j: viz.embedding_scatter(np.ones((4, 2)), list("abc")),
        lambda j: viz.viewer([], []),
        lambda j: viz.viewer([j], ["a", "b"]),
        lambda j: viz.viewer(j[:, :21], "a"),
        lambda j: viz.viewer([j[0]], ["a"]),
        lambda j: viz.viewer(1000 * j, "millimetres"),
        lambda j: viz.viewer(j, "a", fps=0),
        lambda j: next(viz.frames(j, 20, view="top")),
        lambda j: viz.viewer(j, "a", attention=np.ones(9)),
        lambda j: viz.viewer(j, "a", window=(50, 70)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(walk, call):
    with pytest.raises(ValueError) as refusal:
        call(walk(60))
    assert "\n" not in str(refusal.value)


def test_distributions_have_a_box_per_group_in_order_and_leave_out_what_is_missing():
    table = pd.DataFrame({"side": ["b", "b", "b", "a", "a"], "jerk (m/s^3)": [1.0, 2.0, 4.0, 10.0, np.nan]})
    (ax,) = viz.distributions(table, "jerk (m/s^3)", "side", log=True).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "jerk (m/s^3)"
    lines = [c for c in ax.collections if isinstance(c, LineCollection) and same_color(c.get_color()[0], "#bc0100")]
    medians = [line.get_segments()[0][0, 0] for line in lines]
    np.testing.assert_allclose(medians, [2.0, 10.0])
    with pytest.raises(ValueError, match="no column speed"):
        viz.distributions(table, "speed", "side")
    with pytest.raises(ValueError, match="no numbers"):
        viz.distributions(table.iloc[4:], "jerk (m/s^3)", "side")
