"""Which values of a graph that is still being built have a part of the images in them."""

from __future__ import annotations

from torch import fx


class Ancestry:
    """What descends from one node, each node looked at once however often and of however many it is asked.

    A graph of fifty thousand operations may ask it of each. Nodes are only ever added, after those they read.
    """

    def __init__(self, root: fx.Node) -> None:
        self._descends = {root: True}

    def __contains__(self, node: fx.Node) -> bool:
        pending = [node]
        while pending:
            last = pending[-1]
            unknown = [source for source in last.all_input_nodes if source not in self._descends]
            if unknown and last not in self._descends:
                pending += unknown
                continue
            self._descends.setdefault(last, any(self._descends[source] for source in last.all_input_nodes))
            pending.pop()
        return self._descends[node]
