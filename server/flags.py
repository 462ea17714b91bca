"""Command line → ServerConfig: one flag of each field, named after it."""

import argparse
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from hotshoe.registry.store.quotas import Quota
from hotshoe.server.config import Address, EngineConfig, ResidencyConfig, ServerConfig

_BYTE_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
# Their help says where they lie if they are not given.
_DEFAULTS_IN_WORDS = ("registry", "base_cache", "remotes")


def parse_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> ServerConfig:
    """Reads the server's arguments; exits with 2 and one line on a bad one.

    `environment` gives XDG_DATA_HOME and DOCKER_CONFIG.
    """
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    registry = values.setdefault("registry", _default_registry(environment))
    values.setdefault("base_cache", _base_cache(registry))
    values.setdefault("docker_config", _default_docker_config(environment))
    values["remotes"] = tuple(values.get("remotes", ()))
    try:
        engine = EngineConfig(**_take(values, EngineConfig))
        residency = ResidencyConfig(**_take(values, ResidencyConfig))
        return ServerConfig(**values, engine=engine, residency=residency)
    except ValueError as error:
        name, _, problem = str(error).partition(": ")
        parser.error(f"argument --{name.replace('_', '-')}: {problem}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says what is wrong without the usage, which is 30 lines long."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists all)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hotshoe serve",
        description="Serves one 4-bit base model and many adapters over gRPC.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hotshoe {version('hotshoe')}")
    groups = {"server": ServerConfig, "engine": EngineConfig, "adapters in memory": ResidencyConfig}
    for title, config in groups.items():
        group = parser.add_argument_group(title)
        hints = typing.get_type_hints(config)
        for setting in fields(config):
            if "help" in setting.metadata:
                _add_flag(group, setting, hints[setting.name])
    return parser


def _add_flag(group: "argparse._ArgumentGroup", setting: "Field[Any]", hint: Any) -> None:
    flag = setting.metadata.get("flag", "--" + setting.name.replace("_", "-"))
    text = setting.metadata["help"].replace("%", "%%")
    if hint is bool:
        group.add_argument(flag, dest=setting.name, action="store_true", help=text)
        return
    if setting.default not in (None, MISSING, "") and setting.name not in _DEFAULTS_IN_WORDS:
        text += f" (default: {_shown(setting)})"
    group.add_argument(
        flag,
        dest=setting.name,
        action="append" if typing.get_origin(hint) is tuple else "store",
        type=_parser_of(setting.name, hint),
        choices=setting.metadata.get("choices"),
        metavar=None
        if "choices" in setting.metadata
        else setting.metadata.get("metavar") or _metavar(setting.name, hint),
        help=text,
    )


def _parser_of(name: str, hint: Any) -> Callable[[str], Any]:
    if name.endswith("_bytes"):
        return _described(parse_bytes)
    if name == "tenant_weights":
        return _described(parse_weights)
    if name == "quotas":
        return _described(parse_quotas)
    if hint == Address | None:
        return _described(lambda text: Address.parse(text) if text else None)
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType]
    return _described(Address.parse if kinds[0] is Address else kinds[0])


def _described(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the text of an ArgumentTypeError only."""

    def described(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            words: Mapping[object, str] = {int: "a whole number", float: "a number"}
            expected = words.get(parse)
            raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}" if expected else str(error)) from None

    return described


def parse_bytes(text: str) -> int:
    """Reads "1048576", "512MiB" or "2GB". Raises ValueError."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    if not match or match[2].upper() not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is not a size: a whole number, then nothing or KiB, MiB, GiB, KB, MB, GB")
    return int(match[1]) * _BYTE_UNITS[match[2].upper()]


def parse_weights(text: str) -> dict[str, float]:
    """Reads "name=2,other=0.5". Raises ValueError."""
    weights: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.rpartition("=")
        if name in weights:
            raise ValueError(f"{name!r} is there twice")
        try:
            weights[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"{part!r} is not NAME=WEIGHT")
    return weights


def parse_quotas(text: str) -> dict[str, Quota]:
    """Reads "*=100GiB:10000,team/=5GiB,guest/=:20". Raises ValueError."""
    quotas: dict[str, Quota] = {}
    for part in filter(None, text.split(",")):
        prefix, equals, limits = part.partition("=")
        size, _, count = limits.partition(":")
        if not (prefix and equals and (size or count)):
            raise ValueError(f"{part!r} is not PREFIX=BYTES, PREFIX=BYTES:ADAPTERS or PREFIX=:ADAPTERS")
        if count and not (count.isascii() and count.isdigit()):
            raise ValueError(f"{part!r}: {count!r} is not a number of adapters")
        if prefix in quotas:
            raise ValueError(f"{prefix!r} is there twice")
        quotas[prefix] = Quota(parse_bytes(size) if size else None, int(count) if count else None)
    return quotas


def _shown(setting: "Field[Any]") -> str:
    default: Any = setting.default
    return f"{default >> 20}MiB" if setting.name.endswith("_bytes") else str(default)


def _metavar(name: str, hint: Any) -> str:
    if hint in (Address, Address | None):
        return "HOST:PORT"
    if name.endswith("_bytes"):
        return "BYTES"
    return {int: "N", int | None: "N", float: "SECONDS", Path: "DIR", Path | None: "FILE", str: "TEXT"}[hint]


def _take(values: dict[str, Any], config: type) -> dict[str, Any]:
    return {setting.name: values.pop(setting.name) for setting in fields(config) if setting.name in values}


def _default_docker_config(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"


def default_base_cache(environment: Mapping[str, str]) -> Path:
    """Where a server that was told neither a registry nor a cache keeps quantized bases."""
    return _base_cache(_default_registry(environment))


def _base_cache(registry: Path) -> Path:
    return Path(f"{registry.resolve()}.bases")


def _default_registry(environment: Mapping[str, str]) -> Path:
    data = environment.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "hotshoe" / "registry"
