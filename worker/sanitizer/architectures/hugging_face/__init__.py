"""Image classifiers of transformers, built from the allow-listed fields of an uploaded config.json."""

from worker.sanitizer.architectures.hugging_face.config import MAX_BYTES, Described, parse, refuse_code
from worker.sanitizer.architectures.hugging_face.design import PREFIX, Design, design

__all__ = ["MAX_BYTES", "PREFIX", "Described", "Design", "design", "parse", "refuse_code"]
