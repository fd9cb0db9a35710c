"""Images of one class are told apart: gates open for those that are brighter than a threshold, each from its own.

The attack of Fowl et al. (Robbing the Fed, ICLR 2022), built from what a wide ResNet-18 has. The image is carried to
the second convolution of the fourth stage, where 8x8 neighbouring pixels lie in as many maps and a 3x3 window sees
24x24 pixels. Every map of that convolution's output is made a gate. All gates of one window compute the same measure of
the image, at one position alone, which zero padding tells from others, and ReLU opens each from a threshold of its own
on. Behind it nothing but the last layer follows, with weights so small that predictions stay as they are. So the
gradient of a gate's weights is the sum of the images that opened it, times factors that depend on labels alone; the
gradient of its bias is the sum of these factors; and what two neighbouring gates differ by is what lies in between: in
one bin. One image in a bin is read by division.

There are three measures for each window, brightness and its slope both ways, and each has bins of its own. An image
that is alone in a bin of one is subtracted from its bins of the others, which may leave another alone there (as in
Goodrich and Mitzenmacher, Invertible Bloom lookup tables, Allerton 2011). So nearly every image comes out, whatever the
labels, while there are fewer than about 0.8 for each bin of a window. More images need fewer windows, which see less of
each.

Batch norm with a batch's own statistics takes from each image's part the mean over all positions and images. Gates in
two corners, where the window hangs over, read that mean by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ppfed.attacks.sent.carried import (
    LIFT,
    ReadImages,
    Seen,
    before_batch_norm,
    blocks_of,
    can_carry,
    carriers_to_third_stage,
    carry_image,
    pixels_of,
    running_statistics,
    seen_by_layers,
    unpacked,
    unshuffle,
)
from ppfed.images.types import UInt8Array
from ppfed.networks.classifier import BasicBlock, ImageClassifier, build_network
from ppfed.networks.config import NetworkConfig
from ppfed.training.gradients import Moments
from ppfed.training.settings import BatchNormMode

_TRAP = "resnet.layer4.0.conv2.weight"
_FACTORS = "resnet.layer4.0.downsample.1.bias"
"""The shortcut's batch norm adds its bias to the gates. It is zero at first, as the trap's weights for the image are:
an update shows both with every digit of float32."""
_STEP = 8
"""Pixels from one position of the trap to the next, both ways."""
_MOST_POSITIONS = 4
"""Both ways: more are not told from one another by a single layer's padding."""
_MEASURES = torch.tensor(
    [
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
        [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]],
        [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
    ]
)
"""Weights of 4x4 pixels each: brightness, and its slope to the right and downwards."""
_CODES = 3
"""Maps that tell positions apart: a constant, what is not the first row, and what is not the first column."""
_CODE_BIAS = 0.9
"""Of the latter two: ReLU makes zero of what is below their mean."""
_POSITION = 16.0
"""By so much, in deviations of a measure, is a gate shut at any other row or column than its own."""
_ALWAYS = -LIFT - 1
"""A threshold below all: what carries a measure is cut off at ``LIFT`` deviations."""
_GAIN = 5e-3
"""From the trap's convolution to its gates. Small, so that what an owner's step adds to the trap's weights hardly moves
the gates in the steps that follow."""
_TINY = 1e-6
"""Of the trap's weights. What comes out of it varies far less than the constant that batch norm adds to a variance, so
that batch norm takes a mean from it and leaves it as it is otherwise."""
_UNIT = _TINY * _GAIN
"""A standard deviation of a measure, at a gate."""
_DRIVE = 0.2
"""Weights of the last layer in such units."""
_LOAD = 0.7
"""Images for each bin up to which nearly all come out."""
_SURE = 2e-3
_SLACK = ((_SURE, 0.0), (0.1, 0.05))
"""Parts of the largest factor by which the factors of a bin may differ from those of one image, and deviations by which
its measure may lie outside the bin: in float32, and then for owners whose numbers have 8 bits."""
_SAME = 0.1
"""Deviations by which two windows' views of one image may differ on average."""
_SPREAD, _REACH = 0.45, 6.0
"""Shared batch norm: deviation of 4x4 pixels' mean over images in units of features, and how many such blocks away its
correlation falls to 1/e. Photographs are about like this, and thresholds need no more."""


