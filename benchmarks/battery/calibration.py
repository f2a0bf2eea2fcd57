"""Which models of the battery thresholds may be calibrated on; the others are for judging the verdict."""

from __future__ import annotations

import hashlib
import re

from benchmarks.battery import attacks
from benchmarks.battery.catalogue import is_held_out

_ARCHITECTURES = ("resnet", "vgg", "vgg-nobn")
_NAME = re.compile(
    r"(?:digits-|shapes-)?(?P<architecture>resnet|vgg-nobn|vgg)-w(?P<width>\d+)-"
    rf"(?P<attack>clean|{'|'.join(attacks.names())})(?:-\d+pc)?-s(?P<seed>\d+)"
)
_WIDTH_STEP = 4


def is_calibration(name: str) -> bool:
    """Return whether the model of this name may be used to calibrate a threshold.

    A chessboard over architecture, attack and seed (for clean models architecture, width and seed) decides, so that
    about half of each kind lies on each side and every attack lies on both. The poisoning rate plays no part: models
    that differ in it alone are too alike to lie on two sides. The rule looks at the name and never at a figure; a name
    of another form is decided by its digest, and a held-out model is never for calibration.
    """
    if is_held_out(name):
        return False
    match = _NAME.fullmatch(name)
    if match is None:
        return hashlib.sha256(name.encode()).digest()[0] % 2 == 0
    attack = match["attack"]
    kind = int(match["width"]) // _WIDTH_STEP if attack == "clean" else attacks.names().index(attack)
    return (_ARCHITECTURES.index(match["architecture"]) + int(match["seed"]) + kind) % 2 == 0
