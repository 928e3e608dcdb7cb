"""Shards: which part of every parameter and block this rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...checks import InputError
from ...partition import Group, Parameter, Piece
from .group import Ranks


class Shard(NamedTuple):
    """A parameter's part on this rank: `length` of `size` entries from `offset` on along an axis, in a group."""

    axis: int
    offset: int
    length: int
    size: int
    group: Any


def shard_of(name: str, parameter: torch.Tensor) -> Shard | None:
    """Where a DTensor is sharded; None for a parameter that this rank holds whole.

    Raises:
        ValueError: placements other than one plain shard and replicas, by the parameter's name.
    """
    if not hasattr(parameter, "to_local"):
        return None
    placements = parameter.placements
    sharded = [k for k, placement in enumerate(placements) if not placement.is_replicate()]
    if not sharded:
        return None
    if len(sharded) > 1 or type(placements[sharded[0]]).__name__ != "Shard":
        raise InputError(
            f"model: expected {name} replicated or sharded along one axis, got placements {tuple(placements)}; leave "
            "it out with exclude="
        )
    [k] = sharded
    axis, mesh = placements[k].dim, parameter.device_mesh
    size, ranks = parameter.shape[axis], mesh.size(k)
    chunk = -(-size // ranks)
    offset = min(chunk * mesh.get_local_rank(k), size)
    length = min(chunk, size - offset)
    if parameter.to_local().shape[axis] != length:
        raise InputError(
            f"model: expected {length} of {name}'s {size} entries along axis {axis} on this rank, got "
            f"{parameter.to_local().shape[axis]}; leave it out with exclude="
        )
    return Shard(axis, offset, length, size, mesh.get_group(k))


@dataclass(frozen=True)
class Spread:
    """How a group's blocks are spread over ranks.

    Columns of a local row: first those of shards that have all rows; then those of which each rank has some rows, and
    zeros elsewhere, so that they add up; then those that every rank has, which count as rank 0's.
    """

    ranks: Ranks
    n: int  # weights in a whole block
    cut: int  # columns that add up over ranks
    shared: int  # columns that every rank has


def localized(group: Group, shards: dict[str, Shard | None], ranks=Ranks) -> tuple[Group, Spread | None]:
    """The group as this rank holds it, and how its blocks are spread over `ranks(group)`; None where they are not.

    Raises:
        ValueError: quasi-nodes that would be cut.
    """
    by_name = {piece.parameter.name: shards[piece.parameter.name] for piece in group.pieces}
    if not any(by_name.values()):
        return group, None
    sample = next(shard for shard in by_name.values() if shard)
    flat = group.granularity in ("layer", "network")
    ranges = {(s.offset, s.length) if s and s.axis == p.parameter.unit_axis else None
              for p, s in zip(group.pieces, by_name.values(), strict=True)}  # fmt: skip
    if not flat and len(ranges) == 1 and None not in ranges:
        return _whole_rows(group, sample), None
    if group.granularity in ("weight", "quasi-node"):
        raise InputError(
            f"partition: {group.name} is not sharded along its units, which would cut its {group.granularity} blocks; "
            'take "node" or "layer" there, or shard it along axis 0'
        )
    return _cut(group, by_name, ranks(sample.group), flat)


def _whole_rows(group: Group, shard: Shard) -> Group:
    """The rows of this rank's units."""
    units = shard.length
    pieces = tuple(
        piece._replace(parameter=_resized(piece.parameter, piece.parameter.unit_axis, units), rows=units)
        for piece in group.pieces
    )
    return Group(group.name, group.granularity, units, group.n, pieces, group.q)


def _resized(parameter: Parameter, axis: int, length: int) -> Parameter:
    shape = list(parameter.shape)
    shape[axis] = length
    return parameter._replace(shape=tuple(shape))


def _cut(group: Group, shards: dict[str, Shard | None], ranks, flat: bool) -> tuple[Group, Spread]:
    """All rows, with the columns of this rank's shards, those that are cut by rows, and those that every rank has."""

    def kind(piece: Piece) -> int:
        shard = shards[piece.parameter.name]
        return 2 if shard is None else int(not flat and shard.axis == piece.parameter.unit_axis)

    pieces, start, widths = [], 0, [0, 0, 0]
    for piece in sorted(group.pieces, key=kind):
        shard = shards[piece.parameter.name]
        parameter = piece.parameter if shard is None else _resized(piece.parameter, shard.axis, shard.length)
        rows, first = (1, 0) if flat else (group.rows, 0)
        if kind(piece) == 1:
            rows, first = shard.length, shard.offset
        width = piece.width if kind(piece) == 1 else parameter.size // rows
        pieces.append(Piece(parameter, start, width, rows, first))
        start += width
        widths[kind(piece)] += width
    local = Group(group.name, group.granularity, group.rows, start, tuple(pieces), group.q)
    return local, Spread(ranks, group.n, *widths[1:])
