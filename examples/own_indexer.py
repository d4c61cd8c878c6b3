"""An indexer of your own: the scores of a random projection, beside topkit's codes of as many bytes."""

from dataclasses import dataclass

import torch

import topkit
from topkit.indexers.scored import Scored
from topkit.kernels.score import score
from topkit.testing import check_indexer, real_tensors


@dataclass(frozen=True)
class sketch(Scored):
    """Scores by `dims` random projections of keys and queries."""

    examples = ("sketch(dims=4)",)

    dims: int = 8

    def _project(self, x, step):
        generator = torch.Generator().manual_seed(step.seed)
        matrix = torch.randn(x.shape[-1], self.dims, generator=generator).to(x.device)
        return x.float() @ matrix

    def encode(self, keys, step):
        return {"sketch": self._project(keys, step)}

    def score(self, queries, codes, step):
        return score(self._project(queries, step), codes["sketch"])


check_indexer(sketch(dims=4))  # the laws that every indexer keeps: padding, appends, beams, ties
layer = real_tensors(15)
capture = topkit.Capture.from_tensors(layer.queries, layer.keys)
# 16 floats of 4 bytes a key, or 64 numbers of 8 bits.
for row in topkit.measure(capture, [sketch(dims=16), "quantized:dtype=int8"], k=64).summary():
    print(
        f"{row['indexer'].split('(')[0].split(':')[-1]:12}recall {row['recall']:.2f}  mass {row['mass']:.2f}"
    )
