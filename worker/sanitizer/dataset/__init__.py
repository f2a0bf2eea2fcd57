"""Uploaded image sets: read within limits, check against the model's input, split."""

from worker.sanitizer.dataset.checks import MIN_PER_CLASS, check
from worker.sanitizer.dataset.reading import LabelledImages, pixels, read
from worker.sanitizer.dataset.splitting import split

__all__ = ["MIN_PER_CLASS", "LabelledImages", "check", "pixels", "read", "split"]
