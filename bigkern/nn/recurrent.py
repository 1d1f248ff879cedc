"""LSTM, GRU and RNN with the arguments, parameters and state_dict of torch.nn's.

They are no subclasses of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN: torch.compile breaks its graph at those.
"""

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import functional as F


class _Recurrent(torch.nn.RNNBase):
    """What the three have in common; `_states` names the initial states, `_run` is the op over all layers."""

    _states: tuple[str, ...]

    def _run(self, input, states, arguments, lengths):
        raise NotImplementedError

    def _layer_arguments(self, batch_first):
        params = [getattr(self, name) for names in self._all_weights for name in names]
        options = (self.num_layers, self.dropout, self.training, self.bidirectional, batch_first)
        return params, self.bias, *options

    def _initial_states(self, input, batch, hx):
        shape = (self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size)
        if hx is None:
            return [torch.zeros(shape, dtype=input.dtype, device=input.device) for _ in self._states]
        states = [hx] if len(self._states) == 1 else list(hx)
        for name, state in zip(self._states, states, strict=True):
            if tuple(state.shape) != shape:
                raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")
        return states

    def forward(self, input, hx=None):
        """As in torch.nn: (output, h_n), or (output, (h_n, c_n)) for LSTM.

        Args:
            input: [length, batch, input_size], with batch_first [batch, length, input_size], [length, input_size], or a
                PackedSequence.
            hx: the initial states, [num_layers * directions, batch, hidden_size] each ([num_layers * directions,
                hidden_size] for input without a batch); None: zeros.

        Raises:
            ValueError, RuntimeError: shapes or dtypes do not fit the module.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batch_dim, is_batched = 0 if self.batch_first else 1, input.dim() == 3
        if not is_batched:
            input = input.unsqueeze(batch_dim)
            if hx is not None:
                hx = hx.unsqueeze(1) if len(self._states) == 1 else tuple(state.unsqueeze(1) for state in hx)
        self.check_input(input, None)
        states = self._initial_states(input, input.shape[batch_dim], hx)
        output, *final = self._run(input, states, self._layer_arguments(self.batch_first), None)
        if not is_batched:
            output, final = output.squeeze(batch_dim), [state.squeeze(1) for state in final]
        return output, final[0] if len(final) == 1 else tuple(final)

    def _forward_packed(self, packed, hx):
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        self.check_input(data, batch_sizes)
        padded, lengths = torch._VF._pad_packed_sequence(data, batch_sizes, False, 0.0, batch_sizes.shape[0])
        states = self._initial_states(padded, padded.shape[1], hx)
        if hx is not None and sorted_indices is not None:
            states = [state.index_select(1, sorted_indices) for state in states]
        output, *final = self._run(padded, states, self._layer_arguments(False), lengths.to(data.device))
        output, _ = torch._VF._pack_padded_sequence(output, lengths, False)
        if unsorted_indices is not None:
            final = [state.index_select(1, unsorted_indices) for state in final]
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, final[0] if len(final) == 1 else tuple(final)


class LSTM(_Recurrent):
    """torch.nn.LSTM computed by `bigkern.functional.lstm`.

    Args:
        As torch.nn.LSTM.

    Raises:
        NotImplementedError: proj_size is not 0.
    """

    _states = ("hidden[0]", "hidden[1]")

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)
        if self.proj_size:
            raise NotImplementedError(f"LSTM: proj_size must be 0, got {self.proj_size}: no kernel projects the state")

    def _run(self, input, states, arguments, lengths):
        return F.lstm(input, states, *arguments, lengths=lengths)


class GRU(_Recurrent):
    """torch.nn.GRU computed by `bigkern.functional.gru`.

    Args:
        As torch.nn.GRU.

    Raises:
        ValueError: proj_size is given, as in PyTorch.
    """

    _states = ("hidden",)

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def _run(self, input, states, arguments, lengths):
        return F.gru(input, states[0], *arguments, lengths=lengths)


class RNN(_Recurrent):
    """torch.nn.RNN computed by `bigkern.functional.rnn_tanh` or `bigkern.functional.rnn_relu`.

    Args:
        As torch.nn.RNN.

    Raises:
        ValueError: the nonlinearity is neither "tanh" nor "relu", or proj_size is given, as in PyTorch.
    """

    _states = ("hidden",)

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, *args, **kwargs)

    def _run(self, input, states, arguments, lengths):
        function = F.rnn_tanh if self.nonlinearity == "tanh" else F.rnn_relu
        return function(input, states[0], *arguments, lengths=lengths)
