"""Set before anything imports triton or bigkern: without a GPU the Triton kernels are interpreted; with or without one,
every output starts as NaN, so that an element that a kernel forgets is seen."""

import os

# Several test processes share the cores: a thread that spins while it waits would keep another's work from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["BIGKERN_POISON_OUTPUTS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

from tests.support import PLACES

settings.register_profile(
    "bigkern",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("bigkern")


@pytest.fixture(params=PLACES, ids=str)
def place(request):
    """Each backend on each device of this machine: use as `with place.use(): ...` and `place.randn(...)`."""
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
