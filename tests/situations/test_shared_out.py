"""A model of which each process holds a part is refused in a sentence, whose advice works."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch.distributed.tensor.parallel", reason="torch was built without it")

PROGRAM = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from fxlrp import FxlrpError, convert

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
x = torch.randn(2, 6)
whole = convert(model)(x, target=0).relevance
parts = parallelize_module(model, init_device_mesh("cpu", (1,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
try:
    convert(parts)(x)
except FxlrpError as error:
    print(error)
copy = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
copy.load_state_dict(get_model_state_dict(parts, options=StateDictOptions(full_state_dict=True)))
assert torch.equal(convert(copy)(x, target=0).relevance, whole)
dist.destroy_process_group()
"""


def test_tensor_parallel_is_refused_with_a_way_out() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Each process holds a part of 0.weight (a DTensor)"), done.stdout
