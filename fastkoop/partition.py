"""Named parameters -> blocks: which weights share an operator, and where each lies in a recording.

A *layer* is what feeds the same units: a matrix with its bias. A unit's row holds the weights that feed
it, its bias last (A. Rao's report). A *group* is one recording buffer (time, rows, n), rows padded
in memory; each granularity is a way to look at it:

=========== ======================================================================================
granularity one operator for
=========== ======================================================================================
weight      every single weight
quasi-node  q consecutive weights of a row, the remainder of the row as one smaller block
node        a row: a unit of the next layer; of a convolution, an output channel
layer       a layer
network     everything that has this granularity
=========== ======================================================================================

What is not a matrix with a bias still has a sensible block. Vectors of one module with equal length that
no matrix claims (a norm's scale and shift, a lone bias) share a layer with a row per entry, so that a
norm's node is a channel; a scalar is a layer of one row. An embedding's node is a token's vector.
(Dogra & Redman 2020, section 3, for the granularities.)
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from .checks import InputError, choice, integer

GRANULARITIES = ("weight", "quasi-node", "node", "layer", "network")


class Parameter(NamedTuple):
    """A parameter by name and shape; `unit_axis` runs over the units that its entries feed."""

    name: str
    shape: tuple[int, ...]
    unit_axis: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def units(self) -> int:
        return self.shape[self.unit_axis] if self.shape else 1


class Piece(NamedTuple):
    """A parameter's place in its group: columns start .. start + width of rows first .. first + rows."""

    parameter: Parameter
    start: int
    width: int
    rows: int = 1
    first: int = 0


@dataclass(frozen=True)
class Group:
    """Parameters that are recorded together as (rows, n) numbers a snapshot."""

    name: str
    granularity: str
    rows: int
    n: int
    pieces: tuple[Piece, ...]
    q: int | None = None  # of quasi-nodes alone

    def blocks(self, buffer) -> list:
        """Views (time, ..., block size) of a recording (time, rows, >= n), each a batch of equal blocks."""
        if self.granularity == "weight":
            return [buffer[:, :, : self.n, None]]
        if self.q is None:
            return [buffer[:, :, : self.n]]
        chunks = self.n // self.q
        views = []
        if chunks:
            whole = buffer[:, :, : chunks * self.q]
            views.append(whole.reshape(len(whole), self.rows, chunks, self.q))
        if chunks * self.q < self.n:
            views.append(buffer[:, :, chunks * self.q : self.n])
        return views

    @property
    def block_sizes(self) -> list[tuple[int, int]]:
        """(blocks, weights in each), in the order of `blocks`."""
        if self.granularity == "weight":
            return [(self.rows * self.n, 1)]
        if self.q is None:
            return [(self.rows, self.n)]
        chunks, rest = divmod(self.n, self.q)
        sizes = [(self.rows * chunks, self.q)] if chunks else []
        return sizes + ([(self.rows, rest)] if rest else [])


def groups(parameters: Iterable[Parameter], partition="node", q: int | None = None) -> list[Group]:
    """Recording groups that cover every parameter once.

    Args:
        parameters: in the model's order.
        partition: a granularity, or a mapping from name patterns (fnmatch, first match wins) to
            granularities, for example {"embed.*": "layer", "*": "node"}.
        q: weights in a quasi-node, >= 1.

    Raises:
        ValueError: an unknown granularity, no pattern for a parameter, a pattern for none, q missing,
            out of range or without a quasi-node; no parameters.

    >>> [group] = groups([Parameter("0.weight", (20, 784)), Parameter("0.bias", (20,))], "quasi-node", q=98)
    >>> group.name, group.rows, group.n, group.block_sizes
    ('0', 20, 785, [(160, 98), (20, 1)])
    """
    parameters = [parameter for parameter in parameters if parameter.size]
    if not parameters:
        raise InputError("partition: the model has no parameters to record; see include= and exclude=")
    granularity = _granularities(parameters, partition)
    if "quasi-node" in granularity.values():
        if q is None:
            raise InputError('q: the partition "quasi-node" needs q, the number of weights in a block')
        q = integer("q", q, least=1)
    elif q is not None:
        raise InputError(f'q: only the partition "quasi-node" takes q, got q={q} with {partition!r}')
    result, network = [], []
    for name, members in _layers(parameters, granularity):
        kind = granularity[members[0].name]
        if kind == "network":
            network += members
        elif kind == "layer":
            result.append(_flat(name, kind, members))
        else:
            result.append(_rows(name, kind, members, q if kind == "quasi-node" else None))
    if network:
        result.append(_flat("network", "network", network))
    return _distinct(result)


