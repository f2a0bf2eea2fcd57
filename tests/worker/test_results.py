import hashlib
import os
from dataclasses import replace

import pytest

from worker import results
from worker.results import UntrueResultError, read_figures
from worker.sanitizer.report import FigureInfo

DATA = b"\x89PNG\r\n\x1a\n and more"


def info(name="curve", data=DATA, **changes):
    sha256 = hashlib.sha256(data).hexdigest()
    entry = FigureInfo(name=name, title="A title", media_type="image/png", sha256=sha256, size_bytes=len(data))
    return replace(entry, **changes)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "curve.png").write_bytes(DATA)
    return folder


def test_what_the_report_lists_is_read_and_nothing_else(folder):
    (folder / "left-over.png").write_bytes(b"x")
    assert list(read_figures(folder, [info()])) == [(info(), DATA)]


def test_a_report_without_figures_needs_no_folder(tmp_path):
    assert list(read_figures(tmp_path / "none", [])) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../report.json"},
        {"name": "."},
        {"name": ""},
        {"name": "a" * 65},
        {"name": "Curve"},
        {"name": "curve\n"},
        {"name": "missing"},
        {"media_type": "text/html"},
        {"media_type": "image/svg+xml"},
        {"title": ""},
        {"title": "t" * 201},
        {"sha256": "0" * 64},
        {"sha256": ""},
        {"size_bytes": len(DATA) - 1},
        {"size_bytes": len(DATA) + 1},
        {"size_bytes": 0},
        {"size_bytes": results.MAX_FIGURE_BYTES + 1},
    ],
)
def test_an_entry_that_is_not_true_or_not_allowed_is_refused(folder, changes):
    with pytest.raises(UntrueResultError):
        list(read_figures(folder, [info(**changes)]))


def test_bytes_that_are_no_picture_are_refused_though_their_digest_is_right(folder):
    page = b"<html><script>alert(1)</script>"
    (folder / "page.png").write_bytes(page)
    with pytest.raises(UntrueResultError):
        list(read_figures(folder, [info("page", page)]))


def test_links_are_not_followed(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    (folder / "symbolic.png").symlink_to(secret)
    os.link(secret, folder / "hard.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    for name in ("symbolic", "hard", "folder", "pipe"):
        with pytest.raises(UntrueResultError):
            list(read_figures(folder, [info(name)]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(folder)
    with pytest.raises(UntrueResultError):
        list(read_figures(elsewhere, [info()]))


def test_too_many_or_too_much_or_twice_is_refused_before_anything_is_read(tmp_path):
    many = [info(f"f{number}") for number in range(results.MAX_FIGURES + 1)]
    large = [info(f"f{number}", size_bytes=results.MAX_FIGURE_BYTES) for number in range(5)]
    for infos in (many, large, [info(), info()]):
        with pytest.raises(UntrueResultError, match="figures"):
            list(read_figures(tmp_path / "none", infos))
