"""What a person reads of a report in a terminal."""

import io

from rich.console import Console

from service.client import show

ESTIMATE = {"value": 0.9312, "low": 0.9, "high": 0.95, "num_images": 300}
EMPTY = dict.fromkeys(("accuracy", "attack_success", "robust_accuracy", "synthetic_attack_success", "num_pruned"))


def printed(report):
    console = Console(file=io.StringIO(), width=200)
    show.print_report(console, report)
    return " ".join(console.file.getvalue().replace("│", " ").split())


def report(**changes):
    return {
        "accuracy": {"before": ESTIMATE, "after": ESTIMATE},
        "attack_success": {"status": "not_measurable", "reason": "No trigger samples were given."},
        "layers": [],
        "verdict": {"verdict": "not_judged", "reason": "It does not judge.", "target_classes": []},
        "repair": {"status": "not_attempted", "reason": "It does not train."},
        "choice": {"num_pruned": 3, "num_in_scope": 40, "reason": "So it was asked."},
        "warnings": [],
        "synthetic_attack_success": None,
    } | changes


def test_recipes_are_shown_side_by_side_and_a_refusal_with_its_sentence():
    done = EMPTY | {"recipe": "prune", "status": "done", "reason": "x", "accuracy": ESTIMATE, "seconds": 4.25}
    done |= {"num_pruned": 7, "synthetic_attack_success": 0.125}
    refused = EMPTY | {"recipe": "bnp", "status": "refused", "code": "not_here", "reason": "No [norm].", "seconds": 0}
    text = printed(report(comparison=[done, refused]))
    assert "prune 93.1 % (90.0-95.0) 12.5 % 7 4.2" in text
    assert "bnp refused (not_here): No [norm]." in text


def test_a_report_of_one_recipe_or_of_an_older_release_has_no_such_table():
    for given in (report(), report(comparison=[])):
        text = printed(given)
        assert "side by side" not in text
        assert "3 of 40 channels pruned: So it was asked." in text


def test_a_verdict_comes_with_its_rate_of_false_alarms_where_it_has_one():
    judged = {"verdict": "suspicious", "reason": "Why.", "target_classes": [3], "score": 0.9}
    rate = "of clean networks like those of the reference bank at most"
    text = printed(report(verdict=judged | {"calibrated_false_positive_rate": 0.214}))
    assert f"verdict: suspicious (class 3). Why. {rate} 21% score so high" in text
    assert rate not in printed(report(verdict=judged | {"calibrated_false_positive_rate": None}))
    assert rate not in printed(report())


def test_caps_are_told_of_where_they_were_tried():
    assert "activation caps: added. So and so." in printed(report(caps={"status": "added", "reason": "So and so."}))
    for given in (report(), report(caps={"status": "not_attempted", "reason": "No."})):
        assert "activation caps" not in printed(given)
