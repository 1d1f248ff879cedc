"""Modules with the names, arguments and state_dict of torch.nn."""

from .linear import Linear, LinearAct

__all__ = ["Linear", "LinearAct"]
