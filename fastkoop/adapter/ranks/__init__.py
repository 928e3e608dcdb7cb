"""Blocks spread over ranks: what each rank records of a sharded model, and the little that they tell each other.

A block whose weights lie on one rank is that rank's own business: single weights always, nodes where the model is
sharded along its units, as FSDP2 does. Others - a layer, the network, a node of a matrix that is sharded across its
inputs - are one block whose Gram matrix is a sum over ranks: (m+1)^2 numbers once a fit, or all its snapshots, where
those are fewer bytes. Where a Gram matrix cannot resolve the cutoff, the triangles of the shards' QR decompositions,
or the snapshots, are gathered instead (Demmel, Grigori, Hoemmen & Langou 2012, SIAM J. Sci. Comput. 34, for the
former). Every rank then solves the same small problem, and moves what it holds.
"""

from __future__ import annotations

import contextlib
import pickle
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ... import backends
from ...backends import kernels
from ...checks import InputError
from ...operator import KoopmanOperator
from ...options import Options
from ...partition import Group, Parameter, Piece


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy()) if flat.numel() else 0


class RankError(RuntimeError):
    """Another rank died, or did not answer in the process group's time."""


class Ranks:
    """Ranks that train one model together; `sent` counts the bytes that this one has put into their exchanges."""

    def __init__(self, group):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        self.sent = 0

    @contextlib.contextmanager
    def _exchange(self, what: str):
        try:
            yield
        except RuntimeError as error:  # what Gloo and NCCL raise when a peer is gone, or late
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RankError(
                f"{what}: rank {self.rank} of {self.size} lost the others ({first}); the parameters are as they were "
                "before the call; start all ranks again from their last checkpoint"
            ) from error

    def _everyone(self, what: str, value) -> list:
        """Every rank's value, any that can be pickled."""
        found: list[Any] = [None] * self.size
        with self._exchange(what):
            dist.all_gather_object(found, value, group=self.group)
        self.sent += len(pickle.dumps(value))
        return found

    def agree(self, what: str, **values) -> None:
        """Raise on every rank unless all of them bring the same values.

        Raises:
            ValueError: naming the first value that differs, and the ranks.
            RankError: a rank did not answer.
        """
        found = self._everyone(what, (what, values))
        for name in ("what is called", *values):
            each = [call if name == "what is called" else theirs.get(name) for call, theirs in found]
            if any(value != each[0] for value in each):
                told = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(each))
                raise InputError(f"{what}: expected the same {name} on all ranks, got {told}; every rank has to record "
                                 "and move after the same iterations")  # fmt: skip

    def sum(self, what: str, array: np.ndarray) -> np.ndarray:
        """The sum over ranks, the same bits on each."""
        tensor = torch.from_numpy(np.array(array, np.float64, order="C")).to(self.device)
        with self._exchange(what):
            dist.all_reduce(tensor, group=self.group)
        self.sent += tensor.nbytes
        return tensor.cpu().numpy()

    def gather(self, what: str, array: np.ndarray) -> list[np.ndarray]:
        """Every rank's array (..., k), whose k may differ."""
        *front, own = array.shape
        sizes = self.sum(what, np.bincount([self.rank], [own], self.size)).astype(int)
        padded = torch.zeros(*front, max(int(sizes.max()), 1), dtype=torch.from_numpy(array[:0]).dtype)
        padded[..., :own] = torch.from_numpy(np.ascontiguousarray(array))
        padded = padded.to(self.device)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._exchange(what):
            dist.all_gather(found, padded, group=self.group)
        self.sent += padded.nbytes
        return [part[..., :size].cpu().numpy() for part, size in zip(found, sizes, strict=True)]

    def mean(self, what: str, value: float, failed: str = "") -> float:
        """The mean over ranks; not finite where any is not.

        Raises:
            RankError: another rank says that it failed.
        """
        found = self._everyone(what, (value, failed))
        for rank, (_, error) in enumerate(found):
            if error and rank != self.rank and not failed:
                raise RankError(f"{what}: rank {rank} of {self.size} failed ({error}); the parameters are put back")
        return sum(each for each, _ in found) / self.size

    def first(self, what: str, text: str) -> str:
        """This rank's own text, or else that of the first rank that has any, with its number."""
        found = self._everyone(what, text)
        return text or next((f"rank {rank}: {said}" for rank, said in enumerate(found) if said), "")

    def same_bits(self, what: str, tensors: list[torch.Tensor]) -> None:
        """Rank 0's tensors on every rank, sent only where a checksum of 32 bits differs."""
        found = self.gather(what, np.array([float(checksum(tensor)) for tensor in tensors]))
        if all(np.array_equal(other, found[0]) for other in found):
            return
        with self._exchange(what), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor.data, dist.get_global_rank(self.group, 0), group=self.group)
                self.sent += tensor.nbytes if self.rank == 0 else 0


