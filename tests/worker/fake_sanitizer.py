"""A child that takes a real request, and whose clean set says how it should go wrong."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n and the rest of a picture"
ESTIMATE = {"value": 0.9, "low": 0.8, "high": 1.0, "num_images": 10}


def figures(request: dict[str, object], fault: str) -> list[dict[str, object]]:
    """Draw a figure, or one that is not what the report says."""
    folder, data = Path(str(request["figures_path"])), PNG
    if fault == "page_figure":
        data = b"<html><script>"
    folder.mkdir()
    (folder / "curve.png").write_bytes(data)
    sha256 = hashlib.sha256(b"another" if fault == "other_figure" else data).hexdigest()
    info = {"name": "curve", "title": "The curve", "media_type": "image/png", "sha256": sha256, "size_bytes": len(data)}
    return [info | {"name": "../report.json"} if fault == "named_figure" else info]


def report(request: dict[str, object], sha256: str, size: int) -> dict[str, object]:
    return {
        "schema_version": 1,
        "spec": request["spec"],
        "architecture": request["architecture"],
        "input": request["input"],
        "accuracy": {"before": ESTIMATE, "after": ESTIMATE},
        "attack_success": {"status": "not_measurable", "reason": "no trigger samples"},
        "split": dict.fromkeys(
            ("num_profile", "num_select", "num_holdout", "num_triggered_guide", "num_triggered_score"), 1
        ),
        "choice": {"num_pruned": 0, "num_in_scope": 1, "reason": "none"},
        "curve": [],
        "layers": [],
        "skipped_layers": {},
        "tensors": [],
        "files": [{"role": "sanitized_checkpoint", "format": "safetensors", "size_bytes": size, "sha256": sha256}],
        "environment": {
            "lustrate": "0",
            "python": "3",
            "torch": "2",
            "packages": {},
            "device": "cpu",
            "device_name": "cpu",
            "seed": 0,
            "num_threads": 1,
        },
        "seconds": {},
        "warnings": [],
        "verdict": {"verdict": "not_judged", "reason": "a fake"},
        "repair": {"status": "not_attempted", "reason": "a fake"},
        "synthetic_attack_success": None,
    }


def preview(fault: str) -> dict[str, object]:
    duplicates = {"num_images": 0, "num_groups": 0, "num_contradicting": 0, "examples": []}
    nothing = {key: [] for key in ("sizes", "classes", "disagreements", "normalisations", "findings", "files")}
    found = {"schema_version": 1, "kind": "preview", "format": "npz", "num_images": 7, "num_left_out": 0}
    spoiled = {"num_images": "many"} if fault == "bad_report" else {}
    return nothing | found | {"duplicates": duplicates, "accuracy": None, "num_disagreements": None} | spoiled


def main() -> None:
    request = json.loads(sys.stdin.readline())
    fault = Path(request["clean_path"]).read_text()
    output, data = Path(request["output_path"]), Path(request["checkpoint_path"]).read_bytes()[::-1]
    if request["kind"] == "preview":
        Path(request["report_path"]).write_text(json.dumps(preview(fault)))
        sys.stdout.write('{"event":"succeeded"}\n')
        return
    if fault == "hang":
        time.sleep(600)
    elif fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "refuse":
        sys.stdout.write('{"event":"refused","code":"class_too_rare","message":"Send more."}\n')
        return
    elif fault == "link":
        output.symlink_to("/etc/passwd")
    elif fault == "huge":
        os.truncate(os.open(output, os.O_CREAT | os.O_WRONLY), request["max_file_bytes"] + 1)
    elif fault != "nothing":
        output.write_bytes(data)
    sha256 = hashlib.sha256(b"another" if fault == "another" else data).hexdigest()
    written = report(request, sha256, len(data))
    if fault.endswith("figure"):
        written["figures"] = figures(request, fault)
    text = "{}" if fault == "bad_report" else json.dumps(written)
    Path(request["report_path"]).write_text(text)
    sys.stdout.write('{"event":"progress","phase":"write","done":1,"total":1}\n{"event":"succeeded"}\n')


if __name__ == "__main__":
    main()
