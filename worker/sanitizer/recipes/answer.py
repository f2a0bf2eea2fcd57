"""What the report answers about a repair, and in which words."""

from __future__ import annotations

from collections.abc import Sequence

from worker.sanitizer.report import RepairStatus

# The estimate above which nothing was repaired.
NOT_REPAIRED_AT = 0.5
_REASONS: dict[RepairStatus, str] = {
    "repaired": "No synthesised trigger of a size that speaks for a backdoor works any more.",
    "partly_repaired": "Synthesised triggers work less often, and still too often.",
    "not_repaired": "Synthesised triggers still work on most images.",
}
_STILL_REACHED = "But faint or random changes of the image still lead to class {} as to no other: it may be the target."
_BY_NATURE = "But nature explains the class that the verdict names: the target may be another one."
_NOT_SURE = "But the verdict is sure of no class: a backdoor of one that was not suspected may be left."
_LEANING = (
    "Random triggers of some kind led to a class that the verdict is not sure of, as by nature they do not "
    "(`random_pull` in its evidence): of that kind as many more were unlearnt as of all kinds together."
)
_KEPT_SHARE = "Of the way from the pruned network to the repaired one {:.0%} fits the accuracy budget."


def status_of(
    estimate: float, repaired_at: float, left: Sequence[int], *, is_sure: bool, by_loudness: bool
) -> tuple[RepairStatus, str]:
    """How far the network is repaired, and why that and no more is said.

    Args:
        estimate: The largest success of a synthesised trigger.
        repaired_at: Up to which that counts as none.
        left: Classes that the network is still led to as to no other.
        is_sure: Whether the verdict is.
        by_loudness: Whether it is so by loudness alone.
    """
    if estimate > repaired_at:
        status: RepairStatus = "partly_repaired" if estimate <= NOT_REPAIRED_AT else "not_repaired"
        return status, _REASONS[status]
    if left:
        return "partly_repaired", f"{_REASONS['repaired']} {_STILL_REACHED.format(', '.join(map(str, left)))}"
    if not is_sure or by_loudness:
        return "partly_repaired", f"{_REASONS['repaired']} {_BY_NATURE if is_sure else _NOT_SURE}"
    return "repaired", _REASONS["repaired"]


def remarks(*, is_leaning: bool, share_kept: float) -> str:
    """What else is to be said of the way there, each sentence behind a space."""
    said = [_LEANING] if is_leaning else []
    if share_kept < 1:
        said.append(_KEPT_SHARE.format(share_kept))
    return "".join(f" {one}" for one in said)