def _distinct(found: list[Group]) -> list[Group]:
    """Groups whose name is empty or taken are called by their first parameter instead."""
    names = [group.name for group in found]
    return [
        replace(group, name=group.pieces[0].parameter.name) if names.count(group.name) > 1 or not group.name else group
        for group in found
    ]


def _granularities(parameters: list[Parameter], partition) -> dict[str, str]:
    """The granularity of every parameter."""
    if not isinstance(partition, Mapping):
        choice("partition", partition, GRANULARITIES)
        return dict.fromkeys((parameter.name for parameter in parameters), partition)
    for value in partition.values():
        choice("partition", value, GRANULARITIES)
    found = {}
    for parameter in parameters:
        pattern = next((p for p in partition if fnmatch.fnmatchcase(parameter.name, p)), None)
        if pattern is None:
            raise InputError(f'partition: no pattern matches {parameter.name!r}; add "*" as the last one')
        found[parameter.name] = partition[pattern]
    for pattern in partition:
        if not any(fnmatch.fnmatchcase(parameter.name, pattern) for parameter in parameters):
            raise InputError(f"partition: the pattern {pattern!r} matches no parameter")
    return found


def _layers(parameters: list[Parameter], granularity: dict[str, str]):
    """Layers as (name, parameters): matrices with their biases, then vectors by module and length."""
    by_name = {parameter.name: parameter for parameter in parameters}
    matrices = [parameter for parameter in parameters if len(parameter.shape) >= 2]
    modules = [_module(parameter.name) for parameter in matrices]
    claimed: set[str] = set()
    layers: dict[str, list[Parameter]] = {}
    for matrix, module in zip(matrices, modules, strict=True):
        members = [matrix]
        leaf = matrix.name.rpartition(".")[2]
        bias = by_name.get(".".join(filter(None, (module, leaf.replace("weight", "bias")))))
        if bias and bias.shape == (matrix.units,) and granularity[bias.name] == granularity[matrix.name]:
            members.append(bias)
        alone = modules.count(module) == 1 and module
        layers[module if alone else matrix.name] = members
        claimed.update(member.name for member in members)
    for vector in parameters:
        if vector.name not in claimed:
            module, kind = _module(vector.name), granularity[vector.name]
            layers.setdefault(f"{module}[{vector.units}, {kind}]", []).append(vector)
    order = {parameter.name: i for i, parameter in enumerate(parameters)}
    for name, members in sorted(layers.items(), key=lambda item: order[item[1][0].name]):
        vectors = members[0].name not in claimed
        yield (_vector_name(members) if vectors else name), members


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _vector_name(members: list[Parameter]) -> str:
    """The module's name for its vectors, or the vector's own where it is alone."""
    return _module(members[0].name) if len(members) > 1 else members[0].name


def _flat(name: str, granularity: str, members: list[Parameter]) -> Group:
    """One row with the members' entries one after another."""
    pieces, start = [], 0
    for member in members:
        pieces.append(Piece(member, start, member.size))
        start += member.size
    return Group(name, granularity, 1, start, tuple(pieces))


def _rows(name: str, granularity: str, members: list[Parameter], q: int | None) -> Group:
    """A row per unit."""
    pieces, start, rows = [], 0, members[0].units
    for member in members:
        pieces.append(Piece(member, start, member.size // rows, rows))
        start += member.size // rows
    return Group(name, granularity, rows, start, tuple(pieces), q)