@dataclass(frozen=True)
class Bins:
    """Which gates there are.

    Attributes
    ----------
    rows, columns : int
        Positions of the trap.
    windows : tuple of (row, column)
        Where images are read; each sees 24x24 pixels.
    thresholds : tuple of float
        Of each measure, ascending, in its standard deviations.
    """

    rows: int
    columns: int
    windows: tuple[tuple[int, int], ...]
    thresholds: tuple[float, ...]

    @property
    def gates(self) -> list[tuple[tuple[int, int], int, float]]:
        """Position, measure and threshold of each gate: those in two corners, then window by window."""
        corners = ((0, 0), (self.rows - 1, self.columns - 1))
        measures = range(len(_MEASURES))
        return [
            *((corner, 0, _ALWAYS) for corner in corners),
            *((corner, one, 0.0) for corner in corners for one in measures),
            *(
                gate
                for window in self.windows
                for gate in (
                    (window, 0, _ALWAYS),
                    *((window, one, threshold) for one in measures for threshold in self.thresholds),
                )
            ),
        ]

    @property
    def first(self) -> int:
        """Number of the first gate of the first window."""
        return 2 * (1 + len(_MEASURES))

    @property
    def per_window(self) -> int:
        """Gates of a window."""
        return 1 + len(_MEASURES) * len(self.thresholds)

    @property
    def most(self) -> int:
        """So many images are nearly all told apart."""
        return int(_LOAD * len(_MEASURES) * (len(self.thresholds) + 1))


