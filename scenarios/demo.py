"""The main job on one machine: owners and coordinator are the ``ppfed`` commands, as anyone would start them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from sklearn.datasets import load_digits

from ppfed.errors import UsageError
from ppfed.images.open import open_source
from ppfed.images.size import parse_size
from ppfed.images.source import LoadReport, Split
from ppfed.services import free_port
from scenarios.local_processes import LocalProcesses, ppfed

OWNERS = ("owner-a", "owner-b")
_READY_S = 120.0
_RUN_S = 3600.0
_COORDINATOR = "coordinator"
_MARK = ".ppfed-demo"
_PREDICTED = 5


@dataclass(frozen=True)
class Material:
    """What the demo trains on.

    Attributes
    ----------
    title : str
    classes : tuple of str
    size : str
        As ``--size`` takes it.
    channels : int
    batch_size, base_maps : int
        Small, for a laptop.
    flip : bool
        Whether images may be flipped: a flipped digit is another sign.
    write : callable
        Writes an owner's class folder: (folder, owner's number, number of owners).
    """

    title: str
    classes: tuple[str, ...]
    size: str
    channels: int
    batch_size: int
    base_maps: int
    flip: bool
    write: Callable[[Path, int, int], None]


@dataclass(frozen=True)
class Result:
    """How one federation went."""

    exchange: str
    accuracy: float
    bytes_sent: int
    seconds: float
    model: Path


def digits() -> Material:
    """1,797 handwritten digits that come with scikit-learn (UCI ML repository, 8x8 pixels, 17 grey levels)."""
    loaded = load_digits()
    pixels = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    labels = loaded.target

    def write(folder: Path, number: int, owners: int) -> None:
        for index in range(number, len(labels), owners):
            path = folder / str(labels[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(path)

    classes = tuple(str(digit) for digit in range(10))
    return Material("scikit-learn's handwritten digits", classes, "16", 1, 64, 8, False, write)


def own_images(data: Path, count: int, size: str | None) -> Material:
    """Use images from any source that ppfed reads; the first ``count`` of a fixed shuffle, dealt out to the owners.

    Raises
    ------
    DataError, UsageError
        If the images cannot be used.
    """
    source = open_source(data)
    chosen_size = size or "32"
    height, width = parse_size(chosen_size)
    report = LoadReport()
    total = source.counts[Split.TRAIN]
    if total < 2 * len(OWNERS):
        raise UsageError(f"{data} holds {total} images, too few to deal out", hint="Name a folder with more images.")
    wanted = np.zeros(total, dtype=bool)
    wanted[np.random.default_rng(0).permutation(total)[:count]] = True
    kept: list[tuple[str, np.ndarray[Any, np.dtype[np.uint8]]]] = []
    seen = 0
    for batch in source.read(Split.TRAIN, size=(height, width), channels=3, report=report):
        rows = np.flatnonzero(wanted[seen : seen + len(batch.labels)])
        kept += [(source.classes[batch.labels[row]], batch.images.pixels[row]) for row in rows]
        seen += len(batch.labels)

    def write(folder: Path, number: int, owners: int) -> None:
        for name in source.classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number, len(kept), owners):
            name, pixels = kept[index]
            Image.fromarray(pixels).save(folder / name / f"{index:06d}.png")

    return Material(f"{len(kept)} images of {data}", source.classes, chosen_size, 3, 128, 16, True, write)


class Demo:
    """Runs the commands: ``prepare``, which empties the folder, then federations.

    Parameters
    ----------
    folder : Path
        Everything goes here; an older demo in it is replaced, anything else is not.
    material : Material
    rounds : int
    say : callable
        Called with each line of text for the user.
    """

    def __init__(self, folder: Path, material: Material, rounds: int, say: Callable[[str], None]) -> None:
        self.folder = folder.resolve()
        self._material = material
        self._rounds = rounds
        self._say = say
        self._here = LocalProcesses(self.folder)

    @property
    def key(self) -> Path:
        """The owners' shared key."""
        return self.folder / "owners.key"

    @property
    def preview(self) -> Path:
        """The contact sheet."""
        return self.folder / "preview.png"

    def data(self, owner: str) -> Path:
        """Return an owner's class folder."""
        return self.folder / "data" / owner

    def prepare(self) -> None:
        """Empty the folder, make the key, deal out the images, draw the contact sheet.

        Raises
        ------
        UsageError
            If something other than a demo is in the folder.
        """
        if self.folder.exists() and any(self.folder.iterdir()):
            if not (self.folder / _MARK).exists():
                raise UsageError(f"{self.folder} is not empty", hint="Name another folder with --out.")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _MARK).touch()
        self._say(f"data: {self._material.title}, dealt out to {len(OWNERS)} owners")
        for number, owner in enumerate(OWNERS):
            self._material.write(self.data(owner), number, len(OWNERS))
        fingerprint = self._ppfed("key", "new", str(self.key)).strip()
        self._say(f"key: made, fingerprint {fingerprint.split()[-1]}; both owners hold it, the coordinator does not")
        self._ppfed(
            *("preview", str(self.data(OWNERS[0])), "--key", str(self.key)),
            *("--size", self._material.size, "--out", str(self.preview)),
        )

    def federation(self, exchange: str) -> Result:
        """Run one federation to its end.

        Raises
        ------
        ServiceError
            If one of its processes fails, or it takes longer than an hour.
        """
        started = time.monotonic()
        folder = self.folder / exchange
        folder.mkdir()
        state = folder / _COORDINATOR
        material = self._material
        self._say(f"exchange {exchange}:")
        with LocalProcesses(folder) as processes:
            processes.start(
                _COORDINATOR,
                *ppfed("coordinator", "start", "--state", str(state), "--name", f"demo-{exchange}"),
                *("--exchange", exchange, "--owners", str(len(OWNERS)), "--classes", ",".join(material.classes)),
                *("--size", material.size, "--channels", str(material.channels), "--rounds", str(self._rounds)),
                *("--batch-size", str(material.batch_size), "--base-maps", str(material.base_maps)),
                "--horizontal-flip" if material.flip else "--no-horizontal-flip",
                *("--address", f"localhost:{free_port()}"),
            )
            processes.wait("an open coordinator", lambda: "is open at" in processes.log(_COORDINATOR), _READY_S)
            for owner in OWNERS:
                invite = folder / f"{owner}.invite"
                self._ppfed("coordinator", "invite", owner, "--state", str(state), "--out", str(invite))
                processes.start(
                    owner,
                    *ppfed("client", "join", "--yes", "--key", str(self.key), "--data", str(self.data(owner))),
                    *("--invite", str(invite), "--state", str(folder / owner)),
                )
            self._follow(processes)
        report = json.loads(self._ppfed("coordinator", "status", "--state", str(state), "--json"))
        return Result(
            exchange=exchange,
            accuracy=float(report["accuracy"]),
            bytes_sent=sum(int(owner["bytes_sent"]) for owner in report["owners"]),
            seconds=time.monotonic() - started,
            model=Path(report["model"]),
        )

    def predict(self, result: Result) -> str:
        """Classify a few of an owner's images with the model."""
        files = sorted(self.data(OWNERS[1]).rglob("*.png"))
        step = max(1, len(files) // _PREDICTED)
        chosen = [str(path.relative_to(self.folder)) for path in files[::step][:_PREDICTED]]
        return self._ppfed("predict", str(result.model), *chosen, "--key", str(self.key), "--device", "cpu").rstrip()

    def paths(self, results: list[Result]) -> dict[str, Path]:
        """Return what a user may want to look at."""
        models = {f"model ({result.exchange})": result.model for result in results}
        curves = {f"curve ({result.exchange})": result.model / "curve.png" for result in results}
        return {"preview": self.preview, **models, **curves}

    def _ppfed(self, *arguments: str) -> str:
        return self._here.run(*ppfed(*arguments))

    def _follow(self, processes: LocalProcesses) -> None:
        """Repeat the coordinator's lines until every process has ended well."""
        said = 0

        def all_done() -> bool:
            nonlocal said
            done = all(child.poll() is not None for child in processes.children.values())
            complete = processes.log(_COORDINATOR).split("\n")[:-1]
            for line in complete[said:]:
                self._say(f"  {line}")
            said = len(complete)
            return done and all(child.returncode == 0 for child in processes.children.values())

        processes.wait("the model", all_done, _RUN_S)


def result_table(title: str, results: list[Result]) -> Table:
    """Lay the results out for a terminal."""
    table = Table(title=f"{title}: encrypted training of two owners", title_justify="left")
    for heading in ("exchange", "accuracy", "sent by owners", "time"):
        table.add_column(heading, justify="left" if heading == "exchange" else "right")
    for result in results:
        table.add_row(
            result.exchange, f"{result.accuracy:.1%}", f"{result.bytes_sent / 1e6:.2f} MB", f"{result.seconds:.0f} s"
        )
    return table
