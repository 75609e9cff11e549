"""Encoder families: one module per family, named by the file's stem.

The families are in `audio/` and `text/`. Each has a frozen `Config`, `VARIANTS: dict[str, Config]`, and
`weights_fingerprint(config, weights)`, which identifies the initial weights; `weights` is a directory of published
checkpoints, or None to download them. `trainables.networks` builds the networks. In a space and on a command line, an
encoder is given as 'family:variant'; a trial contains the full Config.

A family that accepts names besides its variants, such as a folder, has functions `parse_name(name)`, which returns the
Config or raises UserError, and `format_name(config)`, which returns the name that is shown for it.
"""

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any, Literal

import dacite

from data.errors import UserError, unknown_name_error

Kind = Literal["audio", "text"]

ADDED = {"added": True}
"""Metadata of a Config's field that stored settings didn't have at first. They have it only if it differs from its
default, so that the files of other trials stay as they were.
"""


def list_families(kind: Kind) -> list[str]:
    """Return the names of the encoder families of a kind, 'audio' or 'text', sorted: ['cnn', 'cnn14', 'passt'] for
    audio.
    """
    package = importlib.import_module(f"{__name__}.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def load_family(kind: Kind, name: str) -> ModuleType:
    """Import and return the module of an encoder family, such as `passt`. Raises UserError, which lists the known
    families, for an unknown name.
    """
    if name not in list_families(kind):
        raise unknown_name_error(f"{kind} encoder", name, list_families(kind))
    return importlib.import_module(f"{__name__}.{kind}.{name}")


def module_of_config(config: Any) -> ModuleType:
    """Return the module that defines an encoder's Config, such as trainables.encoders.audio.passt."""
    return importlib.import_module(type(config).__module__)


def family_name(config: Any) -> str:
    """Return the name of the family that an encoder's Config belongs to: 'passt' for a Config of passt.py."""
    return type(config).__module__.rpartition(".")[2]


def config_of_variant(kind: Kind, name: str) -> Any:
    """Return the Config of an encoder of a kind, 'audio' or 'text', for a name 'family:variant', such as 'passt:N' or
    'huggingface:FOLDER'. Raises UserError, which lists the known names, for an unknown one.
    """
    stem, _, variant = name.partition(":")
    family = load_family(kind, stem)
    variants: dict[str, Any] = family.VARIANTS
    if variant not in variants:
        if variant and hasattr(family, "parse_name"):
            return family.parse_name(variant)
        known = [f"{stem}:{known_variant}" for known_variant in variants]
        raise unknown_name_error(f"{kind} encoder", name, known)
    return variants[variant]


def format_label(config: Any) -> str:
    """Return the name 'family:variant' of an encoder's Config. If it isn't one of its family's variants, the name is
    'family:NAME', where the family names such a Config ('huggingface:my-model'), and 'family:custom' otherwise.
    """
    family = module_of_config(config)
    named = next((name for name, variant in family.VARIANTS.items() if variant == config), None)
    if named is None:
        named = family.format_name(config) if hasattr(family, "format_name") else "custom"
    return f"{family_name(config)}:{named}"


def to_json(config: Any) -> dict[str, Any]:
    """Return an encoder's Config as a dict for JSON: its fields, and its family's name under the key 'family'. Fields
    with the metadata ADDED are left out if they have their defaults.
    """
    unchanged = {field.name for field in dataclasses.fields(config)
                 if "added" in field.metadata and getattr(config, field.name) == field.default}  # fmt: skip
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in unchanged}
    return {"family": family_name(config), **settings}


def from_json(kind: Kind, value: dict[str, Any]) -> Any:
    """Return the Config of an encoder, given as the dict that `to_json` returned. `kind` is 'audio' or 'text'. Raises
    UserError for an unknown family or setting.
    """
    if not isinstance(value, dict) or "family" not in value:
        raise UserError(f"{kind} encoder: it must be settings with a family, not {value!r}")
    settings = dict(value)
    config_class = load_family(kind, settings.pop("family")).Config
    try:
        return dacite.from_dict(config_class, settings, dacite.Config(strict=True, cast=[tuple]))
    except dacite.DaciteError as error:
        raise UserError(f"{kind} encoder {value['family']}: {error}") from error