def ranks_of(model: torch.nn.Module, parameters: Iterable[torch.Tensor], group) -> Ranks | None:
    """Ranks that train a model together: of the group that is given, of its DTensors, or of DistributedDataParallel.

    Raises:
        ValueError: DTensors on a mesh of several axes that is not all ranks, and no group.
    """
    if group is not None:
        return Ranks(group)
    if not (dist.is_available() and dist.is_initialized()):
        return None
    for parameter in parameters:
        if hasattr(parameter, "to_local"):
            mesh = parameter.device_mesh
            if mesh.ndim == 1:
                return Ranks(mesh.get_group())
            if mesh.size() != dist.get_world_size():
                raise InputError(
                    f"process_group: expected one, since the model's mesh {tuple(mesh.shape)} is not all "
                    f"{dist.get_world_size()} ranks; pass the group of those that train it together"
                )
            return Ranks(dist.group.WORLD)
    for module in model.modules():
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            return Ranks(module.process_group)
    return None


class Shard(NamedTuple):
    """A parameter's part on this rank: `length` of `size` from `offset` on along an axis, in a group of ranks."""

    axis: int
    offset: int
    length: int
    size: int
    group: Any


def shard_of(name: str, parameter: torch.Tensor) -> Shard | None:
    """Where a DTensor is sharded; None for a parameter that this rank has whole.

    Raises:
        ValueError: placements other than one plain shard and replicas.
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


def local_parameter(parameter: Parameter, shard: Shard | None) -> Parameter:
    """The same with the shape that this rank has."""
    if shard is None:
        return parameter
    shape = list(parameter.shape)
    shape[shard.axis] = shard.length
    return parameter._replace(shape=tuple(shape))


@dataclass(frozen=True)
class Spread:
    """A group's blocks that are spread over ranks.

    Columns of a local row: first those of shards that have all rows; then those of which each rank has some rows, and
    zeros elsewhere, so that they add up; then those that every rank has, which count as rank 0's.
    """

    ranks: Ranks
    n: int  # weights in a whole block
    cut: int  # columns that add up over ranks
    shared: int  # columns that every rank has


def localized(group: Group, shards: dict[str, Shard | None], ranks=Ranks) -> tuple[Group, Spread | None]:
    """The group as this rank has it, and how its blocks are spread over `ranks(group)`; None where they are not.

    Raises:
        ValueError: quasi-nodes that would be cut.
    """
    found = {piece.parameter.name: shards[piece.parameter.name] for piece in group.pieces}
    if not any(found.values()):
        return group, None
    one = next(shard for shard in found.values() if shard)
    flat = group.granularity in ("layer", "network")
    ranges = {(s.offset, s.length) if s and s.axis == p.parameter.unit_axis else None
              for p, s in zip(group.pieces, found.values(), strict=True)}  # fmt: skip
    if not flat and len(ranges) == 1 and None not in ranges:
        return _rows(group, one), None
    if group.granularity in ("weight", "quasi-node"):
        raise InputError(
            f"partition: {group.name} is not sharded along its units, which would cut its {group.granularity} blocks; "
            'take "node" or "layer" there, or shard it along axis 0'
        )
    return _split(group, found, ranks(one.group), flat)


def _rows(group: Group, shard: Shard) -> Group:
    """The rows of this rank's units."""
    own = shard.length
    pieces = tuple(piece._replace(parameter=_with_units(piece.parameter, own), rows=own) for piece in group.pieces)
    return Group(group.name, group.granularity, shard.length, group.n, pieces, group.q)


