"""The report as a page: what is uploaded is text in it, and nothing else."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest

from service import pages
from service.pages import Picture, report_page

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}{% raw %}\u202e\x00"
ESTIMATE = {"value": 0.9312, "low": 0.9, "high": 0.95, "num_images": 300}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Elements, attributes and text, and whether what was opened was closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report(name="layer1.0.conv1"):
    return {
        "schema_version": 1,
        "spec": {"criterion": "linf", "scope": [name], "selection": {"kind": "accuracy_budget"}},
        "architecture": {"name": name, "num_classes": 10},
        "accuracy": {"before": ESTIMATE, "after": ESTIMATE | {"value": 0.9199}},
        "attack_success": {
            "status": "measured",
            "reason": name,
            "target_class": 3,
            "before": ESTIMATE | {"value": 0.999},
            "after": ESTIMATE | {"value": 0.021},
            "robust_accuracy_before": None,
            "robust_accuracy_after": None,
        },
        "choice": {"num_pruned": 12, "num_in_scope": 304, "reason": name},
        "layers": [
            {"name": name, "num_channels": 16, "num_pruned": 2, "in_scope": True, "pruned_channels": [1, 5]},
            {"name": "fc", "num_channels": 8, "num_pruned": 0, "in_scope": False, "pruned_channels": []},
        ],
        "bias": [{"name": name, "linf": 209.5, "l1": 10.6, "l2": 43.1, "channel": 22, "source": "synthetic"}],
        "skipped_layers": {name: name},
        "tensors": [{"name": name, "changed": True}, {"name": "b", "changed": False}],
        "files": [{"role": "checkpoint", "format": name, "size_bytes": 1234567, "sha256": "ab" * 32}],
        "environment": {"device": name, "packages": {name: name}},
        "warnings": [name],
        "verdict": {
            "verdict": "backdoored",
            "reason": name,
            "target_classes": [3, 7],
            "score": 1.4231,
            "calibrated_false_positive_rate": 0.1,
            "evidence": [{"class_index": 3, "mask_size": 9.876, "relief": 2.5}, {"class_index": 4, name: name}],
        },
        "repair": {
            "status": "partly_repaired",
            "reason": name,
            "rounds": 2,
            "classes": [3],
            "share_kept": 0.85,
            "accuracy_before": 0.951,
            "accuracy_pruned": 0.942,
            "accuracy_after": 0.933,
        },
        "synthetic_attack_success": {"before": 0.987, "after": 0.213, "num_triggers": 4},
        "surprise": {name: name, "reasons": [{name: name}]},
    }


def page(given, **changes):
    fields = {"job_id": "job_1", "model_name": "suspect", "finished": "2026-11-23 10:00 UTC", "pictures": []}
    return report_page(given, **(fields | changes))


def test_a_person_finds_what_matters():
    picture = Picture(title="The curve", media_type="image/png", data=b"\x89PNG")
    outline = Outline(page(report(), pictures=[picture]).html.decode())
    for words in (
        "Report on suspect",
        "93.1 % (90.0 to 95.0)",
        "92.0 %",
        "99.9 %",
        "2.1 %",
        "for class 3",
        "12 of 304 channels",
        "layer1.0.conv1",
        "209.5",
        "1 of 2 tensors were changed",
        "1,234,567",
        "The curve",
    ):
        assert words in outline.text, words
    assert ("src", "data:image/png;base64,iVBORw==") in outline.attributes
    assert outline.open == []


def test_caps_have_a_section_where_they_were_tried():
    layers = [{"name": "conv1", "value": "relu", "num_channels": 8, "sha256": "ab" * 32}] * 3
    caps = {"status": "added", "reason": "The <b>tightest</b>.", "deviations": 3.0, "curve": [], "layers": layers}
    text = Outline(page(report() | {"caps": caps}).html.decode()).text
    assert "Activation caps added The <b>tightest</b>." in text
    assert "an operator more behind each of 3 layers" in text
    for kept in ({"status": "not_attempted", "reason": "No."}, None):
        assert "Activation caps" not in Outline(page(report() | {"caps": kept}).html.decode()).text


def test_recalls_norms_and_the_estimates_interval_are_shown_where_there_are_any():
    row = {"criterion": "l2", "num_pruned": 5, "num_shared": 3, "accuracy": ESTIMATE, "synthetic_attack_success": None}
    estimate = {"before": 0.987, "after": 0.213, "num_triggers": 4, "after_low": 0.15, "after_high": 0.3}
    given = report()
    given |= {
        "accuracy": given["accuracy"] | {"classes": [{"class_index": 7, "before": ESTIMATE, "after": ESTIMATE}]},
        "norms": [row],
        "synthetic_attack_success": estimate,
    }
    seen = Outline(page(given).html.decode())
    for words in (
        "Recall of each class class before after images 7 93.1 % (90.0 to 95.0)",
        "l2 5 3 93.1 % (90.0 to 95.0) not measured",
        "21.3 % (15.0 % to 30.0 %) after",
    ):
        assert words in seen.text, words
    assert seen.open == []
    plain = Outline(page(report()).html.decode()).text
    assert "Recall of each class" not in plain
    assert "each norm" not in plain


def test_verdict_and_repair_come_before_the_figures():
    text = Outline(page(report()).html.decode()).text
    for words in (
        "Verdict backdoored",
        "Towards classes 3, 7.",
        "Score 1.42",
        "10.0 % of clean networks",
        "Repair partly repaired",
        "98.7 % before, 21.3 % after",
        "2 rounds of unlearning, 85.0 % of the way kept",
        "95.1 % before, 94.2 % pruned, 93.3 % after",
    ):
        assert words in text, words
    assert text.index("Verdict") < text.index("Repair") < text.index("Before and after")
    assert text.index("9.876") > text.index("Layers")


@pytest.mark.parametrize(
    ("verdict", "look"),
    [("clean", "good"), ("suspicious", "bad"), ("inconclusive", "open"), ("</p>", "open"), ([], "open")],
)
def test_the_verdicts_look_never_comes_from_the_report(verdict, look):
    seen = Outline(page(report() | {"verdict": {"verdict": verdict}, "repair": None}).html.decode())
    assert [value for name, value in seen.attributes if name == "class" and value.startswith("status")] == [
        f"status {look}"
    ]


def test_recipes_stand_side_by_side_and_a_refusal_says_why():
    refused = dict.fromkeys(("accuracy", "attack_success", "robust_accuracy", "synthetic_attack_success", "num_pruned"))
    rows = [
        {
            "recipe": "auto",
            "status": "done",
            "accuracy": ESTIMATE,
            "attack_success": ESTIMATE | {"value": 0.0123},
            "robust_accuracy": None,
            "synthetic_attack_success": 0.456,
            "num_pruned": 17,
            "seconds": 12.25,
        },
        refused | {"recipe": "bnp", "status": "refused", "code": "not_here", "reason": HOSTILE, "seconds": 0.1},
    ]
    seen = Outline(page(report() | {"comparison": rows}).html.decode())
    for words in ("auto 93.1 % (90.0 to 95.0) 1.2 %", "not measured 45.6 % 17 12.25", "bnp not_here: </style>"):
        assert words in seen.text, words
    assert seen.open == []
    assert "script" not in seen.tags
    assert "side by side" not in Outline(page(report() | {"comparison": []}).html.decode()).text


def test_hostile_text_is_text():
    hostile = page(report(HOSTILE), model_name=HOSTILE, pictures=[Picture(title=HOSTILE, media_type="i", data=b"")])
    harmless = page(report("x"), model_name="x", pictures=[Picture(title="x", media_type="i", data=b"")])
    seen, expected = Outline(hostile.html.decode()), Outline(harmless.html.decode())
    assert seen.tags == expected.tags, "no element came of it"
    assert "script" not in seen.tags
    assert [name for name, _ in seen.attributes] == [name for name, _ in expected.attributes]
    assert "<script>alert(1)</script>" in seen.text
    assert "{{ 7 * 7 }}" in seen.text
    assert "\u202e" not in seen.text
    assert "\x00" not in seen.text
    assert seen.open == []


def test_the_policy_lets_nothing_in_but_our_style_and_the_pictures():
    policy = page(report()).content_security_policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert "<" not in pages._STYLE, "the style could end its element"


def test_the_style_is_the_one_that_the_policy_names():
    html = page(report()).html.decode()
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page(report()).content_security_policy


def test_lone_surrogates_and_endless_names_do_no_harm():
    html = page(report("\udc80" + "x" * 10_000), model_name=None).html
    assert len(html) < 40_000
    assert b"a model without a name" in html


def test_a_report_of_thousands_of_layers_is_cut():
    layers = [{"name": f"l{n}", "num_channels": 1, "num_pruned": 0, "pruned_channels": []} for n in range(5000)]
    html = page(report() | {"layers": layers}).html.decode()
    assert "l299" in html
    assert "l300" not in html
    assert "The first 300 of 5000 layers" in Outline(html).text


@pytest.mark.parametrize("given", [{}, {"schema_version": 9}, json.loads('{"attack_success": {"status": "?"}}')])
def test_a_report_of_another_release_is_shown_as_far_as_it_goes(given):
    assert "Report on suspect" in Outline(page(given).html.decode()).text


def test_what_the_template_does_not_know_is_shown_all_the_same():
    given = report() | {
        "recipes": [{"name": "ft", "synthetic_attack_success": ESTIMATE}, {"name": "anp"}],
        "final": "repaired",
        "empty": [],
    }
    text = Outline(page(given).html.decode()).text
    for words in ("Recipes", "synthetic attack success", "93.1 % (90.0 to 95.0), 300 images", "anp", "repaired"):
        assert words in text, words


def test_figures_with_the_names_of_a_mappings_methods_are_no_trouble():
    given = report() | {"items": {"keys": 1, "values": [1, 2]}, "more": {"get": {"pop": None}}}
    assert "keys" in Outline(page(given).html.decode()).text
