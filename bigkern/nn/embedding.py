"""Tables of rows."""

import torch

from ..ops.embedding import embedding


class Embedding(torch.nn.Embedding):
    """`torch.nn.Embedding`, computed by `bigkern.embedding`."""

    def forward(self, input):
        return embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
