"""The page of codes says what the code says, and every code is one rule's."""

import inspect

from tests.hostile import refusal_page
from worker.sanitizer import refusals
from worker.sanitizer.errors import SanitizerError


def test_the_page_is_the_one_that_the_classes_make():
    assert refusal_page.PAGE.read_text(encoding="utf-8") == refusal_page.page(), (
        "write it again: python -m tests.hostile.refusal_page"
    )


def test_every_refusal_is_on_the_page_once():
    listed = [kind for kinds in refusal_page.sections().values() for kind in kinds]
    defined = {
        kind
        for _, kind in inspect.getmembers(refusals, inspect.isclass)
        if issubclass(kind, SanitizerError) and kind.__module__ == refusals.__name__
    }
    assert set(listed) == defined - set(refusal_page._BASES)
    assert len({kind.code for kind in listed}) == len(listed)


def test_the_readme_leads_to_the_page():
    readme = refusal_page.PAGE.parents[1] / "README.md"
    assert "docs/refusals.md" in readme.read_text(encoding="utf-8")
