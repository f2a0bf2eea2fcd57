"""The page of architectures says what the registry says."""

from tests.docs import architecture_page
from worker.sanitizer.architectures import names


def test_the_page_is_the_one_that_the_registry_makes():
    assert architecture_page.PAGE.read_text(encoding="utf-8") == architecture_page.page(), (
        "write it again: python -m tests.docs.architecture_page"
    )


def test_every_name_is_on_the_page():
    text = architecture_page.page()
    assert [name for listed in names().values() for name in listed if f"`{name}`" not in text] == []
