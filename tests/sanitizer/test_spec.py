import pytest

from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.spec import AccuracyBudget, ArchitectureSpec, InputSpec, parse_spec

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


@pytest.mark.parametrize(
    "changes",
    [
        *({"seed": seed} for seed in (-1, 2**63, 1.5, True, "0", None)),
        *({name: value} for name in ("repair", "caps") for value in ("false", 0, None, [])),
        *(
            {"selection": value}
            for value in ("accuracy_budget", None, [], {"kind": []}, {"kind": "x"}, {"fraction": 1})
        ),
        *({"selection": {"num_points": value}} for value in (1, 2.5, "2", True)),
        *({"selection": {"max_accuracy_drop": value}} for value in ("x", None, [])),
        *({"scope": value} for value in ([], [1], [None], {}, 7)),
        *({name: value} for name in ("recipe", "device", "order", "inputs", "aggregate") for value in ("x", [], None)),
        *({"criterion": value} for value in ("x", 5, [5], [[]])),
        *({"compare": value} for value in ("ft", [[]], ["x"], None)),
        {"unknown": 1},
    ],
)
def test_a_specification_from_json_is_refused_unless_each_field_is_what_it_must_be(changes):
    with pytest.raises(InvalidSpecError):
        parse_spec(changes)
