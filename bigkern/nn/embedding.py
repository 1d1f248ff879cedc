"""Tables of rows."""

import torch

from ..ops.embedding import embedding
from ..ops.embedding_bag import embedding_bag


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


class EmbeddingBag(torch.nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag`, computed by `bigkern.embedding_bag`."""

    def forward(self, input, offsets=None, per_sample_weights=None):
        return embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