def _with_units(parameter: Parameter, units: int) -> Parameter:
    shape = list(parameter.shape)
    shape[parameter.unit_axis] = units
    return parameter._replace(shape=tuple(shape))


def _split(group: Group, shards: dict[str, Shard | None], ranks, flat: bool) -> tuple[Group, Spread]:
    """All rows, with the columns of this rank's shards, those that are cut by rows, and those that every rank has."""

    def kind(piece: Piece) -> int:
        shard = shards[piece.parameter.name]
        return 2 if shard is None else int(not flat and shard.axis == piece.parameter.unit_axis)

    pieces, start, widths = [], 0, [0, 0, 0]
    for piece in sorted(group.pieces, key=kind):
        shard = shards[piece.parameter.name]
        parameter = local_parameter(piece.parameter, shard)
        rows, first = (1, 0) if flat else (group.rows, 0)
        if kind(piece) == 1:
            rows, first = shard.length, shard.offset
        width = piece.width if kind(piece) == 1 else parameter.size // rows
        pieces.append(Piece(parameter, start, width, rows, first))
        start += width
        widths[kind(piece)] += width
    own = Group(group.name, group.granularity, group.rows, start, tuple(pieces), group.q)
    return own, Spread(ranks, group.n, *widths[1:])


def exchange(blocks: int, spread: Spread, snapshots: int, setting: Options, itemsize: int) -> tuple[str, int]:
    """What a fit of so many blocks exchanges, "gram" or "snapshots", whichever is fewer bytes, and how many."""
    numbers = spread.n * (1 + setting.observables.momentum)
    gram, data = 8 * blocks * snapshots**2, itemsize * blocks * snapshots * numbers
    tall = setting.observables.observed.tall(numbers, snapshots)
    return ("gram", gram) if tall and gram < data else ("snapshots", data)


