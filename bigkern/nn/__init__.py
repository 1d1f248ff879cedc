"""Modules with the names, arguments and state_dict of torch.nn."""

from .loss import CrossEntropyLoss

__all__ = ["CrossEntropyLoss"]
