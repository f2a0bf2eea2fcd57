"""The report as one page for people: self-contained, without a script, and with every text from an upload escaped."""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

MAX_TEXT = 160
MAX_ROWS = 300
# What the template shows in a section of its own; anything else that a report holds is shown as it is.
_KNOWN = frozenset(
    {
        *("schema_version", "spec", "architecture", "input", "accuracy", "attack_success", "split", "choice", "curve"),
        *("layers", "skipped_layers", "tensors", "files", "environment", "seconds", "warnings", "bias", "figures"),
        *("verdict", "repair", "synthetic_attack_success", "caps", "comparison", "norms"),
    }
)
_FOLDER = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure and its bytes."""

    title: str
    media_type: str
    data: bytes

    @property
    def url(self) -> str:
        """The picture itself as a URL, so that the page is whole when it is saved."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page, and the policy that its browser is to keep."""

    html: bytes
    content_security_policy: str


def report_page(
    report: Mapping[str, Any], *, job_id: str, model_name: str | None, finished: str, pictures: Iterable[Picture]
) -> Page:
    """Render a report.

    Args:
        report: the report's JSON; keys that an older or a newer release lacks or adds are no error.
        job_id: whose it is.
        model_name: what the client called the model.
        finished: when the job ended.
        pictures: the figures, in order.
    """
    html = _TEMPLATE.render(
        report=report,
        more={key: value for key, value in report.items() if key not in _KNOWN},
        job_id=job_id,
        model_name=model_name,
        finished=finished,
        pictures=list(pictures),
        style=_STYLE,
        max_rows=MAX_ROWS,
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_STYLE_HASH}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    # A lone surrogate, from a hostile tensor's name, has no bytes; the filter below lets none pass.
    return Page(html=html.encode("utf-8", "replace"), content_security_policy=policy)


def _text(value: object, limit: int = MAX_TEXT) -> str:
    """Text as it may be shown: shortened, and without characters that are invisible or turn the line around."""
    text = str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
    return "".join("\ufffd" if unicodedata.category(char).startswith("C") else char for char in text)


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else ""


def _estimate(value: object) -> str:
    """A proportion with its interval, as the report gives it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("value"), (int, float)):
        return "not measured"
    parts = [_percent(value["value"])]
    if isinstance(value.get("low"), (int, float)) and isinstance(value.get("high"), (int, float)):
        parts.append(f"({100 * value['low']:.1f} to {100 * value['high']:.1f})")
    return " ".join(parts)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _text(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _words(name: object) -> str:
    return _text(name).replace("_", " ")


_STYLE = (_FOLDER / "report.css").read_text(encoding="utf-8")
_STYLE_HASH = f"sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}"
# Autoescaping is what keeps a hostile name from being HTML; the template marks nothing as safe but our own style.
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "text": _text, "percent": _percent, "estimate": _estimate, "number": _number, "words": _words,
}  # fmt: skip
_STYLE = Markup(_STYLE)  # noqa: S704 - our own file, checked to hold no end of its element by the tests
_TEMPLATE = _ENVIRONMENT.get_template("report.html")
