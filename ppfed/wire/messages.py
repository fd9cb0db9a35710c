"""Kinds of messages, their parts, and what is checked in all of them."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ppfed.errors import PeerDataError

MANIFEST = "query.manifest"
SHARD = "query.shard"
TRAIN = "train"
GRADIENT = "train.gradient"
EVALUATE = "evaluate"
FINISH = "query.finish"
ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
_NUMPY = "numpy.ndarray"


def pack_request() -> RecordDict:
    """Pack a request without content."""
    return RecordDict({CONFIG: ConfigRecord({"v": 1})})


def values_bytes(content: RecordDict) -> int:
    """Count the bytes of the values in a message's arrays, without what Flower writes around them."""
    return sum(
        math.prod(array.shape) * np.dtype(array.dtype).itemsize
        for record in content.array_records.values()
        for array in record.values()
    )


def config_of(content: RecordDict) -> ConfigRecord:
    """Take a message's settings; raises PeerDataError if there are none."""
    if CONFIG not in content.config_records:
        raise PeerDataError("the message holds no settings")
    return content.config_records[CONFIG]


def metrics_of(content: RecordDict) -> MetricRecord:
    """Take a message's metrics; raises PeerDataError if there are none."""
    if METRICS not in content.metric_records:
        raise PeerDataError("the message holds no metrics")
    return content.metric_records[METRICS]


def arrays_of(content: RecordDict, names: set[str], most_bytes: int) -> ArrayRecord:
    """Take a message's arrays; raises PeerDataError if they are not those named, or larger than that together."""
    if ARRAYS not in content.array_records or set(content.array_records[ARRAYS]) != names:
        raise PeerDataError("the message does not hold the expected arrays")
    arrays = content.array_records[ARRAYS]
    if sum(len(array.data) for array in arrays.values()) > most_bytes:
        raise PeerDataError("the message is too large")
    return arrays


def array_of(values: npt.NDArray[Any]) -> Array:
    """Make what ``Array(values)`` makes, with one copy of the values in memory instead of three."""
    values = np.ascontiguousarray(values)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    data = b"".join([header.getvalue(), values.reshape(-1).view(np.uint8).data])
    return Array(dtype=str(values.dtype), shape=values.shape, stype=_NUMPY, data=data)


def values_of(array: Array) -> npt.NDArray[Any]:
    """Read an array's values; raises PeerDataError. Their dtype and shape are the peer's: check them."""
    # Flower reads its one array format with allow_pickle=False; nothing else is tried.
    if array.stype != _NUMPY:
        raise PeerDataError("an array has an unknown format")
    try:
        values: npt.NDArray[Any] = array.numpy()
    except Exception as error:
        # NumPy parses the header as Python: a damaged one raises nearly anything.
        raise PeerDataError(f"an array cannot be read ({type(error).__name__})") from None
    if not isinstance(values, np.ndarray):
        raise PeerDataError("an array is an archive of arrays")
    return values
