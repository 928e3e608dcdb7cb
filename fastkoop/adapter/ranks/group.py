"""Ranks: the processes that train one model together, and what they exchange."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ...checks import InputError


class RankError(RuntimeError):
    """Another rank died, or did not answer within the process group's timeout."""


class Ranks:
    """Ranks that train one model together; `sent` counts the bytes that this rank has put into their exchanges."""

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
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RankError(
                f"{what}: rank {self.rank} of {self.size} lost the others ({reason}); the parameters are as they were "
                "before the call; start all ranks again from their last checkpoint"
            ) from error

    def _from_all(self, what: str, value) -> list:
        """Every rank's value, anything that can be pickled."""
        values: list[Any] = [None] * self.size
        with self._exchange(what):
            dist.all_gather_object(values, value, group=self.group)
        self.sent += len(pickle.dumps(value))
        return values

    def agree(self, what: str, refused: str = "", setup: Mapping[str, str] | None = None, **values) -> None:
        """Raise on every rank unless all of them pass the same setup and values, and none refuses.

        Args:
            what: the call that ranks have to make together.
            refused: why this rank cannot take part; the others hear of it.
            setup: what ranks made their phases of, by name; exchanged whole only where its digest differs.
            values: where ranks stand.

        Raises:
            ValueError: naming the rank that refuses, or the first name that differs with every rank's value.
            RankError: a rank did not answer.
        """
        setup = dict(setup or {})
        key = hashlib.sha256(repr(setup).encode()).hexdigest()
        calls = self._from_all(what, (refused, key, {"call": what, **values}))
        if any(other != key for _, other, _ in calls):
            self._same(what, self._from_all(what, setup), "make model and phase alike on every rank")
        for rank, (reason, _, _) in enumerate(calls):
            if reason:
                raise InputError(refused or f"{what}: rank {rank} of {self.size} refuses ({reason})")
        self._same(
            what, [theirs for _, _, theirs in calls], "every rank has to record and move after the same iterations"
        )

    def _same(self, what: str, answers: list[dict], cure: str) -> None:
        for name in dict.fromkeys(name for theirs in answers for name in theirs):
            listed = [str(theirs.get(name, "none")) for theirs in answers]
            if any(text != listed[0] for text in listed):
                got = ", ".join(f"rank {rank}: {text}" for rank, text in enumerate(listed))
                raise InputError(f"{what}: expected the same {name} on all ranks, got {got}; {cure}")

    def sum(self, what: str, array: np.ndarray) -> np.ndarray:
        """The sum over ranks, the same bits on each."""
        tensor = torch.from_numpy(np.array(array, np.float64, order="C")).to(self.device)
        with self._exchange(what):
            dist.all_reduce(tensor, group=self.group)
        self.sent += tensor.nbytes
        return tensor.cpu().numpy()

    def gather(self, what: str, array: np.ndarray) -> list[np.ndarray]:
        """Every rank's array (..., k), whose k may differ."""
        *front, length = array.shape
        lengths = self.sum(what, np.bincount([self.rank], [length], self.size)).astype(int)
        padded = torch.zeros(*front, max(int(lengths.max()), 1), dtype=torch.from_numpy(array[:0]).dtype)
        padded[..., :length] = torch.from_numpy(np.ascontiguousarray(array))
        padded = padded.to(self.device)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with self._exchange(what):
            dist.all_gather(parts, padded, group=self.group)
        self.sent += padded.nbytes
        return [part[..., :length].cpu().numpy() for part, length in zip(parts, lengths, strict=True)]

    def mean(self, what: str, value: float, failed: str = "") -> float:
        """The mean over ranks; not finite where any value is not.

        Raises:
            RankError: another rank reports a failure.
        """
        answers = self._from_all(what, (value, failed))
        for rank, (_, error) in enumerate(answers):
            if error and rank != self.rank and not failed:
                raise RankError(f"{what}: rank {rank} of {self.size} failed ({error}); the parameters are put back")
        return sum(answer for answer, _ in answers) / self.size

    def first(self, what: str, text: str) -> str:
        """This rank's text, else that of the first rank that has any, with its number."""
        texts = self._from_all(what, text)
        return text or next((f"rank {rank}: {theirs}" for rank, theirs in enumerate(texts) if theirs), "")

    def same_bits(self, what: str, tensors: list[torch.Tensor]) -> None:
        """Rank 0's tensors on every rank, sent only where a 32-bit checksum differs."""
        sums = self.gather(what, np.array([float(crc32(tensor)) for tensor in tensors]))
        if all(np.array_equal(theirs, sums[0]) for theirs in sums):
            return
        with self._exchange(what), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor.data, dist.get_global_rank(self.group, 0), group=self.group)
                self.sent += tensor.nbytes if self.rank == 0 else 0


def crc32(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy()) if flat.numel() else 0


def ranks_of(model: torch.nn.Module, parameters: Iterable[torch.Tensor], group) -> Ranks | None:
    """Ranks that train a model together: the given group, that of its DTensors, or DistributedDataParallel's.

    Raises:
        ValueError: DTensors on a mesh of several axes that does not span all ranks, and no group.
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
                    f"process_group: expected a group, since the model's mesh {tuple(mesh.shape)} does not span all "
                    f"{dist.get_world_size()} ranks; pass the group of the ranks that train it together"
                )
            return Ranks(dist.group.WORLD)
    for module in model.modules():
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            return Ranks(module.process_group)
    return None
