"""What a client asks for: plain frozen dataclasses whose bounds are checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from worker.sanitizer.errors import InvalidSpecError

MAX_CLASSES = 100_000
MAX_CHANNELS = 64
MAX_SIDE = 4096
MAX_NAME = 200

ArchitectureSource = Literal["builtin", "torchvision", "timm", "transformers", "file"]
# fmt: off
Recipe = Literal[
    "auto", "judge", "prune", "paper", "caps", "fine_pruning", "clp", "bnp", "anp", "rnp", "awm", "ft", "ft_sam",
    "nc_unlearn", "i_bau",
]
Criterion = Literal[
    "linf", "l1", "l2", "linf_over_l1", "linf_over_l2", "l2_over_l1", "mean", "lipschitz", "bn_divergence", "entropy",
    "adversarial_mask", "weight_mask", "unlearn_recover", "logit_contribution",
]
# fmt: on
Aggregate = Literal["mean", "max"]
Inputs = Literal["clean", "triggered", "difference", "synthetic", "synthetic_difference"]
Order = Literal["descending", "ascending"]
Device = Literal["auto", "cpu", "cuda"]
Scope = Literal["last_conv", "last_stage", "all_convs"]
Crop = Literal["center"]
Interpolation = Literal["bilinear", "bicubic"]

NEEDS_TRIGGER_SAMPLES = ("triggered", "difference")
# The criteria that are norms of activation maps or their ratios, taken on `inputs`.
NORM_CRITERIA = ("linf", "l1", "l2", "linf_over_l1", "linf_over_l2", "l2_over_l1")
# Those that look at triggered images whatever `inputs` says: at synthetic ones where it says `clean`.
NEEDS_TRIGGERS = ("entropy", "logit_contribution")
# The recipes that look at `inputs`; the others ignore it.
USES_INPUTS = ("auto", "judge", "prune")
# Rounds of a repair: the first, one more against the suspects, one aimed at a class that stands out.
MAX_ROUNDS = 3
# A recipe is compared with each of the others once.
MAX_COMPARED = len(get_args(Recipe)) - 1
SCOPES: tuple[str, ...] = get_args(Scope)
CHOICES: dict[str, tuple[str, ...]] = {
    "recipe": get_args(Recipe),
    "aggregate": get_args(Aggregate),
    "inputs": get_args(Inputs),
    "order": get_args(Order),
    "device": get_args(Device),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidSpecError(message)


# Kinds are checked here too, because the command line makes these from JSON without a validation library.
def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return type(value) is int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureSpec:
    """Which network the checkpoint's tensors belong to. `options` are typed keyword arguments of the registry.

    A `source` of "file" says that the uploaded program (.pt2, ONNX) carries its graph; it has no name and no options.
    One of "transformers" says that the uploaded zip carries a config.json, which has all options; the name may be left
    out, or be its model_type.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    source: ArchitectureSource = "builtin"
    name: str = ""
    num_classes: int
    in_channels: int = 3
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    # The model's classes in its own order; data sets whose classes have names are then matched by name.
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sources = get_args(ArchitectureSource)
        _require(self.source in sources, f"architecture.source must be one of {', '.join(sources)}")
        _require(isinstance(self.name, str), "architecture.name must be a name")
        _require(isinstance(self.options, dict), "architecture.options must be an object")
        if self.source == "file":
            _require(not self.name and not self.options, 'architecture.source "file" takes neither name nor options')
        elif self.source == "transformers":
            _require(not self.options, 'architecture.source "transformers" takes no options: config.json has them')
            _require(len(self.name) <= 200, "architecture.name must have at most 200 characters")
        else:
            _require(0 < len(self.name) <= 200, "architecture.name must have 1 to 200 characters")
        _require(
            _is_whole(self.num_classes) and 2 <= self.num_classes <= MAX_CLASSES,
            f"architecture.num_classes must be 2 to {MAX_CLASSES}",
        )
        _require(
            _is_whole(self.in_channels) and 1 <= self.in_channels <= MAX_CHANNELS,
            f"architecture.in_channels must be 1 to {MAX_CHANNELS}",
        )
        _require(len(self.options) <= 32, "architecture.options may have at most 32 entries")
        _require(isinstance(self.class_names, list | tuple), "architecture.class_names must be a list")
        _require(
            len(self.class_names) in (0, self.num_classes),
            f"architecture.class_names must have architecture.num_classes ({self.num_classes}) entries, or none",
        )
        _require(
            all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in self.class_names)
            and len(set(self.class_names)) == len(self.class_names),
            f"architecture.class_names must be distinct, with 1 to {MAX_NAME} characters each",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What the network takes, and how images of another kind become that.

    Attributes:
        height: Of the network's input, in pixels.
        width: Of the network's input, in pixels.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        resize: Scale each image so that its shorter side has this many pixels (`stretch`: to height and width
            whatever its proportions). None: images are taken at the size they have.
        crop: `center` cuts height x width out of the middle, after `resize`.
        interpolation: Of `resize`; with antialiasing, as Pillow and torchvision do it.
        grayscale: Whether colour images may be turned into one channel (ITU-R 601 luma, as Pillow's mode L).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | Literal["stretch"] | None = None
    crop: Crop | None = None
    interpolation: Interpolation = "bilinear"
    grayscale: bool = False

    def __post_init__(self) -> None:
        _require(_is_whole(self.height) and 1 <= self.height <= MAX_SIDE, f"input.height must be 1 to {MAX_SIDE}")
        _require(_is_whole(self.width) and 1 <= self.width <= MAX_SIDE, f"input.width must be 1 to {MAX_SIDE}")
        _require(1 <= len(self.mean) <= MAX_CHANNELS, f"input.mean must have 1 to {MAX_CHANNELS} entries")
        _require(all(map(_is_number, (*self.mean, *self.std))), "input.mean and input.std must be lists of numbers")
        _require(len(self.mean) == len(self.std), "input.mean and input.std must have one entry per channel")
        _require(all(math.isfinite(value) for value in self.mean), "input.mean must be finite")
        _require(
            all(math.isfinite(value) and value > 0 for value in self.std), "input.std must be finite and above zero"
        )
        self._check_fit()

    def _check_fit(self) -> None:
        _require(
            self.resize is None or self.resize == "stretch" or _is_whole(self.resize),
            "input.resize must be a number of pixels, `stretch` or null",
        )
        _require(self.crop in (None, *get_args(Crop)), "input.crop must be `center` or null")
        _require(self.interpolation in get_args(Interpolation), "input.interpolation must be `bilinear` or `bicubic`")
        _require(isinstance(self.grayscale, bool), "input.grayscale must be true or false")
        if isinstance(self.resize, int):
            smallest = max(self.height, self.width) if self.crop else 1
            why = ": the crop, of height x width, is cut from what it leaves" if self.crop else ""
            _require(smallest <= self.resize <= MAX_SIDE, f"input.resize must be {smallest} to {MAX_SIDE}{why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyBudget:
    """Sweep nested masks and keep the strongest that loses at most `max_accuracy_drop` (0.02 is two points).

    `auto` keeps the one under which its triggers work least; without a repair it goes channel by channel, of which
    `num_points` says nothing, and must keep the budget surely.

    Attributes:
        max_accuracy_drop: Of clean accuracy on images that are not held out.
        num_points: Of the sweep.
        max_fraction: Of the channels in scope that may go.
        max_recall_drop: The largest loss of any one class's recall on the selection split; None for no bound. A class
            has a recall in steps of one over its images there, so that few images need a generous bound. It bounds
            every sweep, and what `auto` trains afterwards as far as chance does not explain the loss.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["accuracy_budget"] = "accuracy_budget"
    max_accuracy_drop: float = 0.02
    num_points: int = 24
    max_fraction: float = 0.5
    max_recall_drop: float | None = None

    def __post_init__(self) -> None:
        _require(
            _is_number(self.max_accuracy_drop) and 0 <= self.max_accuracy_drop <= 1,
            "selection.max_accuracy_drop must be 0 to 1",
        )
        _require(
            self.max_recall_drop is None or (_is_number(self.max_recall_drop) and 0 <= self.max_recall_drop <= 1),
            "selection.max_recall_drop must be 0 to 1, or null for no bound",
        )
        _require(_is_whole(self.num_points) and 2 <= self.num_points <= 200, "selection.num_points must be 2 to 200")
        _require(
            _is_number(self.max_fraction) and 0 < self.max_fraction < 1,
            "selection.max_fraction must be above 0 and below 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedFraction:
    """Prune this fraction of the channels in scope, whatever it costs."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["fixed_fraction"] = "fixed_fraction"
    fraction: float

    def __post_init__(self) -> None:
        _require(_is_number(self.fraction) and 0 < self.fraction < 1, "selection.fraction must be above 0 and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustDeviations:
    """Prune each channel whose score lies more than k robust deviations (1.4826 MAD) from its layer's median."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["robust_deviations"] = "robust_deviations"
    k: float

    def __post_init__(self) -> None:
        _require(_is_number(self.k) and 0 < self.k <= 1000, "selection.k must be above 0 and at most 1000")


Selection = AccuracyBudget | FixedFraction | RobustDeviations
SELECTIONS: dict[str, Any] = {
    "accuracy_budget": AccuracyBudget,
    "fixed_fraction": FixedFraction,
    "robust_deviations": RobustDeviations,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizeSpec:
    """One sanitization. Every field has a default; the report states every value that was used.

    Attributes:
        recipe: `auto` judges, prunes, repairs and verifies; `judge` only judges, and changes nothing; `prune` only
            prunes, by the fields below; `paper` is `prune` as arXiv 2002.12162 is read here; `caps` bounds activations
            and does nothing else; the others are published baselines and ignore those fields.
        prune: Whether `auto` silences channels. Without it the repair alone is done, within an accuracy budget.
        repair: Whether `auto` trains after pruning.
        max_rounds: How many rounds of training `auto` may try, 1 to 3; it stops by itself where one was enough. The
            first is done twice where it breaks the accuracy budget.
        caps: Whether `auto`, within an accuracy budget, may bound activations: behind a repair, and without one where
            triggers still work after pruning. That adds operators to the file, so that only an exported program (.pt2)
            or an ONNX file, in single precision, can carry it.
        criterion: What ranks channels, for `auto` and `prune`; standardised inside each layer, and turned so that
            `descending` prunes the most suspicious first. `linf`, `l1`, `l2`: norms of the activation map on `inputs`;
            `linf_over_l1`, `linf_over_l2`, `l2_over_l1`: their ratios in each image. `mean`: mean activation on clean
            images, the quietest first (Fine-Pruning). `lipschitz`: bound of the channel's Lipschitz constant (CLP).
            `bn_divergence`: of clean images from what the batch norm stores (BNP). `entropy`: of the peaks before the
            batch norm on clean and triggered images together, the lowest first (EP). `adversarial_mask` (ANP),
            `weight_mask` (AWM, its mean over the channel's weights), `unlearn_recover` (RNP): the masks that those
            recipes learn, the lowest first. `logit_contribution`: what the channel adds, to first order, to the
            suspected class's logit on triggered images. A list of names ranks by the mean of their standardised scores,
            standardised again (in a layer that only some of them apply to, by the mean of those); a layer that none
            applies to is left alone.
        aggregate: How a norm is taken over images.
        inputs: What a norm is taken on. `triggered` and `difference` let half of the client's trigger samples
            guide; the `synthetic` ones need none.
        scope: Which layers may lose channels: `all_convs`, every layer whose channels can be silenced (hidden linear
            layers and attention heads too, where there are any); `last_conv`, the deepest convolution, or where only
            patch embeddings are convolutions the deepest linear layer or attention; `last_stage`, the convolutions
            whose maps have as many positions as the last one's, or without convolutions the linear layers and attention
            heads on as many tokens as the deepest; or the layers named.
        order: `descending` prunes the largest scores first.
        selection: How far to go.
        seed: Of every draw.
        device: Where to compute.
        compare: Other recipes to run on the suspect with the same fields, seed and images; the report has a row for
            each, and the checkpoint that is written stays that of `recipe`.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    recipe: Recipe = "auto"
    prune: bool = True
    repair: bool = True
    max_rounds: int = MAX_ROUNDS
    caps: bool = True
    criterion: Criterion | list[Criterion] = "linf"
    aggregate: Aggregate = "mean"
    inputs: Inputs = "synthetic_difference"
    scope: Scope | list[str] = "all_convs"
    order: Order = "descending"
    selection: Selection = field(default_factory=AccuracyBudget)
    seed: int = 0
    device: Device = "auto"
    compare: list[Recipe] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require(_is_whole(self.seed) and 0 <= self.seed < 2**63, "seed must be 0 to 2^63 - 1")
        _require(isinstance(self.prune, bool), "prune must be true or false")
        _require(isinstance(self.repair, bool), "repair must be true or false")
        _require(
            _is_whole(self.max_rounds) and 1 <= self.max_rounds <= MAX_ROUNDS, f"max_rounds must be 1 to {MAX_ROUNDS}"
        )
        _require(isinstance(self.caps, bool), "caps must be true or false")
        _require(
            isinstance(self.selection, Selection),
            f"selection must be an object of a kind among {', '.join(SELECTIONS)}",
        )
        _require(self.prune or self.recipe != "prune", "prune: false leaves nothing to do for the recipe prune")
        _require(
            self.prune or isinstance(self.selection, AccuracyBudget),
            "prune: false goes with a selection of kind accuracy_budget: the other kinds say how much to prune",
        )
        if isinstance(self.scope, list):
            _require(0 < len(self.scope) <= 10_000, "scope must name 1 to 10000 layers")
            _require(all(isinstance(name, str) for name in self.scope), "scope must be a list of names")
        _require(
            all(one in get_args(Criterion) for one in self.criteria),
            f"criterion must be one of {', '.join(get_args(Criterion))}, or a list of them",
        )
        _require(len(self.criteria) > 0, "criterion must name at least one criterion; leave it out for linf")
        _require(len(set(self.criteria)) == len(self.criteria), "criterion must name each criterion once")
        _require(
            isinstance(self.compare, list) and all(one in get_args(Recipe) for one in self.compare),
            f"compare must be a list of recipes: {', '.join(get_args(Recipe))}",
        )
        _require(len(self.compare) <= MAX_COMPARED, f"compare may name at most {MAX_COMPARED} recipes")
        _require(len(set(self.compare)) == len(self.compare), "compare must name each recipe once")
        _require(self.recipe not in self.compare, "compare must not name the recipe itself, whose row is always there")

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria whose standardised scores are averaged, most often one."""
        return tuple(self.criterion) if isinstance(self.criterion, list) else (self.criterion,)

    @property
    def guided_by_trigger_samples(self) -> bool:
        """Whether half of the client's trigger samples guide, so that the job cannot do without them."""
        return self.inputs in NEEDS_TRIGGER_SAMPLES and any(one in USES_INPUTS for one in (self.recipe, *self.compare))

    def of_compared(self, recipe: Recipe) -> SanitizeSpec:
        """What a recipe of `compare` is asked for: the same, and nothing to compare it with; `prune` prunes."""
        return replace(self, recipe=recipe, compare=[], prune=self.prune or recipe == "prune")


def parse_spec(value: dict[str, Any]) -> SanitizeSpec:
    """The specification of a JSON object, for callers without a validation library.

    Raises:
        InvalidSpecError: A field is unknown, of a wrong type or out of its bounds.
    """
    fields = dict(value)
    if isinstance(fields.get("selection"), dict):
        selection = dict(fields["selection"])
        kind = selection.get("kind", "accuracy_budget")
        _require(isinstance(kind, str) and kind in SELECTIONS, f"selection.kind must be one of {', '.join(SELECTIONS)}")
        fields["selection"] = _construct(SELECTIONS[kind], selection, "selection")
    spec: SanitizeSpec = _construct(SanitizeSpec, fields, "spec")
    for name, choices in CHOICES.items():
        _require(getattr(spec, name) in choices, f"{name} must be one of {', '.join(choices)}")
    _require(isinstance(spec.scope, list) or spec.scope in SCOPES, f"scope must be {', '.join(SCOPES)} or a list")
    return spec


def _construct(kind: Any, fields: dict[str, Any], what: str) -> Any:  # noqa: ANN401 - any of the classes above
    try:
        return kind(**fields)
    except TypeError as error:
        raise InvalidSpecError(f"{what}: {error}") from error
