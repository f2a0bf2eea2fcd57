"""Where a graph of aten operators has channels that can be silenced, and which tensors they own."""

from worker.sanitizer.sites.finding import find_sites
from worker.sanitizer.sites.site import Kind, Rows, Site

__all__ = ["Kind", "Rows", "Site", "find_sites"]
