"""Blocks spread over ranks: what each rank records of a sharded model, and the little that they exchange.

A block whose weights lie on one rank is that rank's business alone: single weights always, nodes where the model is
sharded along its units, as FSDP2 does. Any other block - a layer, the network, a node of a matrix that is sharded
across its inputs - is one block whose Gram matrix is a sum over ranks: (m+1)^2 numbers a fit, or all its snapshots,
where those are fewer bytes. Where a Gram matrix cannot resolve the cutoff, the ranks gather the triangles of their
shards' QR decompositions (Demmel, Grigori, Hoemmen & Langou 2012, SIAM J. Sci. Comput. 34), or the snapshots. Every
rank then solves the same small problem and moves the weights that it holds.

`group` has the ranks and their exchanges, `shards` what a rank holds of a block, `fit` the operators of spread blocks.
"""

from .fit import exchange, fit_spread
from .group import RankError, Ranks, ranks_of
from .shards import Shard, Spread, localized, shard_of

__all__ = [
    "RankError", "Ranks", "Shard", "Spread", "exchange", "fit_spread", "localized", "ranks_of", "shard_of",
]  # fmt: skip
