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
_STILL_REACHED = (
    "But a faint change of the whole image still leads to class {}, as to no other: the target may be that one."
)
_BY_NATURE = "But nature explains the class that the verdict names: the target may be another one."
_NOT_SURE = "But the verdict is sure of no class: a backdoor of one that was not suspected may be left."
_KEPT_SHARE = " Of the way from the pruned network to the repaired one {:.0%} fits the accuracy budget."


def status_of(
    estimate: float,
    repaired_at: float,
    left: Sequence[int],
    *,
    is_sure: bool,
    by_loudness: bool,
    share_kept: float,
) -> tuple[RepairStatus, str]:
    """How far the network is repaired, and why that and no more is said.

    Args:
        estimate: The largest success of a synthesised trigger.
        repaired_at: Up to which that counts as none.
        left: Classes that the network is still led to as to no other.
        is_sure: Whether the verdict is.
        by_loudness: Whether it is so by loudness alone.
        share_kept: Of the way that the repair went, what the accuracy budget left.
    """
    status: RepairStatus = "repaired"
    if estimate > repaired_at:
        status = "partly_repaired" if estimate <= NOT_REPAIRED_AT else "not_repaired"
    reason, doubt = _REASONS[status], None
    if status == "repaired":
        doubt = _doubt(left, is_sure=is_sure, by_loudness=by_loudness)
    if doubt is not None:
        status, reason = "partly_repaired", f"{reason} {doubt}"
    return status, reason if share_kept >= 1 else reason + _KEPT_SHARE.format(share_kept)


def _doubt(left: Sequence[int], *, is_sure: bool, by_loudness: bool) -> str | None:
    if left:
        return _STILL_REACHED.format(", ".join(map(str, left)))
    if not is_sure:
        return _NOT_SURE
    return _BY_NATURE if by_loudness else None
