"""Measure what every cipher leaks: ``python -m scenarios.reference DATA OUT [CIPHER ...]``.

Every cipher is attacked in both scopes as ``ppfed audit leakage --preset cpu`` does, with one judge for all; attacks
that need training are left out where another restores everything. OUT gets a card for each cipher. Cards that are there
already are kept, so that it can be stopped and gone on with, or run for some ciphers at a time. At the end the records
of all cards in OUT become ``ppfed/leakage/reference.json``, which ``ppfed client join`` and model cards quote.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import resources
from pathlib import Path

from ppfed.atomic import write_atomic
from ppfed.attacks.inversion import CPU
from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info, cipher_names
from ppfed.errors import UsageError
from ppfed.images.types import PlainImages
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import RECORD_FILE, Audit, applicable, audit, judge_of
from ppfed.leakage.images import AuditImages
from ppfed.leakage.record import AttackName, LeakageRecord
from ppfed.leakage.reference import RECORDS, REFERENCE_FILE
from ppfed.training import pick_device
from scenarios.attacking import mixed, rows_without
from scenarios.material import read_images

DATA = "CIFAR-10 (JPEG 75)"
_TRAINED = (AttackName.INVERSION, AttackName.LEAKED_PAIRS, AttackName.UNPAIRED)
_EXACT = 0.995
"""SSIM from which on nothing is left to be gained by training."""
_SIZE = 32
_TARGETS = 1000


def main(arguments: list[str]) -> int:
    """Measure, and write ``reference.json``."""
    if len(arguments) < 2:
        raise UsageError("two folders are needed", hint="python -m scenarios.reference DATA OUT [CIPHER ...]")
    out = Path(arguments[1])
    names = arguments[2:] or list(cipher_names())
    left = [spec for spec in every_cipher() if spec.name in names and not (_folder(out, spec) / RECORD_FILE).exists()]
    if left:
        _measure(Path(arguments[0]), out, left)
    records = records_of(out)
    target = resources.files("ppfed.leakage").joinpath(REFERENCE_FILE)
    write_atomic(Path(str(target)), RECORDS.dump_json(records, indent=1).decode() + "\n")
    sys.stdout.write(f"{len(records)} records\n")
    return 0


def every_cipher() -> list[CipherSpec]:
    """List every cipher with every option: fresh key streams first."""
    return [
        cipher_info(name).spec(scope, colour_shuffle=shuffle)
        for scope in (Scope.IMAGE, Scope.FIXED)
        for name in cipher_names()
        for shuffle in ((True, False) if cipher_info(name).colour_shuffle else (False,))
    ]


def records_of(out: Path) -> tuple[LeakageRecord, ...]:
    """Read the records of all cards in a folder, in the order of ``every_cipher``."""
    paths = [_folder(out, spec) / RECORD_FILE for spec in every_cipher()]
    return tuple(LeakageRecord.model_validate_json(path.read_bytes()) for path in paths if path.exists())


def _folder(out: Path, spec: CipherSpec) -> Path:
    return out / f"{spec.name}{'-shuffle' if spec.colour_shuffle else ''}-{spec.scope}"


def _measure(data: Path, out: Path, specs: list[CipherSpec]) -> None:
    device = pick_device()
    images = _images(data)
    judge = judge_of(images, AuditPreset.CPU, device, 0, lambda _part: None)
    for spec in specs:
        sys.stdout.write(f"{spec}\n")
        sys.stdout.flush()
        possible = applicable(spec, images.shape[2])
        run = partial(
            audit, spec, images, preset=AuditPreset.CPU, device=device, seed=0, on_progress=_silent, judge=judge
        )
        found = run([name for name in possible if name not in _TRAINED])
        strongest = found.record.strongest
        if strongest is None or strongest.resemblance.ssim.mean < _EXACT:
            found = joined(found, run([name for name in possible if name in _TRAINED]))
        found.write(_folder(out, spec))


def joined(first: Audit, second: Audit) -> Audit:
    """Put two audits of the same images and cipher on one card."""
    order = list(AttackName)
    outcomes = sorted((*first.record.attacks, *second.record.attacks), key=lambda one: order.index(one.attack))
    record = LeakageRecord.model_validate({**dict(first.record), "attacks": tuple(outcomes)})
    return Audit(record, {**first.pictures, **second.pictures})


def _silent(_what: str, _part: float) -> None:
    pass


def _images(data: Path) -> AuditImages:
    """Attack every tenth held-out image; the attacker has the training images."""
    material = read_images(data, _SIZE, CPU.images, None)
    rows = mixed(len(material.held_out), _TARGETS, 0)
    targets = material.held_out.pixels[rows]
    own = rows_without(material.train.pixels, targets)
    return AuditImages(
        PlainImages(targets),
        material.held_out_labels[rows],
        PlainImages(material.train.pixels[own]),
        material.train_labels[own],
        len(material.classes),
        DATA,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
