import pytest

from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.spec import (
    AccuracyBudget,
    ArchitectureSpec,
    FixedFraction,
    InputSpec,
    RobustDeviations,
    parse_spec,
)

INPUT = {"height": 224, "width": 192, "mean": (0.5,), "std": (0.5,)}


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": 256, "crop": "center"},
        {"resize": 224, "crop": "center"},
        {"resize": 100},
        {"resize": "stretch", "interpolation": "bicubic"},
        {"crop": "center", "grayscale": True},
    ],
)
def test_every_way_to_fit_images_can_be_declared(changes):
    assert InputSpec(**INPUT, **changes).height == 224


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": 223, "crop": "center"},
        {"resize": 0},
        {"resize": 5000},
        {"resize": 2.5},
        {"resize": True},
        {"resize": "squash"},
        {"crop": "random"},
        {"interpolation": "nearest"},
        {"grayscale": 1},
    ],
)
def test_a_fit_that_cannot_be_done_is_refused(changes):
    with pytest.raises(InvalidSpecError):
        InputSpec(**INPUT, **changes)


def test_a_resize_is_refused_for_the_crop_only_where_there_is_one():
    with pytest.raises(InvalidSpecError, match=r"resize must be 1 to 4096$"):
        InputSpec(**INPUT, resize=0)
    with pytest.raises(InvalidSpecError, match="resize must be 224 to 4096: the crop"):
        InputSpec(**INPUT, resize=100, crop="center")


@pytest.mark.parametrize(("criterion", "rule"), [([], "at least one"), (["l1", "l1"], "each criterion once")])
def test_criteria_are_at_least_one_and_distinct(criterion, rule):
    with pytest.raises(InvalidSpecError, match=rule):
        parse_spec({"criterion": criterion})


@pytest.mark.parametrize("drop", [-0.1, 1.1, float("nan")])
def test_the_recall_budget_is_a_share_or_none(drop):
    assert parse_spec({"selection": {"max_recall_drop": 0.05}}).selection.max_recall_drop == 0.05
    assert parse_spec({"selection": {"max_recall_drop": None}}).selection == AccuracyBudget()
    with pytest.raises(InvalidSpecError, match="max_recall_drop"):
        AccuracyBudget(max_recall_drop=drop)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "a"), ("a", "b", ""), ("a", "b", "x" * 201)])
def test_class_names_are_one_for_each_class_and_distinct(names):
    assert ArchitectureSpec(name="small_vgg", num_classes=3, class_names=("a", "b", "c"))
    with pytest.raises(InvalidSpecError):
        ArchitectureSpec(name="small_vgg", num_classes=3, class_names=names)


WRONG = {
    "seed must be": [{"seed": seed} for seed in (-1, 2**63, 1.5, True, "0", None)],
    "repair must be true or false": [{"repair": value} for value in ("false", 0, None, [])],
    "caps must be true or false": [{"caps": value} for value in ("false", 0, None, [])],
    "selection must be an object": [{"selection": value} for value in ("accuracy_budget", None, [])],
    "selection.kind must be": [{"selection": {"kind": value}} for value in ([], "x", None)],
    "unexpected keyword": [{"selection": {"fraction": 0.1}}, {"unknown": 1}],
    "num_points must be": [{"selection": {"num_points": value}} for value in (1, 201, 2.5, "2", True)],
    "max_accuracy_drop must be": [{"selection": {"max_accuracy_drop": value}} for value in (-0.1, "x", None, [], True)],
    "max_recall_drop must be": [{"selection": {"max_recall_drop": value}} for value in (2, "x", True)],
    "max_fraction must be": [{"selection": {"max_fraction": value}} for value in (0, 1, "x", None, True)],
    "fraction must be": [
        {"selection": {"kind": "fixed_fraction", "fraction": value}} for value in (0, "x", None, True)
    ],
    "k must be": [{"selection": {"kind": "robust_deviations", "k": value}} for value in (0, "x", None, True)],
    "scope must": [{"scope": value} for value in ([], [1], [None], {}, 7)],
    "must be one of": [
        {name: value} for name in ("recipe", "device", "order", "inputs", "aggregate") for value in ("x", [], None)
    ],
    "criterion must": [{"criterion": value} for value in ("x", 5, [5], [[]])],
    "compare must be": [{"compare": value} for value in ("ft", [[]], ["x"], None)],
}


@pytest.mark.parametrize(("changes", "rule"), [(changes, rule) for rule, each in WRONG.items() for changes in each])
def test_a_specification_from_json_is_refused_unless_each_field_is_what_it_must_be(changes, rule):
    with pytest.raises(InvalidSpecError, match=rule):
        parse_spec(changes)


def test_a_specification_from_json_may_state_every_field():
    stated = {
        "recipe": "prune", "repair": False, "caps": False, "criterion": ["l2", "l2_over_l1"], "aggregate": "max",
        "inputs": "clean", "scope": ["conv1"], "order": "ascending", "seed": 7, "device": "cpu", "compare": ["ft"],
        "selection": {"kind": "accuracy_budget", "max_accuracy_drop": 1, "num_points": 2, "max_fraction": 0.1},
    }  # fmt: skip
    spec = parse_spec(stated)
    assert all(getattr(spec, name) == value for name, value in stated.items() if name != "selection")
    assert spec.selection == AccuracyBudget(max_accuracy_drop=1, num_points=2, max_fraction=0.1)
    assert parse_spec({"selection": {"kind": "fixed_fraction", "fraction": 0.1}}).selection == FixedFraction(
        fraction=0.1
    )
    assert parse_spec({"selection": {"kind": "robust_deviations", "k": 3}}).selection == RobustDeviations(k=3)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"source": "nope"}, "source must be one of"),
        ({"name": 5}, "name must be"),
        *(({"num_classes": value}, "num_classes must be") for value in (1, 10.5, True, "3", None)),
        *(({"in_channels": value}, "in_channels must be") for value in (0, 1.5, True, "3", None)),
        *(({"options": value}, "options must be") for value in ([], "x", None)),
        *(({"class_names": value}, "class_names must be") for value in ("abc", 7, [1, 2, 3])),
    ],
)
def test_an_architecture_from_json_is_refused_unless_each_field_is_what_it_must_be(changes, rule):
    stated = {"name": "small_vgg", "num_classes": 3}
    assert ArchitectureSpec(**stated)
    with pytest.raises(InvalidSpecError, match=rule):
        ArchitectureSpec(**(stated | changes))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        *(({"height": value}, "height must be") for value in (0, 28.5, True, "28", None)),
        *(({"width": value}, "width must be") for value in (0, 28.5, True, "28", None)),
        *(({name: value}, "lists of numbers") for name in ("mean", "std") for value in (("x",), (True,), ("0.5",))),
    ],
)
def test_an_input_from_json_is_refused_unless_each_field_is_what_it_must_be(changes, rule):
    with pytest.raises(InvalidSpecError, match=rule):
        InputSpec(**(INPUT | changes))
