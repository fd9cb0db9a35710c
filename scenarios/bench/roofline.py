"""Roofline of a training step: what it computes and moves, and how fast this machine could do that.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM 2009.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from scenarios.bench.measurement import Bound, Measurement, in_turn, seconds

_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_TRIAD_BYTES = 3 << 27
"""Of the three vectors together: many times a processor's cache."""
_AUGMENTATION, _OTHER = "augmentation", "loss, pooling, input features"
_KINDS = {
    "convolution": "convolutions, forward",
    "mm": "matrix products",
    "addmm": "matrix products",
    "bmm": "matrix products",
    "convolution_backward": "convolutions, backward",
    "native_batch_norm": "batch norm",
    "native_batch_norm_backward": "batch norm",
    "cudnn_batch_norm": "batch norm",
    "cudnn_batch_norm_backward": "batch norm",
    "relu": "ReLU and shortcuts",
    "relu_": "ReLU and shortcuts",
    "threshold_backward": "ReLU and shortcuts",
    "add": "ReLU and shortcuts",
    "add_": "ReLU and shortcuts",
    "_fused_sgd_": "optimizer",
}
"""By the name of the operation in ATen; everything else but augmentation is ``_OTHER``."""
_NOTHING_MOVED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "as_strided_"}


@dataclass
class Work:
    """What operations of one kind do in a step.

    Attributes
    ----------
    flops : float
        Of convolutions and matrix products; others have next to none.
    size_bytes : float
        All that goes in and comes out of each operation: what memory moves if nothing stays in a cache.
    seconds : float
        Each operation timed by itself.
    """

    flops: float = 0.0
    size_bytes: float = 0.0
    seconds: float = 0.0

    def at_best_s(self, ceilings: Ceilings) -> float:
        """Return the least time that both ceilings allow."""
        return max(self.flops / ceilings.flops_per_s, self.size_bytes / ceilings.bytes_per_s)


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at best, measured.

    Attributes
    ----------
    flops_per_s : float
        Of a large matrix product.
    bytes_per_s : float
        Of a sum of large vectors.
    """

    flops_per_s: float
    bytes_per_s: float


@dataclass
class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation that runs within it: forward, backward and optimizer.

    Attributes
    ----------
    device : torch.device
        Its queue is waited for before a clock is read.
    augmenting : bool
        Whether what runs now is augmentation.
    found : list of (str, Work)
        Kind and work, operation by operation.
    """

    device: torch.device
    augmenting: bool = False
    found: list[tuple[str, Work]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record it unless it only looks at memory in another way."""
        name = func.overloadpacket.__name__
        if func.namespace != "aten" or func.is_view or name in _NOTHING_MOVED:
            return func(*args, **(kwargs or {}))
        out: list[Any] = []
        with FlopCounterMode(display=False) as counter:
            spent = seconds(lambda: out.append(func(*args, **(kwargs or {}))), self.device)
        # What an operation changes in place and does not return, as an optimizer does, is written too.
        returned = tree_leaves(out) or tree_leaves(
            [one for one, argument in zip(args, func._schema.arguments, strict=False) if argument.is_write]
        )
        moved = sum(_bytes(one) for one in (*tree_leaves((args, kwargs)), *returned))
        kind = _AUGMENTATION if self.augmenting else _KINDS.get(name, _OTHER)
        self.found.append((kind, Work(counter.get_total_flops(), moved, spent)))
        return out[0]

    def total(self) -> Work:
        """Add everything up."""
        return _sum([work for _, work in self.found])

    def by_kind(self) -> dict[str, list[Work]]:
        """Sort the operations by kind, in the order in which kinds first appeared."""
        kinds: dict[str, list[Work]] = {}
        for kind, work in self.found:
            kinds.setdefault(kind, []).append(work)
        return kinds


def matrix_product(device: torch.device) -> tuple[Callable[[], object], float, str]:
    """Return a large matrix product in the type that steps compute in, its operations, and a name for it.

    On a processor torch has two libraries for it, one for products and one for convolutions, of which those of 1x1 are
    products too: whichever is faster here, as the first can be slow on processors of another make.
    """
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    side = _MATRIX_SIDE.get(device.type, _MATRIX_SIDE["cpu"])
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    ways: list[Callable[[], object]] = [partial(torch.mm, left, right)]
    if device.type == "cpu":
        pixels = left.T.reshape(1, side, -1, 32).contiguous(memory_format=torch.channels_last)
        ways.append(partial(torch.conv2d, pixels, right.T.reshape(side, side, 1, 1).contiguous()))
    product = min(ways, key=lambda way: min(seconds(way, device) for _ in range(3)))
    name = f"a {str(kind).removeprefix('torch.')} product of {side}x{side} matrices"
    return product, 2 * side**3, name


def measure(
    section: str,
    name: str,
    augment: Callable[[], Tensor],
    step: Callable[[Tensor], object],
    *,
    device: torch.device,
    budget_s: float,
) -> Iterator[Measurement]:
    """Measure a step, and what a large matrix product and a sum of large vectors reach in turn with it.

    Parameters
    ----------
    section, name : str
        Of the rows.
    augment : callable
        Makes a batch of a step.
    step : callable
        Trains on it.
    device : torch.device
    budget_s : float
    """
    step(augment())  # The optimizer's first step has more to do.
    with Operations(device) as operations:
        operations.augmenting = True
        images = augment()
        operations.augmenting = False
        step(images)
    product, product_flops, product_name = matrix_product(device)
    first, second, total = torch.ones(3, _TRIAD_BYTES // 3 // 4, device=device).unbind()
    spent: list[tuple[float, float]] = []

    def reach_ceilings() -> None:
        # In the second call memory is there and the processor's clock is up.
        spent.append((_second_call(product, device), _second_call(lambda: torch.add(first, second, out=total), device)))

    turns = in_turn(lambda: step(augment()), reach_ceilings, budget_s=budget_s, device=device)
    ceilings = [Ceilings(product_flops / matrix, _TRIAD_BYTES / triad) for matrix, triad in spent[1:]]
    yield from _rows(section, name, operations, turns.ours, ceilings, len(images), product_name)


def _second_call(call: Callable[[], object], device: torch.device) -> float:
    call()
    return seconds(call, device)


def _rows(
    section: str,
    name: str,
    operations: Operations,
    steps_s: Sequence[float],
    ceilings: Sequence[Ceilings],
    images: int,
    product: str,
) -> Iterator[Measurement]:
    total, works = operations.total(), [work for _, work in operations.found]
    usual = Ceilings(
        statistics.median(one.flops_per_s for one in ceilings), statistics.median(one.bytes_per_s for one in ceilings)
    )
    details: dict[str, float | str] = {
        "gflop_per_image": total.flops / images / 1e9,
        "mb_per_image": total.size_bytes / images / 1e6,
        "flop_per_byte": total.flops / total.size_bytes,
        "ceiling_gflop_per_s": usual.flops_per_s / 1e9,
        "ceiling_gb_per_s": usual.bytes_per_s / 1e9,
        "ceilings_flop_per_byte": usual.flops_per_s / usual.bytes_per_s,
        "matrix_ceiling_s": total.flops / usual.flops_per_s,
        "memory_ceiling_s": total.size_bytes / usual.bytes_per_s,
        "roof_by_operation_s": sum(work.at_best_s(usual) for work in works),
        "step_s": statistics.median(steps_s),
    }
    roofs = {
        f"roof of a step, {name}": (
            [total.at_best_s(one) for one in ceilings],
            f"the time that {product} and memory allow a whole step",
        ),
        f"roof operation by operation, {name}": (
            [sum(work.at_best_s(one) for work in works) for one in ceilings],
            bound_in_words(works, usual, statistics.median(steps_s)),
        ),
    }
    for title, (at_best_s, against) in roofs.items():
        parts = [best / step for best, step in zip(at_best_s, steps_s, strict=True)]
        yield Measurement(
            section,
            title,
            statistics.median(parts),
            against=against,
            floor=Bound(0.01),
            spread=(min(parts), max(parts)),
            details=details,
        )
    for kind, own in operations.by_kind().items():
        work = _sum(own)
        own_best_s = sum(one.at_best_s(usual) for one in own)
        yield Measurement(
            section,
            f"{kind}, {name}",
            100 * work.seconds / total.seconds,
            "%",
            "all operations of a step, each timed by itself",
            details={
                "operations": len(own),
                "gflop_per_image": work.flops / images / 1e9,
                "mb_per_image": work.size_bytes / images / 1e6,
                "roof_s": own_best_s,
                "measured_s": work.seconds,
                "of_roof": own_best_s / work.seconds,
            },
        )


def bound_in_words(works: Sequence[Work], ceilings: Ceilings, step_s: float) -> str:
    """Say what bounds a step.

    Parameters
    ----------
    works : sequence of Work
        Its operations.
    ceilings : Ceilings
    step_s : float
        What it takes.
    """
    matrix_s = sum(
        work.flops / ceilings.flops_per_s
        for work in works
        if work.flops / ceilings.flops_per_s >= work.size_bytes / ceilings.bytes_per_s
    )
    at_best_s = sum(work.at_best_s(ceilings) for work in works)
    part = matrix_s / at_best_s
    if at_best_s < step_s / 2:
        return "the time that both allow each; neither bounds the step, which takes more than twice as long"
    bound = f"the matrix rate, {part:.0%} of it" if part >= 0.5 else f"memory, {1 - part:.0%} of it"
    return f"the time that both allow each; what bounds it: {bound}"


def _sum(works: Sequence[Work]) -> Work:
    return Work(
        sum(one.flops for one in works), sum(one.size_bytes for one in works), sum(one.seconds for one in works)
    )


def _bytes(value: object) -> int:
    """Return the size of a tensor, no more than its memory: views may repeat parts of it. Others have none."""
    if not isinstance(value, Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
