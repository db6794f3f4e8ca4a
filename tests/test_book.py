"""The built book: every page there, nothing missing on it, nothing fetched from elsewhere.

`make test` builds the smoke edition and names it in KINEMIC_BOOK; jupyter-book has then already failed on any warning.
"""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
REMOTE = re.compile(r"^(https?:)?//")


class Page(HTMLParser):
    """Tags of one page with their attributes, and the text a reader sees."""

    def __init__(self, path):
        super().__init__()
        self.path, self.tags, self.words, self.hidden = path, [], [], 0
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.text = " ".join(self.words)
        self.anchors = {attributes[key] for _, attributes in self.tags for key in ("id", "name") if key in attributes}

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {key: value or "" for key, value in attributes}))
        self.hidden += tag in {"script", "style"}

    def handle_endtag(self, tag):
        self.hidden -= tag in {"script", "style"}

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)

    def values(self, *names):
        """Attribute values, as (tag, value)."""
        return [(tag, attributes[name]) for tag, attributes in self.tags for name in names if attributes.get(name)]


@pytest.fixture(scope="module")
def book():
    if "KINEMIC_BOOK" not in os.environ:
        pytest.skip("KINEMIC_BOOK names no built book; `make test` builds one")
    name = os.environ["KINEMIC_BOOK"]
    folder = ROOT / name
    assert (folder / "index.html").is_file(), f"no built book in {name}: run `make book SCALE=smoke`"
    return folder


@pytest.fixture(scope="module")
def pages(book):
    """Pages of the book by name, as in the table of contents."""
    paths = sorted(book.glob("book/**/*.html"))
    return {path.relative_to(book).with_suffix("").as_posix(): Page(path) for path in paths}


def contents():
    """Names of the pages in _toc.yml, whatever their nesting."""

    def walk(node):
        if isinstance(node, list):
            return [name for item in node for name in walk(item)]
        if isinstance(node, dict):
            own = [node[key] for key in ("root", "file") if key in node]
            return own + [name for value in node.values() if isinstance(value, list) for name in walk(value)]
        return []

    return walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))


def test_pages_are_those_of_the_table_of_contents(pages):
    assert sorted(pages) == sorted(contents())


def test_front_page_leads_to_the_introduction(book):
    (root,) = (name for name in contents() if name.endswith("/intro"))
    assert f"url={root}.html" in (book / "index.html").read_text(encoding="utf-8")


def test_every_chapter_shows_results(pages):
    for name, page in pages.items():
        if name.startswith("book/chapters/"):
            assert "cell_output" in page.html, f"{name} shows no output: was it executed?"


def test_no_directive_role_or_key_is_left_unresolved(pages):
    for name, page in pages.items():
        for trace in ("glue:", "{cite", "{ref}", "{numref}", "{eq}", "{doc}", "```{"):
            assert trace not in page.text, f"{name} shows {trace!r}"
        assert not re.search(r'class="[^"]*\b(system-message|problematic)\b', page.html), f"{name} shows a build error"


def test_pictures_have_words(pages):
    for name, page in pages.items():
        for tag, attributes in page.tags:
            if tag == "img":
                words = attributes.get("alt", "").strip()
                # without a text the builder puts the file's name there
                only_a_name = re.search(r"\.(png|svg|jpe?g|gif)$", words)
                assert words and not only_a_name, f"{name}: no alt text on {attributes.get('src')}"


def test_local_links_and_files_exist(pages, book):
    by_path = {page.path.resolve(): page for page in pages.values()}
    for name, page in pages.items():
        for tag, value in page.values("href", "src"):
            parts = urlsplit(value)
            if parts.scheme or REMOTE.match(value):
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
            assert target.exists(), f"{name}: <{tag}> leads to {value}, which is not there"
            assert target.is_relative_to(book.resolve()), f"{name}: <{tag}> leads out of the book: {value}"
            if parts.fragment and target in by_path and tag == "a":
                assert unquote(parts.fragment) in by_path[target].anchors, f"{name}: no place {value}"


def test_nothing_is_loaded_from_the_network(pages):
    for name, page in pages.items():
        loaded = page.values("src") + [
            ("link", attributes.get("href", ""))
            for tag, attributes in page.tags
            if tag == "link" and attributes.get("rel") != "canonical"
        ]
        assert not [value for _, value in loaded if REMOTE.match(value)], f"{name} loads a file from the network"


def test_formulas_have_their_script(pages):
    with_formulas = [page for page in pages.values() if 'class="math' in page.html]
    assert with_formulas, "no formula in the whole book"
    for page in with_formulas:
        assert any("_static/tex-svg.js" in value for tag, value in page.values("src") if tag == "script")


def test_motions_can_be_watched(pages):
    shown = {name for name, page in pages.items() if any(tag == "kinemic-skeleton" for tag, _ in page.tags)}
    assert shown, "no animated skeleton in the whole book"
    definition = re.compile(r"customElements\.define\(['\"]kinemic-skeleton")
    for name in shown:
        assert definition.search(pages[name].html), f"{name} lacks the viewer's script"


def test_pages_do_not_tell_where_they_were_built(pages):
    for name, page in pages.items():
        assert str(ROOT) not in page.html, f"{name} shows the folder it was built in"
