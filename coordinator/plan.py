"""From the options of ``coordinator start`` to the federation's settings."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from coordinator.state import MADE_FIRST, Plan, StateFolder
from ppfed.ciphers.spec import cipher_info
from ppfed.errors import UsageError
from ppfed.federation import CipherSettings, FederationSettings, describe_invalid, parse_classes
from ppfed.images.size import parse_size
from ppfed.networks.config import best_features
from ppfed.training.settings import TrainingSettings

if TYPE_CHECKING:
    from coordinator.initial import FurtherModel

_OWN = ("quorum", "deadline_s", "begin_with")
_INITIAL = "initial_model"
_REQUIRED = ("exchange", "owners", "classes", "size")
_ADDRESS = "localhost:9443"
_LOOPBACK = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "[::1]"}


def agree(folder: StateFolder, options: Mapping[str, Any], check: Callable[[FederationSettings], object]) -> None:
    """Make the folder of a new federation, or check that the options do not contradict the one that is there.

    Parameters
    ----------
    folder : StateFolder
    options : mapping of str to value
        Those that were given, by the name of their option. What is the coordinator's own business may differ each
        time: the quorum, the deadline, how many owners the first run waits for, and where this machine listens.
    check : callable
        Refuses settings for other reasons, before anything is written.

    Raises
    ------
    UsageError
        If an option is missing, makes no sense, or differs from what was agreed; or if one changes while a coordinator
        is running; or if the folder of a new federation holds anything.
    ModelError
        If the model that is to be trained further is damaged, or no model.
    """
    further = _read_further(options)
    if further is not None:
        options = {**options, _INITIAL: further.origin}
    if not folder.exists():
        _require_unused(folder.folder)
        plan = make_plan(options, further)
        check(plan.settings)
        # The address stays what it is now, and invites name it.
        _require_free_port(plan.listen)
        folder.create(plan, None if further is None else further.weights)
        return
    plan = folder.plan()
    check(plan.settings)
    if not options:
        return
    before = _options_of(plan)
    if "begin_with" not in options:
        # Once it has begun, nobody needs that any more; a quorum may still be raised above it.
        before["begin_with"] = max(plan.begin_with, options.get("quorum", 0))
    wanted = make_plan({**before, **options})
    if (wanted.settings, wanted.address) != (plan.settings, plan.address):
        raise UsageError(
            f"the federation in {folder.folder} was started with other settings: {_differences(plan, wanted)}",
            hint="Leave the options out to go on with it, or name a new folder with --state.",
        )
    if wanted == plan:
        return
    if folder.running_pid() is not None:
        raise UsageError(
            f"a coordinator is running in {folder.folder}: {_differences(plan, wanted)}",
            hint="End it with 'ppfed coordinator stop', then start it with other options.",
        )
    folder.set_plan(wanted)


def _require_free_port(listen: str) -> None:
    """Refuse an address that cannot be listened on."""
    host, port = split_address(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            # As uvicorn: what a coordinator before left of its connections is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {listen}: {error.strerror or error}",
            hint="Free the port, or name another with --address HOST:PORT (or --listen, where the invites' address is "
            "forwarded to it). Nothing was made.",
        ) from None


def _require_unused(folder: Path) -> None:
    """Refuse a folder with anything in it but what a start leaves that was interrupted: others may need it."""
    if folder.exists() and not all(one.name in MADE_FIRST for one in folder.iterdir()):
        raise UsageError(
            f"{folder} holds files, and no federation",
            hint="Name a folder with --state that is missing or empty.",
        )


def _read_further(options: Mapping[str, Any]) -> FurtherModel | None:
    if _INITIAL not in options:
        return None
    # It loads torch, which a coordinator that only receives images can do without.
    from coordinator.initial import read_further_model  # noqa: PLC0415

    return read_further_model(Path(options[_INITIAL]))


def make_plan(options: Mapping[str, Any], further: FurtherModel | None = None) -> Plan:
    """Build the plan of a new federation.

    Parameters
    ----------
    options : mapping of str to value
        Of ``initial_model`` its ``ModelOrigin``.
    further : FurtherModel or None
        The model that is trained further: what its weights decide need not be said.

    Raises
    ------
    UsageError
        If an option is missing or makes no sense, or the weights of that model do not fit it.
    """
    if further is not None:
        plan = make_plan({**further.suggested, **further.fixed, **options})
        _require_fitting(plan, further)
        return plan
    missing = [f"--{name}" for name in _REQUIRED if name not in options]
    if missing:
        raise UsageError(
            f"a new federation needs {', '.join(missing)}",
            hint="For example: ppfed coordinator start --exchange updates --owners 2 --classes cat,dog --size 32",
        )
    height, width = parse_size(str(options["size"]))
    training = {name: options[name] for name in TrainingSettings.model_fields if name in options}
    if "adaptation" in training:
        default = TrainingSettings.model_fields["adaptation"].default
        training["adaptation"] = default if training["adaptation"] else ()
    agreed = {name: options[name] for name in ("channels", "fingerprint", _INITIAL) if name in options}
    try:
        cipher = CipherSettings.model_validate(_cipher(options))
        training.setdefault("features", best_features(cipher.spec))
        settings = FederationSettings.model_validate(
            {
                "name": options.get("name", "federation"),
                "exchange": options["exchange"],
                "owners": options["owners"],
                "classes": parse_classes(options["classes"]),
                "height": height,
                "width": width,
                "cipher": cipher,
                "training": training,
                **agreed,
            }
        )
    except ValidationError as error:
        raise _no_federation(error) from None
    cipher_info(settings.cipher.name).check(settings.cipher.spec, settings.shape)
    address = str(options.get("address", _ADDRESS))
    host, port = split_address(address)
    listen = str(options.get("listen") or _default_listen(host, port))
    split_address(listen)
    usual = {"quorum": settings.owners // 2 + 1, "begin_with": settings.owners}
    own = {**usual, **{name: options[name] for name in _OWN if name in options}}
    try:
        return Plan(settings=settings, address=address, listen=listen, **own)
    except ValidationError as error:
        raise _no_federation(error) from None


def _require_fitting(plan: Plan, further: FurtherModel) -> None:
    wanted, fixed = _options_of(plan), further.fixed
    different = [
        f"{name} is {value}, not {wanted.get(name, 'open')}"
        for name, value in fixed.items()
        if wanted.get(name) != value
    ]
    network = replace(plan.settings.network_config(), mirrored_views=further.network.mirrored_views)
    if not different and network != further.network:
        different = ["its adaptation network, or a class with a comma in its name, is none that options can ask for"]
    if different:
        raise UsageError(
            f"the model that is to be trained further, {further.origin}, does not fit: {', '.join(different)}",
            hint="Leave these options out: they are taken from the model. With other ones, train from the beginning.",
        )


def _no_federation(error: ValidationError) -> UsageError:
    return UsageError(
        f"these settings make no federation: {describe_invalid(error)}", hint="See 'ppfed coordinator start --help'."
    )


def _cipher(options: Mapping[str, Any]) -> dict[str, Any]:
    info = cipher_info(str(options.get("cipher", CipherSettings().name)))
    shuffle = {"colour_shuffle": options.get("colour_shuffle", info.colour_shuffle)}
    return {"name": info.name, **shuffle, **({"scope": options["scope"]} if "scope" in options else {})}


def _default_listen(host: str, port: int) -> str:
    if host in _LOOPBACK:
        return f"{_LOOPBACK[host]}:{port}"
    # An IPv6 address is not reached through IPv4's interfaces.
    return f"[::]:{port}" if ":" in host else f"0.0.0.0:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; raises UsageError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"{address!r} is not an address", hint="Write it as host:port, for example gpu.example.org:9443."
        )
    return host.strip("[]"), int(port)


def _differences(plan: Plan, wanted: Plan) -> str:
    before, after = _options_of(plan), _options_of(wanted)
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(f"{name} is {before.get(name, 'open')}, not {after.get(name, 'open')}" for name in different)


def _options_of(plan: Plan) -> dict[str, Any]:
    settings, training = plan.settings, plan.settings.training
    options = {
        "name": settings.name,
        "exchange": settings.exchange,
        "owners": settings.owners,
        "classes": ",".join(settings.classes),
        "size": f"{settings.height}x{settings.width}",
        "channels": settings.channels,
        "cipher": settings.cipher.name,
        "scope": settings.cipher.scope,
        "colour_shuffle": settings.cipher.colour_shuffle,
        "quorum": plan.quorum,
        "deadline_s": plan.deadline_s,
        "begin_with": plan.begin_with,
        "address": plan.address,
        "listen": plan.listen,
        **training.model_dump(),
        "adaptation": bool(training.adaptation),
    }
    said = {"fingerprint": settings.fingerprint, _INITIAL: settings.initial_model}
    return {**options, **{name: value for name, value in said.items() if value is not None}}
