"""Multi-head attention with the arguments and the state_dict of torch.nn.MultiheadAttention."""

import torch

from ..functional import linear
from ..ops.attention import attention


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention computed by `bigkern.linear_act` and `bigkern.attention`.

    Arguments, shapes, masks (bool: True hides) and state_dict are PyTorch's. Where the attention weights themselves are
    asked for (need_weights=True, PyTorch's default), or bias_k, bias_v or add_zero_attn are in use, the scores have to
    exist in memory, and PyTorch's own forward runs.
    """

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        if need_weights or self.bias_k is not None or self.add_zero_attn:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: need attn_mask if is_causal is given, as in PyTorch")
        is_batched = query.ndim == 3
        if not is_batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)

        weights = self._projection_weights()
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        heads = [
            linear(tensor, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for tensor, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]  # each [batch, heads, length, head_dim]
        mask = self._visible(attn_mask, key_padding_mask, query.shape[0], query.dtype)
        output = attention(*heads, mask, self.dropout if self.training else 0.0)
        output = linear(output.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not is_batched:
            return output.squeeze(0), None
        return (output if self.batch_first else output.transpose(0, 1)), None

    def _projection_weights(self):
        if self._qkv_same_embed_dim:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _visible(self, attn_mask, key_padding_mask, batch, dtype):
        """Both masks as one for `bigkern.attention`, which broadcasts it to [batch, heads, len_q, len_k]; or None."""
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask.unflatten(0, (batch, self.num_heads)) if attn_mask.ndim == 3 else attn_mask)
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None])
        if not masks:
            return None
        if all(mask.dtype == torch.bool for mask in masks):
            return ~masks[0] if len(masks) == 1 else ~(masks[0] | masks[1])
        return sum(
            torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask
            for mask in masks
        )