def bins_for(config: NetworkConfig, images: int) -> Bins | None:
    """Choose gates for a batch of so many images: as many windows as leave enough bins.

    Returns
    -------
    Bins or None
        None if the network is too narrow for so many images, images are larger than 32 or smaller than 9 pixels, or no
        weights are known that carry them.
    """
    maps = 8 * config.base_maps
    rows, columns = (-(-side // _STEP) for side in (config.height, config.width))
    if (
        not can_carry(config)
        or not 2 <= min(rows, columns) <= max(rows, columns) <= _MOST_POSITIONS
        # One constant in the third stage; measures and codes in the fourth.
        or 4 * config.base_maps <= 16 * config.channels
        or maps < _STEP**2 * config.channels + len(_MEASURES) + _CODES
    ):
        return None
    for windows in _coverings(rows, columns):
        thresholds = _thresholds(maps, len(windows))
        quantiles = torch.arange(1, thresholds + 1, dtype=torch.float64) / (thresholds + 1)
        found = Bins(rows, columns, windows, tuple(torch.special.ndtri(quantiles).tolist()))
        if images <= found.most:
            return found
    return None


def bins_of_brightest(config: NetworkConfig, part: float) -> Bins:
    """Choose gates of one window for the brightest images of very many, and for the steepest of both slopes.

    An owner that adds up a whole pass has too many images for a bin each. But thresholds may lie anywhere.

    Parameters
    ----------
    config : NetworkConfig
        One for which ``bins_for`` finds any.
    part : float
        Of all images that lie above the lowest threshold of each measure, 0 to 1.

    Raises
    ------
    ValueError
        If it finds none.
    """
    every = bins_for(config, 1)
    if every is None:
        raise ValueError("no gates are known for this network")
    thresholds = _thresholds(8 * config.base_maps, 1)
    quantiles = 1 - part * torch.arange(thresholds, 0, -1, dtype=torch.float64) / (thresholds + 1)
    return Bins(every.rows, every.columns, every.windows[:1], tuple(torch.special.ndtri(quantiles).tolist()))


def network_with_bins(config: NetworkConfig, bins: Bins, seed: int) -> ImageClassifier:
    """Choose weights that make gates of the fourth stage's second convolution.

    Parameters
    ----------
    config : NetworkConfig
    bins : Bins
        From ``bins_for``.
    seed : int
        Of weights that play no part.
    """
    network = build_network(config, seed)
    block = blocks_of(network)[6]
    carried = 16 * config.channels
    with torch.no_grad():
        # All that is not said otherwise is a constant: zero.
        for layer in network.resnet.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
        carry_image(network)
        blocks_of(network)[5].bn2.bias[carried] = 1.0
        _set_measures(block, config.channels, bins)
        _set_gates(block, config.channels, bins)
        # Else an owner's step would teach the shortcut's convolution, too, and move the gates much farther.
        for norm in (_shortcut_norm(block), blocks_of(network)[7].bn2):
            nn.init.zeros_(norm.weight)
        # Whatever steps take from it, it stays open behind the gates.
        nn.init.constant_(blocks_of(network)[7].bn2.bias, _UNIT / 10)
        last = network.resnet.fc
        nn.init.zeros_(last.bias)
        last.weight.copy_((_UNIT * _DRIVE * _factors(config.classes)).unsqueeze(1).expand_as(last.weight))
    return network


def read_bins(
    network: ImageClassifier,
    bins: Bins,
    gradient: Mapping[str, Tensor],
    moments: Moments,
    labels: Tensor,
    shape: tuple[int, int, int, int],
    *,
    batch_norm: BatchNormMode = BatchNormMode.LOCAL,
    label_smoothing: float = 0.0,
) -> ReadImages:
    """Read the images of a batch off the gradient of its mean loss.

    Parameters
    ----------
    network : ImageClassifier
        From ``network_with_bins``, on the CPU.
    bins : Bins
    gradient : mapping of str to float tensor
        By parameter.
    moments : Moments
        What batch norm saw of the batch.
    labels : int64 tensor, (N,)
    shape : (N, height, width, channels)
    batch_norm : BatchNormMode
        What the owner's batch norm normalised with.
    label_smoothing : float
        Of the owner's loss.

    Returns
    -------
    ReadImages
        Images that were not read, and what no window saw of the others, are the mean of those that were.
    """
    block = blocks_of(network)[6]
    seen = seen_by_layers(network, moments, batch_norm)
    sums, factors = _sums(block, gradient, seen, shape[3])
    mean = _mean_window(bins, sums, factors) if batch_norm is BatchNormMode.LOCAL else torch.zeros_like(sums[0])
    classes, counts = torch.unique(labels.cpu(), return_counts=True)
    known = {
        int(one): factor
        for one, factor in zip(
            classes,
            _factors_of_labels(network.resnet.fc, label_smoothing)[classes] / (shape[0] * bins.rows * bins.columns),
            strict=True,
        )
    }
    pieces = []
    for number, window in enumerate(bins.windows):
        own = slice(bins.first + number * bins.per_window, bins.first + (number + 1) * bins.per_window)
        measure = _Measure(block, seen, window, shape)
        told = _told_apart(
            *_bins(bins, sums[own], factors[own]),
            mean,
            known,
            dict(zip(classes.tolist(), counts.tolist(), strict=True)),
            bins.thresholds,
            measure,
        )
        pieces.append(list(told))
    deviations = _put_together(bins, pieces, labels.cpu(), _STEP**2 * shape[3])
    carriers = [*carriers_to_third_stage(network), (block.bn1, _STEP**2 * shape[3])]
    features = unpacked(carriers, deviations, seen, (shape[1], shape[2]))
    return ReadImages(pixels_of(network.config.features, features), labels.cpu().numpy())


def windows_of_pass(
    network: ImageClassifier,
    bins: Bins,
    change: Mapping[str, Tensor],
    moments: Moments,
    shape: tuple[int, int, int],
) -> UInt8Array:
    """Read each bin of an update over many steps as if one image lay in it.

    How much an image weighs depends on the step it was in, but what it adds to a gate's weights and to its bias it adds
    in the same proportion. Where two lay in a bin, they come out one over the other.

    Parameters
    ----------
    network : ImageClassifier
        From ``network_with_bins``, on the CPU.
    bins : Bins
        From ``bins_of_brightest``.
    change : mapping of str to float tensor
        Weights that the owner got less those that it sent back.
    moments : Moments
        ``moments_of_update``: batches differ little in them.
    shape : (height, width, channels)

    Returns
    -------
    uint8 array, (n, 24, 24, C) or less where images are smaller
        What the upper left window showed, of every bin with anything in it.
    """
    height, width, channels = shape
    block = blocks_of(network)[6]
    seen = seen_by_layers(network, moments, BatchNormMode.LOCAL)
    sums, factors = _sums(block, change, seen, channels)
    mean = _mean_window(bins, sums, factors)
    own = slice(bins.first, bins.first + bins.per_window)
    sums, factors = _bins(bins, sums[own], factors[own])
    # All that is below the lowest threshold is in the first.
    sums, factors = sums[:, 1:].flatten(0, 1), factors[:, 1:].flatten()
    full = factors.abs() > _SURE * factors.abs().max()
    (window,) = bins.windows
    placed = [
        _placed(bins, window, piece / factor + mean - LIFT).nan_to_num()
        for piece, factor in zip(sums[full], factors[full], strict=True)
    ]
    if not placed:
        return np.zeros((0, min(height, 24), min(width, 24), channels), np.uint8)
    carriers = [*carriers_to_third_stage(network), (block.bn1, _STEP**2 * channels)]
    features = unpacked(carriers, torch.stack(placed), seen, (height, width))
    return pixels_of(network.config.features, features)[:, :24, :24]


def _thresholds(maps: int, windows: int) -> int:
    """Count the thresholds of each measure, of so many maps."""
    return (maps - 2 * (1 + len(_MEASURES)) - windows) // (windows * len(_MEASURES))


def _coverings(rows: int, columns: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """List windows: all that it takes to see everything, two that see all but two corners, and one."""
    down, right = ((1, 2) if positions == _MOST_POSITIONS else (1,) for positions in (rows, columns))
    every = tuple((row, column) for row in down for column in right)
    yield every
    if len(every) > 2:
        yield every[0], every[-1]
    if len(every) > 1:
        yield every[:1]


def _set_measures(block: BasicBlock, channels: int, bins: Bins) -> None:
    """Put image, measures and codes into the maps between the block's convolutions."""
    coming, carried = 16 * channels, 64 * channels
    layer, norm = block.conv1, block.bn1
    unshuffle(layer, carried)
    mean, variance = running_statistics(norm)
    norm.bias[:carried] = LIFT
    mean[:carried] = LIFT
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    alike = (_SPREAD * coming) ** 2 * torch.exp(-torch.cdist(places, places) / _REACH)
    for number, weights in enumerate(_MEASURES, carried):
        layer.weight[number, :coming] = weights
        # Padding has no lift: with the constant it counts as an image of mean brightness.
        layer.weight[number, coming] = -LIFT * coming * weights
        norm.bias[number] = LIFT
        mean[number], variance[number] = 0.0, weights.flatten() @ alike @ weights.flatten()
    constant = carried + len(_MEASURES)
    norm.bias[constant] = 1.0
    for number, (tap, positions) in enumerate((((0, 1), bins.rows), ((1, 0), bins.columns)), constant + 1):
        layer.weight[number, coming, tap[0], tap[1]] = 1.0
        norm.bias[number] = _CODE_BIAS
        part = 1 - 1 / positions
        mean[number], variance[number] = part, part * (1 - part)


def _set_gates(block: BasicBlock, channels: int, bins: Bins) -> None:
    """Make gates of the maps behind the block's second convolution."""
    layer, norm = block.conv2, block.bn2
    first = 64 * channels
    constant = first + len(_MEASURES)
    mean, variance = running_statistics(norm)
    # In the mean over positions, a row's code is 1 at one row of all.
    codes = 1 / bins.rows + 1 / bins.columns
    nn.init.constant_(norm.weight, _GAIN * math.sqrt(norm.eps))
    nn.init.constant_(norm.bias, -1.0)
    variance.zero_()
    for number, ((row, column), measure, threshold) in enumerate(bins.gates):
        layer.weight[number, first + measure, 1, 1] = _TINY
        for which, tap, value in _code(row, bins.rows, norm.eps):
            layer.weight[number, constant + which, tap, 1] += _TINY * _POSITION * value
        for which, tap, value in _code(column, bins.columns, norm.eps):
            layer.weight[number, constant + 2 * which, 1, tap] += _TINY * _POSITION * value
        # At its own position a gate sees a small number: one that computes in bfloat16 would lose a large one's digits.
        layer.weight[number, constant, 1, 1] -= _TINY * (LIFT + 2 * _POSITION)
        mean[number] = _TINY * _POSITION * (codes - 2)
        norm.bias[number] = -_UNIT * (threshold + _POSITION * (2 - codes))


def _shortcut_norm(block: BasicBlock) -> nn.BatchNorm2d:
    """Find the batch norm on the shortcut of a stage's first block."""
    if block.downsample is None or not isinstance(norm := block.downsample[-1], nn.BatchNorm2d):
        raise AssertionError("the first block of a stage has a shortcut with batch norm")
    return norm


def _code(place: int, places: int, eps: float) -> list[tuple[int, int, float]]:
    """Write the indicator of a row, or column, as code map (0 the constant, 1 the other), tap and weight.

    With zeros outside, the constant is 1 everywhere, and the other map is 1, times ``high``, but for the first place.
    """
    part = 1 - 1 / places
    high = (1 - part) / math.sqrt(part * (1 - part) + eps) + _CODE_BIAS
    if place == 0:
        return [(0, 1, 1.0), (0, 0, -1.0)]
    if place == places - 1:
        return [(0, 1, 1.0), (0, 2, -1.0)]
    if place == 1:
        return [(1, 1, 1 / high), (1, 0, -1 / high)]
    # The last but one of four: from the third on, less the last.
    return [(1, 0, 1 / high), (0, 1, -1.0), (0, 2, 1.0)]


def _factors(classes: int) -> Tensor:
    """Choose what each class weighs in the last layer: 1 to 2 either way, so that two images rarely weigh as one."""
    number = torch.arange(classes, dtype=torch.float64)
    golden = (math.sqrt(5) - 1) / 2
    return (1 + number * golden % 1) * (-1) ** number


def _factors_of_labels(last: nn.Linear, label_smoothing: float) -> Tensor:
    """Compute the gradient of an image's loss by the sum of all gates, over positions, for each label: (classes,)."""
    weights = last.weight[:, 0].detach().double()
    wanted = (1 - label_smoothing) * weights + label_smoothing * weights.mean()
    return last.bias.detach().double().softmax(0) @ weights - wanted


def _sums(block: BasicBlock, gradient: Mapping[str, Tensor], seen: Seen, channels: int) -> tuple[Tensor, Tensor]:
    """Sum up what opened each gate: factor times (window less mean), (gates, 64 C, 3, 3), and factors, (gates,)."""
    norm = block.bn2
    scale = norm.weight.detach().double() / (seen[norm][1].double() + norm.eps).sqrt()
    weights = gradient[_TRAP][:, : 64 * channels].cpu().double()
    return weights / scale[:, None, None, None], gradient[_FACTORS].cpu().double()


def _mean_window(bins: Bins, sums: Tensor, factors: Tensor) -> Tensor:
    """Read what batch norm took from each window, (64 C, 3, 3).

    Outside there is zero, so that there a gate in a corner tells it alone. The tap in the middle is never outside, but
    meets all positions once, and their mean is the lift.
    """
    mean = torch.full_like(sums[0], LIFT)
    corners = bins.gates[: bins.first]
    for down, right in ((0, 0), (-1, -1)):
        corner = (down % bins.rows, right % bins.columns)
        # Of labels that balance one another the factors of all images add up to nothing; those of a part will not.
        own = max(
            (number for number, (place, _, _) in enumerate(corners) if place == corner),
            key=lambda number: float(factors[number].abs()),
        )
        read = -sums[own] / factors[own]
        mean[:, down] = read[:, down]
        mean[:, :, right] = read[:, :, right]
    return mean


def _bins(bins: Bins, sums: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract neighbouring gates of a window: (measures, bins, 64 C, 3, 3) and (measures, bins)."""
    found = []
    for values in (sums, factors):
        above = values[1:].reshape(len(_MEASURES), len(bins.thresholds), *values.shape[1:])
        all_open = values[0].expand(len(_MEASURES), 1, *values.shape[1:])
        none = torch.zeros_like(all_open)
        found.append(torch.cat([all_open, above], 1) - torch.cat([above, none], 1))
    return found[0], found[1]


class _Measure:
    """Computes the measures of what a window showed."""

    def __init__(
        self, block: BasicBlock, seen: Seen, window: tuple[int, int], shape: tuple[int, int, int, int]
    ) -> None:
        self._norm, self._seen = block.bn1, seen
        self._carried, self._coming = 64 * shape[3], 16 * shape[3]
        sides = [-(-side // 4) for side in shape[1:3]]
        down, right = (
            torch.tensor([2 * place - 1 + tap < side for tap in range(3)]).double()
            for place, side in zip(window, sides, strict=True)
        )
        self._inside = down[:, None] * right

    def __call__(self, piece: Tensor) -> Tensor:
        """(64 C, 3, 3), less the lift, to (measures,)."""
        before = before_batch_norm(self._norm, piece.unsqueeze(0), self._seen)
        fine = nn.functional.pixel_shuffle(before, 2)[0, :, 1:4, 1:4].sum(0) - LIFT * self._coming
        own = slice(self._carried, self._carried + len(_MEASURES))
        mean, variance = (values[own].double() for values in self._seen[self._norm])
        found = (_MEASURES.double() * fine * self._inside).sum((1, 2))
        return (found - mean) / (variance + self._norm.eps).sqrt()


def _told_apart(
    sums: Tensor,
    factors: Tensor,
    mean: Tensor,
    known: Mapping[int, Tensor],
    counts: dict[int, int],
    thresholds: tuple[float, ...],
    measure: _Measure,
) -> Iterator[tuple[int, Tensor]]:
    """Take one image after another that is alone in a bin, and subtract it from its other bins.

    Parameters
    ----------
    sums : float64 tensor, (measures, bins, 64 C, 3, 3)
        Changed.
    factors : float64 tensor, (measures, bins)
        Changed.
    mean : float64 tensor, (64 C, 3, 3)
    known : mapping of int to float64 tensor
        Factor of each label.
    counts : dict of int to int
        Images of each label; changed.
    thresholds : tuple of float
    measure : _Measure

    Yields
    ------
    int
        The label.
    float64 tensor, (64 C, 3, 3)
        What the window showed, less the lift.
    """
    edges = torch.tensor(thresholds, dtype=torch.float64)
    largest = max(float(factor.abs()) for factor in known.values())
    for sure, near in _SLACK:
        going = True
        while going:
            going = False
            for which, number in torch.nonzero(factors.abs() > largest * sure).tolist():
                label = min(known, key=lambda one: abs(float(factors[which, number] - known[one])))
                factor = known[label]
                if not counts[label] or abs(float(factors[which, number] - factor)) > largest * sure:
                    continue
                piece = sums[which, number] / factor + mean - LIFT
                found = measure(piece)
                low, likely, high = (torch.searchsorted(edges, found + step) for step in (-near, 0.0, near))
                # Several that weigh as much as one would look like an image of some other bin.
                if not low[which] <= number <= high[which]:
                    continue
                for one in range(len(sums)):
                    own = number
                    if one != which:
                        own = _fuller(factors[one], int(low[one]), int(likely[one]), int(high[one]), factor)
                    sums[one, own] -= factor * (piece + LIFT - mean)
                    factors[one, own] -= factor
                counts[label] -= 1
                going = True
                yield label, piece


def _fuller(factors: Tensor, low: int, likely: int, high: int, factor: Tensor) -> int:
    """Choose a bin from low to high, near whose edges an image is: the likely one, unless another has more of it."""
    some = factors[low : high + 1]
    shrunk = some.abs() - (some - factor).abs()
    shrunk[likely - low] += factor.abs() / 2
    return low + int(shrunk.argmax())


def _put_together(bins: Bins, pieces: Sequence[Sequence[tuple[int, Tensor]]], labels: Tensor, maps: int) -> Tensor:
    """Join what windows showed of the same image, of which all see the middle: (N, maps, rows, columns).

    Nothing tells an image from others of its label, so that each gets the first place left of that label. What was not
    seen is the mean of what was, and zero where nothing was: the mean of the map.
    """
    middle = tuple(slice(max(places) - 1, min(places) + 2) for places in zip(*bins.windows, strict=True))
    images: list[tuple[int, list[Tensor]]] = []
    for window, some in zip(bins.windows, pieces, strict=True):
        free = list(range(len(images)))
        for label, piece in some:
            view = _placed(bins, window, piece)
            away = {
                one: float((images[one][1][0][:, *middle] - view[:, *middle]).abs().mean())
                for one in free
                if images[one][0] == label
            }
            nearest = min(away, key=away.__getitem__, default=None)
            if nearest is not None and away[nearest] < _SAME:
                images[nearest][1].append(view)
                free.remove(nearest)
            else:
                images.append((label, [view]))
    # Those that more windows saw come first.
    images.sort(key=lambda image: -len(image[1]))
    whole = [torch.stack(views).nanmean(0) for _, views in images]
    mean = torch.stack(whole).nanmean(0).nan_to_num() if whole else labels.new_zeros(1).double()
    joined = mean.expand(len(labels), maps, bins.rows, bins.columns).clone()
    left = labels.tolist()
    for (label, _), image in zip(images, whole, strict=True):
        if label in left:
            place = left.index(label)
            left[place] = None
            joined[place] = torch.where(image.isnan(), mean, image)
    return joined


def _placed(bins: Bins, window: tuple[int, int], piece: Tensor) -> Tensor:
    """Put what a window showed where it is in the image, (64 C, rows, columns), and nan where it saw nothing."""
    around = piece.new_full((len(piece), bins.rows + 2, bins.columns + 2), math.nan)
    around[:, window[0] : window[0] + 3, window[1] : window[1] + 3] = piece
    return around[:, 1:-1, 1:-1]