class Together:
    """Operators of blocks that are spread over ranks, from the Gram matrices that all of them sum.

    What `KoopmanOperator` asks for its blocks' other parts: `fitted` and `sum`. Every rank has to call them.
    """

    def __init__(self, spread: Spread, setting: Options, n: int):
        self._spread, self._ranks, self._setting, self._n = spread, spread.ranks, setting, n

    @property
    def owned(self) -> int:
        """Weights of a row that count as this rank's."""
        return self._n - (self._spread.shared if self._ranks.rank else 0)

    def own(self, X: np.ndarray) -> np.ndarray:
        """The columns of X (m+1, rows, numbers) that count as this rank's, velocities after weights."""
        if not self._setting.observables.momentum:
            return X[..., : self.owned]
        return np.concatenate([X[..., : self.owned], X[..., self._n : self._n + self.owned]], axis=-1)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Over ranks."""
        return self._ranks.sum("residual", array)

    def fitted(self, X: np.ndarray) -> backends.observed.Lifted:
        """Operators of whole blocks from this rank's snapshots X (m+1, rows, numbers) and those of the others."""
        observed, own = self._setting.observables.observed, self.own(X)
        numbers = self._spread.n * (1 + self._setting.observables.momentum)
        rule = self._setting.rule(numbers, len(X), X.dtype)
        gains = self._setting.project
        S = np.zeros((X.shape[1], len(X), len(X)))
        if own.shape[-1]:
            S = backends.observed.gram(kernels, own, observed)
        S = self._ranks.sum("fit", S)
        found = backends.observed.from_gram(kernels, S, numbers, observed, rule, X.dtype, gains=gains)
        suspects = backends.observed.unsettled(kernels, found, X.dtype)
        if not len(suspects):
            return found
        stand_in = self._stand_in(own[:, suspects], observed.affine)
        exact = backends.observed.fit(kernels, stand_in, rule, observed, refine=True, gains=gains, dtype=X.dtype)
        return backends.observed.replace(kernels, found, suspects, exact)

    def _stand_in(self, own: np.ndarray, affine: bool) -> np.ndarray:
        """Snapshots (m+1, blocks, k), fewer numbers than the ranks', with the same distances and angles."""
        data = own.astype(np.float64)
        if affine:
            data -= data[len(data) // 2].copy()
        if own.shape[-1] > len(own):
            triangles = [np.linalg.qr(data[:, b].T, mode="r").T for b in range(data.shape[1])]
            data = np.stack(triangles, axis=1)
        parts = self._ranks.gather("fit", data)
        joined = np.concatenate(parts, axis=-1)
        pad = max(0, len(own) + 1 - joined.shape[-1])  # stays tall
        return np.pad(joined, ((0, 0), (0, 0), (0, pad)))


class Gathered:
    """The operator of blocks whose snapshots were fewer bytes than their Gram matrix: gathered, and fitted whole."""

    def __init__(self, operator: KoopmanOperator, columns: torch.Tensor):
        self._operator, self._columns = operator, columns

    def __getattr__(self, name: str):
        return getattr(self._operator, name)

    def released(self) -> Gathered:
        """Itself: what was gathered is in no recording."""
        return self

    def on(self, X) -> Gathered:
        """Itself, likewise."""
        return self

    def predict(self, steps, *, check_finite=None) -> torch.Tensor:
        """This rank's weights of the states."""
        return self._operator.predict(steps, check_finite=check_finite)[..., self._columns]

    def walk(self, *, check_finite=None):
        """A walk along them."""
        return _Walk(self._operator.walk(check_finite=check_finite), self._columns)


class _Walk:
    """A walk of which this rank takes some columns."""

    def __init__(self, walk, columns: torch.Tensor):
        self._walk, self._columns = walk, columns

    def __getattr__(self, name: str):
        return getattr(self._walk, name)

    def step(self, count: int = 1, ahead: int = 1) -> torch.Tensor:
        return self._walk.step(count, ahead)[..., self._columns]


def fit_spread(X: torch.Tensor, n: int, spread: Spread, setting: Options):
    """Operators of a group's blocks, spread over ranks, from this rank's snapshots X (m+1, rows, numbers).

    n: weights of a row on this rank. Every rank calls this, with as many snapshots.

    Raises:
        ValueError: a block that is not finite, on all ranks.
    """
    data = X.cpu().numpy()
    if exchange(data.shape[1], spread, len(data), setting, data.itemsize)[0] == "gram":
        found = KoopmanOperator.over(X, setting, Together(spread, setting, n))
    else:
        whole, columns = gathered(data, n, spread, setting.observables.momentum)
        whole, columns = torch.from_numpy(whole).to(X.device), torch.tensor(columns, dtype=torch.int64, device=X.device)
        found = Gathered(KoopmanOperator.over(whole, setting, None), columns)
    found.check()
    return found


def gathered(data: np.ndarray, n: int, spread: Spread, momentum: bool) -> tuple[np.ndarray, list[int]]:
    """Whole blocks (m+1, rows, n or 2 n) of every rank's part of them, and where this rank's n columns are.

    Velocities come after all weights, as weights do.
    """
    halves = (data[..., :n], data[..., n : 2 * n]) if momentum else (data[..., :n],)
    whole, columns = [], []
    for half in halves:
        parts = spread.ranks.gather("fit", half)
        ends = [part.shape[-1] - spread.cut - spread.shared for part in parts]
        cut = sum(part[..., end : end + spread.cut] for part, end in zip(parts, ends, strict=True))
        shared = parts[0][..., ends[0] + spread.cut :]
        whole += [*(part[..., :end] for part, end in zip(parts, ends, strict=True)), cut, shared]
        first, behind = sum(ends[: spread.ranks.rank]), sum(ends)
        columns = [*range(first, first + ends[spread.ranks.rank]), *range(behind, behind + spread.cut + spread.shared)]
    return np.ascontiguousarray(np.concatenate(whole, axis=-1)), columns
