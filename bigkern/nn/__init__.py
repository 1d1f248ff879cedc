"""Modules with the names, arguments and state_dict of torch.nn."""
