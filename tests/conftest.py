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

from bigkern.registration import KERNELS
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import EMULATOR, places_of

settings.register_profile(
    "bigkern",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        # A base class with a drawn test serves several ops' classes (tests/norm_tests.py).
        HealthCheck.differing_executors,
    ],
)
settings.load_profile("bigkern")


def pytest_generate_tests(metafunc):
    """`place`: each backend on each device of this machine that has kernels of the op that the test file is named after;
    use as `with place.use(): ...`."""
    if "place" not in metafunc.fixturenames:
        return
    file = metafunc.module.__name__.rpartition(".test_")[2]
    ops = [kernel.module for kernel in KERNELS.values() if file.startswith(kernel.module)]
    places = places_of(max(ops, key=len, default=""))
    without_compiler = pytest.mark.skipif(
        cuda_emulator.unavailable() is not None, reason=str(cuda_emulator.unavailable())
    )
    params = [pytest.param(place, marks=without_compiler if place == EMULATOR else ()) for place in places]
    metafunc.parametrize("place", params, ids=str)


def pytest_collection_modifyitems(items):
    for item in items:
        place = item.callspec.params.get("place") if hasattr(item, "callspec") else None
        if place is not None and place.slow and item.get_closest_marker("slow_when_interpreted"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
