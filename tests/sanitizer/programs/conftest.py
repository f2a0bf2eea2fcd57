"""Exported programs, made once, and the ways to spoil one."""

import io
import json
import zipfile

import pytest
import torch
from torch import nn

from worker.sanitizer import checkpoint
from worker.sanitizer.refusals import CheckpointRefusedError


class Small(nn.Module):
    """A convolution with its norm, a residual sum in place, attention over positions, a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.project = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def forward(self, x):
        maps = torch.relu(self.bn(self.conv(x)))
        maps += self.scale * maps
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        query, key, value = self.project(tokens).reshape(x.shape[0], -1, 3, 8).unbind(2)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(mixed.mean(1))


def export(module, path, *, batch_size=2, dynamic=True, shape=(3, 8, 8), **options):
    """Save as a user would."""
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(batch_size, *shape),), dynamic_shapes=shapes, **options)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="session")
def small():
    torch.manual_seed(1)
    module = Small()
    with torch.no_grad():
        module.bn.running_mean.uniform_(-0.5, 0.5)
        module.bn.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.fixture(scope="session")
def exported(small, tmp_path_factory):
    """The bytes of a good program: members by name below the root `small/`."""
    return members_of(export(small, tmp_path_factory.mktemp("pt2") / "small.pt2").read_bytes())


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def zipped(members, root="small/"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(root + name, data)
    return buffer.getvalue()


MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


@pytest.fixture
def code_of(tmp_path, exported):
    """The code with which a spoilt program is refused: members replaced (None takes one away), JSON members edited."""

    def refused(replaced=None, **edits):
        members = {**exported, **(replaced or {})}
        for name, edit in zip(("model", "weights", "constants"), (MODEL, WEIGHTS, CONSTANTS), strict=True):
            if name in edits:
                document = json.loads(members[edit])
                edits[name](document)
                members[edit] = json.dumps(document).encode()
        path = tmp_path / "spoilt.pt2"
        path.write_bytes(zipped({name: data for name, data in members.items() if data is not None}))
        with pytest.raises(CheckpointRefusedError) as caught:
            checkpoint.read(path)
        return caught.value.code

    return refused
