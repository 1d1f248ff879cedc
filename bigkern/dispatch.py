"""The only place that chooses a backend.

The choice is a pure function of device, dtype, shape, what is installed and what each op declares; an error in a kernel
is never a reason to try another.
"""

import os
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .backends import BACKENDS

# The order in which `auto` asks, by device type; what is not listed goes to PyTorch.
AUTO_ORDER = {"cpu": ("cpu", "torch"), "cuda": ("cuda", "triton", "torch")}


class Unsupported(RuntimeError):
    """A forced backend cannot run a call; the message says why."""


def _checked(name: str | None) -> str | None:
    if name in (None, "", "auto"):
        return None
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; one of auto, {', '.join(BACKENDS)}")
    return name


_forced: ContextVar[str | None] = ContextVar("bigkern_backend", default=None)
_recorder: ContextVar[list | None] = ContextVar("bigkern_recorder", default=None)
_from_environment = _checked(os.environ.get("BIGKERN_BACKEND"))


@contextmanager
def use_backend(name: str):
    """Runs every op inside the `with` block on one backend, and raises where that cannot be.

    Args:
        name: "reference", "cpu", "triton", "cuda", "torch", or "auto" to undo an outer choice. The environment
            variable BIGKERN_BACKEND, read at import, does the same for a whole process.

    Raises:
        ValueError: the name is none of these.
        RuntimeError: raised (as `dispatch.Unsupported`) by an op in the block that the backend cannot run, with the
            reason.
    """
    token = _forced.set(_checked(name) or "auto")
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """The backend that a `use_backend` block or BIGKERN_BACKEND asks for; None for `auto`."""
    forced = _forced.get()
    if forced is None:
        return _from_environment
    return None if forced == "auto" else forced


def is_auto() -> bool:
    """True where nothing forces a backend and `explain` is not asking."""
    return (_forced.get() or _from_environment or "auto") == "auto" and _recorder.get() is None


@dataclass
class Decision:
    """What dispatch chose for one kernel call, and why not the others."""

    kernel: str
    device: str
    chosen: str | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.kernel} on {self.device}: {self.chosen or 'no backend'}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def why_not(backend: str, kernel, args) -> str | None:
    """Why `backend` cannot run this call; None if it can."""
    if backend not in kernel.supports:
        return f"no {backend} kernel is written for {kernel.module}"
    if reason := BACKENDS[backend].unavailable():
        return reason
    supports = kernel.supports[backend]
    return supports(*args) if supports else None


def device_of(args):
    """The device of a call: that of its first tensor."""
    first = args[0]
    return (first[0] if type(first) is list else first).device


def choose(kernel, args) -> tuple[str, str | None]:
    """(backend, None), or ("", reason) where a forced backend cannot run the call."""
    if forced := forced_backend():
        reason = why_not(forced, kernel, args)
        return ("", reason) if reason else (forced, None)
    if kernel.torch_is_faster and kernel.torch_is_faster(*args):
        return "torch", None
    for backend in AUTO_ORDER.get(device_of(args).type, ()):
        if why_not(backend, kernel, args) is None:
            return backend, None
    return "torch", None


def run(kernel, args):
    """Runs `kernel` on schema-ordered `args`; returns its tuple of outputs."""
    if (recorder := _recorder.get()) is not None:
        recorder.append(_decide(kernel, args))
        return kernel.allocate(*args)
    backend, reason = choose(kernel, args)
    if reason:
        raise Unsupported(f"{kernel.module}: backend {forced_backend()!r} cannot run {kernel.name}: {reason}")
    return BACKENDS[backend].run(kernel, args)


def leave_to_torch(op: str, device: str, reason: str) -> bool:
    """True on `auto`: the op then calls PyTorch's own function. For calls so small that going through a `Kernel` at all
    would cost more than PyTorch's function costs in all; `reason` says how that was measured."""
    if forced_backend() is not None:
        return False
    if (recorder := _recorder.get()) is not None:
        recorder.append(Decision(op, device, "torch", dict.fromkeys((b for b in BACKENDS if b != "torch"), reason)))
    return True


def _decide(kernel, args) -> Decision:
    chosen, forced_reason = choose(kernel, args)
    reasons = {}
    for backend in BACKENDS:
        if backend == chosen:
            continue
        reason = why_not(backend, kernel, args)
        if reason is None and kernel.torch_is_faster:
            reason = kernel.torch_is_faster(*args)
        reasons[backend] = reason or ("the oracle, for tests" if backend == "reference" else f"{chosen} comes first")
    if forced_reason:
        reasons = {forced_backend(): forced_reason}
    return Decision(kernel.name, str(device_of(args)), chosen or None, reasons)


def explain(op, *args, **kwargs) -> list[Decision]:
    """Says which backend `op(*args, **kwargs)` would run on, and why none of the others; computes nothing.

    Args:
        op: a function of `bigkern` or `bigkern.functional`.
        *args, **kwargs: what the op would be called with.

    Returns:
        One `Decision` per kernel that the forward would launch; print them to read them.
    """
    decisions: list[Decision] = []
    token = _recorder.set(decisions)
    try:
        op(*args, **kwargs)
    finally:
        _recorder.reset(token)
    return decisions
