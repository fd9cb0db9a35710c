"""Measure what every cipher leaks: ``python -m scenarios.studies.reference DATA OUT [CIPHER ...]``.

Every cipher is attacked in both scopes as ``ppfed audit leakage --preset cpu`` does, with one judge for all; attacks
that need training are left out where another restores everything. OUT gets a card for each cipher. Cards that are there
already are kept, so that it can be stopped and gone on with, or run for some ciphers at a time. ``sent`` in place of a
cipher stands for the exchanges that send no image: with plain images, which are the control, with the default cipher,
and with one mask for all images. ``grey`` stands for grey images under NP and NP twice. At the end the records of all
cards in OUT go into ``ppfed/leakage/reference.json``, which ``ppfed client join`` and model cards quote; records
without a card stay. ``missing`` before the ciphers runs only those attacks that their records in ``reference.json``
lack, adds what came of them there, and writes no cards; what candidate pictures tell is among that, and ``candidates``
before the ciphers adds it alone, in a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import product
from pathlib import Path

from ppfed.atomic import write_atomic
from ppfed.attacks.candidates import applies
from ppfed.attacks.learned.inversion import CPU
from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info, cipher_names
from ppfed.errors import UsageError
from ppfed.federation import Exchange
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import Audit, AuditRun, applicable, audit, judge_of
from ppfed.leakage.card import RECORD_FILE, write_card
from ppfed.leakage.images import AuditImages
from ppfed.leakage.record import AttackName, LeakageRecord
from ppfed.leakage.reference import RECORDS, REFERENCE_FILE, references
from ppfed.leakage.sent import OwnerStep, audit_sent, possible_on_sent, sent_batches
from ppfed.networks.classifier import build_network
from ppfed.networks.config import InputFeatures, NetworkConfig, best_features
from ppfed.training.loop import pick_device
from scenarios.studies.command import run_study
from scenarios.studies.targets import SIZE_PX, reference_images

DATA = "CIFAR-10 (JPEG 75)"
_TRAINED = (
    AttackName.INVERSION,
    AttackName.LEARNED_EDGES,
    AttackName.LEARNED_SEAMS,
    AttackName.LEAKED_PAIRS,
    AttackName.UNPAIRED,
)
_EXACT = 0.995
"""SSIM from which on nothing is left to be gained by training."""
GREY = "grey"
"""Names grey images, among the ciphers."""
GREY_SPECS = tuple(
    CipherSpec(name, scope, colour_shuffle=False)
    for name in ("np-v1", "np2-v1")
    for scope in (Scope.IMAGE, Scope.FIXED)
)
MISSING, CANDIDATES = "missing", "candidates"
"""Ask for what records lack, and nothing else; and of that, for what candidate pictures tell alone."""
SENT = "sent"
"""Names what is sent instead of images, among the ciphers."""
_SENT_DATA = f"{DATA}, a ResNet-18 of the default width"
_SENT_SPECS = (CipherSpec(), CipherSpec(scope=Scope.FIXED, colour_shuffle=False), None)


def main(arguments: list[str]) -> int:
    """Measure, and write ``reference.json``."""
    if len(arguments) < 2:
        raise UsageError("two folders are needed", hint="python -m scenarios.studies.reference DATA OUT [CIPHER ...]")
    out = Path(arguments[1])
    possible = [*cipher_names(), GREY, SENT]
    unknown = [name for name in arguments[3 if _adds(arguments[2:]) else 2 :] if name not in possible]
    if unknown:
        raise UsageError(f"there is no cipher {unknown[0]!r}", hint=f"Choose of: {', '.join(possible)}.")
    names = arguments[2:] or possible
    if _adds(names):
        chosen = names[1:] or [*cipher_names(), GREY]
        add_missing(Path(arguments[0]), chosen, attacked=names[0] == MISSING)
        return 0
    _measure(Path(arguments[0]), out, [spec for spec in every_cipher() if spec.name in names])
    if GREY in names:
        _measure(Path(arguments[0]), out, GREY_SPECS, channels=1)
    if SENT in names:
        _measure_sent(Path(arguments[0]), out)
    records = merged(references(), records_of(out))
    _write(records)
    sys.stdout.write(f"{len(records)} records\n")
    return 0


def _write(records: tuple[LeakageRecord, ...]) -> None:
    target = resources.files("ppfed.leakage").joinpath(REFERENCE_FILE)
    write_atomic(Path(str(target)), RECORDS.dump_json(records, indent=1).decode() + "\n")


def _adds(names: Sequence[str]) -> bool:
    return bool(names) and names[0] in (MISSING, CANDIDATES)


def lacking(record: LeakageRecord) -> list[AttackName]:
    """Name the attacks on encrypted images that a record should have and does not."""
    if record.cipher is None or record.exchange is not Exchange.IMAGES:
        return []
    known = {outcome.attack for outcome in record.attacks}
    possible = applicable(record.cipher.spec, record.channels)
    return [name for name in possible if name not in known and (name not in _TRAINED or _worth_training(record))]


def _worth_training(record: LeakageRecord) -> bool:
    return record.strongest is None or record.strongest.resemblance.ssim.mean < _EXACT


def lacks_candidates(record: LeakageRecord) -> bool:
    """Tell whether a record should say what candidate pictures tell and does not."""
    if record.cipher is None or record.exchange is not Exchange.IMAGES:
        return False
    return record.by_candidates is None and applies(record.cipher.name)


def add_missing(data: Path, names: Sequence[str], *, attacked: bool = True) -> None:
    """Add what records lack to ``reference.json``, one record after the other.

    No judge is asked: another than that of a record's other numbers might judge otherwise.

    Parameters
    ----------
    data : Path
    names : sequence of str
        Of ciphers, or ``grey``.
    attacked : bool
        Whether to run attacks that are lacking too.
    """
    records = references()
    images: dict[int, AuditImages] = {}
    for record in records:
        name = GREY if record.channels == 1 else record.cipher and record.cipher.name
        attacks = lacking(record) if attacked else []
        if record.cipher is None or name not in names or not (attacks or lacks_candidates(record)):
            continue
        if record.channels not in images:
            images[record.channels] = _images(data, channels=record.channels)
        sys.stdout.write(f"{record.cipher.spec}, {record.channels} channels: {', '.join(attacks) or CANDIDATES}\n")
        sys.stdout.flush()
        run = AuditRun(AuditPreset.CPU, pick_device(), seed=0)
        found = audit(record.cipher.spec, images[record.channels], attacks, run)
        records = merged(records, (_joined(record, found.record),))
        _write(records)


def every_cipher() -> list[CipherSpec]:
    """List every cipher with every option: fresh key streams first."""
    return [
        cipher_info(name).spec(scope, colour_shuffle=shuffle)
        for scope in (Scope.IMAGE, Scope.FIXED)
        for name in cipher_names()
        for shuffle in ((True, False) if cipher_info(name).colour_shuffle else (False,))
    ]


def records_of(out: Path) -> tuple[LeakageRecord, ...]:
    """Read the records of all cards in a folder: every cipher, then grey images, then what is sent instead."""
    paths = [_folder(out, spec) / RECORD_FILE for spec in every_cipher()]
    paths += [_folder(out, spec, channels=1) / RECORD_FILE for spec in GREY_SPECS]
    paths += [_folder(out, spec, exchange) / RECORD_FILE for spec, exchange in every_sent()]
    return tuple(LeakageRecord.model_validate_json(path.read_bytes()) for path in paths if path.exists())


def every_sent() -> list[tuple[CipherSpec | None, Exchange]]:
    """List what is measured of exchanges that send no image: ciphers, None for plain images, and exchanges."""
    return list(product(_SENT_SPECS, (Exchange.UPDATES, Exchange.GRADIENTS)))


def merged(old: tuple[LeakageRecord, ...], new: tuple[LeakageRecord, ...]) -> tuple[LeakageRecord, ...]:
    """Replace old records by new ones of the same cipher, exchange and colours, and add those that are new."""
    found = {(str(one.cipher), one.exchange, one.channels): one for one in (*old, *new)}
    return tuple(found.values())


def _folder(out: Path, spec: CipherSpec | None, exchange: Exchange = Exchange.IMAGES, channels: int = 3) -> Path:
    name = "plain" if spec is None else f"{spec.name}{'-shuffle' if spec.colour_shuffle else ''}-{spec.scope}"
    name = f"{GREY}-{name}" if channels == 1 else name
    return out / (name if exchange is Exchange.IMAGES else f"{exchange}-{name}")


def _measure(data: Path, out: Path, specs: Sequence[CipherSpec], channels: int = 3) -> None:
    left = [spec for spec in specs if not (_folder(out, spec, channels=channels) / RECORD_FILE).exists()]
    if not left:
        return
    device = pick_device()
    images = _images(data, channels=channels)
    judge = judge_of(images, AuditPreset.CPU, device, 0, lambda _part: None)
    run = AuditRun(AuditPreset.CPU, device, seed=0, judge=judge)
    for spec in left:
        sys.stdout.write(f"{spec}, {'grey' if channels == 1 else 'colour'}\n")
        sys.stdout.flush()
        possible = applicable(spec, images.shape[2])
        found = audit(spec, images, [name for name in possible if name not in _TRAINED], run)
        if _worth_training(found.record):
            found = joined(found, audit(spec, images, [name for name in possible if name in _TRAINED], run))
        write_card(_folder(out, spec, channels=channels), found.record, found.pictures)


def _measure_sent(data: Path, out: Path) -> None:
    device = pick_device()
    left = [pair for pair in every_sent() if not (_folder(out, *pair) / RECORD_FILE).exists()]
    if not left:
        return
    images = replace(_images(data), data=_SENT_DATA)
    run = AuditRun(AuditPreset.CPU, device, seed=0)
    for spec, exchange in left:
        sys.stdout.write(f"{exchange}, {spec or 'plain'}\n")
        sys.stdout.flush()
        features = InputFeatures.VALUES if spec is None else best_features(spec)
        network = build_network(NetworkConfig(images.classes, SIZE_PX, SIZE_PX, features=features), 0)
        step = OwnerStep(network.to(device), exchange)
        # The search is slow and gets less even of the control (scenarios/studies/gradient_search.py).
        possible = set(possible_on_sent(spec, images.shape[2])) - {AttackName.GRADIENTS}
        found = audit_sent(spec, images, step, sent_batches(exchange), run, attacks=tuple(possible))
        write_card(_folder(out, spec, exchange), found.record, found.pictures)


def joined(first: Audit, second: Audit) -> Audit:
    """Put two audits of the same images and cipher on one card."""
    return Audit(_joined(first.record, second.record), {**first.pictures, **second.pictures})


def _joined(first: LeakageRecord, second: LeakageRecord) -> LeakageRecord:
    order = list(AttackName)
    outcomes = sorted((*first.attacks, *second.attacks), key=lambda one: order.index(one.attack))
    match = first.by_candidates or second.by_candidates
    return LeakageRecord.model_validate({**dict(first), "attacks": tuple(outcomes), "by_candidates": match})


def _images(data: Path, channels: int = 3) -> AuditImages:
    return reference_images(data, CPU.images, channels, f"{DATA}, grey" if channels == 1 else DATA)


if __name__ == "__main__":
    run_study(main)
