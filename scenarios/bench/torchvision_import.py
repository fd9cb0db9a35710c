"""torchvision, which ppfed is compared with and does not need, also where it was built for another torch."""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from types import ModuleType

import torch

# torchvision's Python code describes these operators whether or not its compiled part, which defines them, could be
# loaded. The schemas are those of torchvision/csrc/ops/nms.cpp.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")


def import_torchvision() -> ModuleType:
    """Import torchvision; where its compiled part does not load, declare the operators it misses first.

    Its models, data sets and transforms then work; the declared operators themselves do not.

    Raises
    ------
    ImportError
        If it is not installed.
    RuntimeError
        If it misses something else.
    """
    for _ in range(len(_SCHEMAS)):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None or missing[1] not in _SCHEMAS:
                raise
            _declare(missing[1])
            # A failed import leaves its submodules behind, half initialised.
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
    return importlib.import_module("torchvision")


@cache  # the declaration lives as long as the library object
def _declare(operator: str) -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(_SCHEMAS[operator])  # type: ignore[no-untyped-call]
    return library
