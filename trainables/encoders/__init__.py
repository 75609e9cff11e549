"""Encoders, one file a family; a family is named by its file's stem.

`audio/` and `text/` hold the families. Each has a frozen `Config`, `VARIANTS: dict[str, Config]`, and
`weights_fingerprint(config, weights)`, which stands for the weights that training starts from; `weights` is a directory
of published checkpoints, or None where they are to be downloaded. `trainables.networks` builds the networks. In a space
and on a command line an encoder is 'family:variant'; in a trial it is the full Config.
"""

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any, Literal

import dacite

from data.errors import UserError, unknown_name

Kind = Literal["audio", "text"]


def families(kind: Kind) -> list[str]:
    """The families there are."""
    package = importlib.import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def family(kind: Kind, name: str) -> ModuleType:
    """A family by name; an unknown one's error lists the known ones."""
    if name not in families(kind):
        raise unknown_name(f"{kind} encoder", name, families(kind))
    return importlib.import_module(f"{__name__}.{kind}.{name}")


def module_of(config: Any) -> ModuleType:
    """The family that a Config belongs to: the module that defines it."""
    return importlib.import_module(type(config).__module__)


def family_name(config: Any) -> str:
    """'passt' for a Config of passt.py."""
    return type(config).__module__.rpartition(".")[2]


def choose(kind: Kind, name: str) -> Any:
    """The Config that 'family:variant' names; what is unknown is answered with what is known."""
    stem, _, variant = name.partition(":")
    variants: dict[str, Any] = family(kind, stem).VARIANTS
    if variant not in variants:
        known = [f"{stem}:{known_variant}" for known_variant in variants]
        raise unknown_name(f"{kind} encoder", name, known)
    return variants[variant]


def label(config: Any) -> str:
    """'family:variant' for a Config that is one of its family's variants, 'family:custom' otherwise."""
    variants: dict[str, Any] = module_of(config).VARIANTS
    named = next((name for name, variant in variants.items() if variant == config), "custom")
    return f"{family_name(config)}:{named}"


def to_json(config: Any) -> dict[str, Any]:
    """The Config as JSON, with its family."""
    return {"family": family_name(config), **dataclasses.asdict(config)}


def from_json(kind: Kind, value: dict[str, Any]) -> Any:
    """The Config that `to_json` wrote. Raises UserError for an unknown family or setting."""
    if not isinstance(value, dict) or "family" not in value:
        raise UserError(f"{kind} encoder: it must be settings with a family, not {value!r}")
    settings = dict(value)
    config_class = family(kind, settings.pop("family")).Config
    try:
        return dacite.from_dict(config_class, settings, dacite.Config(strict=True, cast=[tuple]))
    except dacite.DaciteError as error:
        raise UserError(f"{kind} encoder {value['family']}: {error}") from error
