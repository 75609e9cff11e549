"""Layers after a transformer that make one vector per caption: pooling, and what sentence-transformers adds to it.

`PoolingLayer` computes the modes of sentence-transformers 6.2 (sentence_transformer/modules/pooling.py), of which the
paper's first token is 'cls'. The library itself isn't used, because a trained model has to load from the files that
`save_tokenizer` writes, without the library's own, and because it imports the classes that a modules.json names. The
tests compare with it.

Shapes: B captions, L tokens, W width.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.errors import UserError
from trainables.encoders import model_files, published

LAYERS_FILE = "sentence_layers.json"
"""File beside a saved tokenizer with the layers' settings, from which `restore_layers` builds them again."""

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Modes of sentence-transformers, in the order in which it concatenates them."""

POOLING_MODE = {"first": "cls", "mean": "mean", "last": "lasttoken", "own": "cls"}
"""Modes by the names that a Config of `trainables.encoders.text.huggingface` gives them. A vector that the model itself
has pooled is like an only token.
"""

OLD_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Settings of the modes in config.json files of sentence-transformers before version 5."""

FileFinder = Callable[[str], Path | None]
"""Function from a path within a model to the local file, which is downloaded if necessary; None if there is none."""


class PoolingLayer(nn.Module):
    """Layer that makes one vector per caption out of a vector per token. It pools the tokens by each of its modes, such
    as 'mean', and concatenates the results.
    """

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, states_BLW: Tensor, mask_BL: Tensor) -> Tensor:
        """Return one vector per caption [B, W x modes], given the vectors of its tokens [B, L, W] and the mask of
        tokens [B, L]. Each caption's tokens come first, then padding.
        """
        return torch.cat([self.pool(mode, states_BLW, mask_BL) for mode in self.modes], dim=1)

    def pool(self, mode: str, states_BLW: Tensor, mask_BL: Tensor) -> Tensor:
        """Return one vector per caption [B, W], pooled from the vectors of its tokens [B, L, W] by one mode, such as
        'mean'. `mask_BL` is 0 for padding.
        """
        if mode == "cls":
            return states_BLW[:, 0]
        if mode == "lasttoken":
            return states_BLW[torch.arange(len(mask_BL), device=mask_BL.device), mask_BL.sum(dim=1) - 1]
        if mode == "max":
            return states_BLW.masked_fill(mask_BL.unsqueeze(2) == 0, float("-inf")).amax(dim=1)
        mask_BL1 = mask_BL.unsqueeze(2).to(states_BLW.dtype)
        if mode == "weightedmean":
            positions_L1 = torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device).unsqueeze(1)
            mask_BL1 = mask_BL1 * positions_L1.to(states_BLW.dtype)
        count_B1 = mask_BL1.sum(dim=1)
        return (states_BLW * mask_BL1).sum(dim=1) / (count_B1.sqrt() if mode == "mean_sqrt_len_tokens" else count_B1)


class DenseLayer(nn.Module):
    """Linear layer with an activation, such as torch.nn.Tanh, and optionally with a residual connection."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, activation: str, use_residual: bool = False
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation: nn.Module = getattr(nn, activation)()
        self.use_residual = use_residual
        self.residual: nn.Module = nn.Identity()
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors_BW: Tensor) -> Tensor:
        """Return the vectors [B, out_features] of vectors [B, in_features]."""
        outputs: Tensor = self.activation(self.linear(vectors_BW))
        return outputs + self.residual(vectors_BW) if self.use_residual else outputs


class NormalizeLayer(nn.Module):
    """Layer that scales vectors to length 1."""

    def forward(self, vectors_BW: Tensor) -> Tensor:
        """Return the vectors [B, W] divided by their lengths."""
        return nn.functional.normalize(vectors_BW, dim=-1)


class SentenceLayers(nn.Module):
    """Pooling and the layers after it, with the settings that determine a caption's tokens.

    Args:
        settings: Pooling modes under `modes`, and under `layers` a list of dicts, each with a `kind`; optionally a
            `prompt` in front of every caption, and `max_tokens`.
        width: Size of the transformer's output.
    """

    def __init__(self, settings: dict[str, Any], width: int) -> None:
        super().__init__()
        self.settings = settings
        self.prompt: str = settings.get("prompt", "")
        self.max_tokens: int | None = settings.get("max_tokens")
        self.pooling = PoolingLayer(settings["modes"])
        self.width = width * len(settings["modes"])
        layers: list[nn.Module] = []
        for description in settings["layers"]:
            layer_settings = dict(description)
            kind = layer_settings.pop("kind")
            if kind == "Dense":
                if layer_settings["in_features"] != self.width:
                    raise UserError(f"a dense layer takes {layer_settings['in_features']} numbers, not {self.width}")
                layers.append(DenseLayer(**layer_settings))
                self.width = layer_settings["out_features"]
            elif kind == "Normalize":
                layers.append(NormalizeLayer())
            elif kind == "LayerNorm":
                layers.append(nn.LayerNorm(self.width))
            else:
                layers.append(nn.Dropout(layer_settings["rate"]))
        self.layers = nn.Sequential(*layers)

    def forward(self, states_BLW: Tensor, mask_BL: Tensor) -> Tensor:
        """Return one vector per caption [B, self.width], given the transformer's output for its tokens [B, L, W] and
        the mask of tokens [B, L].
        """
        vectors: Tensor = self.layers(self.pooling(states_BLW, mask_BL))
        return vectors


def plain_layers(pooling: str, width: int) -> SentenceLayers:
    """Return pooling alone, without further layers, for a transformer of this width; `pooling` is its name in the
    Config of `trainables.encoders.text.huggingface`.
    """
    return SentenceLayers({"modes": [POOLING_MODE[pooling]], "layers": []}, width)


def load_layers(modules: Sequence[model_files.Module], find_file: FileFinder, width: int) -> SentenceLayers:
    """Return the layers that a modules.json lists after its transformer, with their weights. `modules` is its content;
    `find_file` returns the local path of a file of the model, and `width` is the size of the transformer's output.

    Raises UserError if a module is unknown or malformed, or if its weights are missing or don't match.
    """
    first, *others = modules
    settings: dict[str, Any] = {"modes": [], "layers": [], **read_token_settings(first, find_file)}
    for module in others:
        description = describe_module(module, read_config(module, find_file))
        if module.kind == "Pooling" and not settings["modes"] and not settings["layers"]:
            if settings.get("prompt") and not description["include_prompt"]:
                raise UserError(f"{module.folder}: pooling without the prompt's tokens isn't supported")
            settings["modes"] = description["modes"]
        elif module.kind == "Pooling" or not settings["modes"]:
            raise UserError(f"{model_files.MODULES_FILE} must list one Pooling, directly after the Transformer")
        else:
            settings["layers"].append(description)
    if not settings["modes"]:
        raise UserError(f"{model_files.MODULES_FILE} lists no Pooling, so that it has no vector per sentence")
    layers = SentenceLayers(settings, width)
    for module, layer in zip(others[1:], layers.layers, strict=True):
        if any(True for _ in layer.parameters()):
            load_layer_weights(layer, module, find_file)
    return layers


def restore_layers(folder: Path, pooling: str, width: int) -> SentenceLayers:
    """Return the layers whose settings `save_settings` wrote to a folder, without their weights. If the folder has no
    such settings, return a layer for `pooling` alone. `width` is the size of the transformer's output.
    """
    path = folder / LAYERS_FILE
    return SentenceLayers(model_files.read_json(path), width) if path.is_file() else plain_layers(pooling, width)


def save_settings(layers: SentenceLayers, folder: Path) -> None:
    """Write the settings of layers that come from a modules.json to a folder. Nothing is written if there is a single
    pooling mode without further layers or settings, since the trial's config contains that mode.
    """
    if layers.settings.keys() != {"modes", "layers"} or layers.settings["layers"] or len(layers.pooling.modes) > 1:
        (folder / LAYERS_FILE).write_text(json.dumps(layers.settings, indent=2) + "\n", encoding="utf-8")


def read_config(module: model_files.Module, find_file: FileFinder) -> dict[str, Any]:
    """Return the config.json of a module, which `find_file` locates; an empty dict for a module without one. Raises
    UserError if it is malformed.
    """
    path = find_file(f"{module.folder}/{model_files.CONFIG_FILE}")
    config = model_files.read_json(path) if path else {}
    if not isinstance(config, dict):
        raise UserError(f"{path}: it must be an object with settings by name")
    return config


def read_token_settings(body: model_files.Module, find_file: FileFinder) -> dict[str, Any]:
    """Return those settings of sentence-transformers that change a caption's tokens: `max_tokens` and the default
    `prompt`, if there are any. `body` is the module of the transformer, whose files `find_file` locates.
    """
    settings: dict[str, Any] = {}
    sentence_file, prompts_file = model_files.SENTENCE_CONFIG_FILES
    if path := find_file(f"{body.folder}/{sentence_file}".removeprefix("/")):
        max_tokens = model_files.read_json(path).get("max_seq_length")
        settings |= {"max_tokens": max_tokens} if isinstance(max_tokens, int) else {}
    if path := find_file(prompts_file):
        prompts = model_files.read_json(path)
        name = prompts.get("default_prompt_name")
        prompt = (prompts.get("prompts") or {}).get(name) if name else None
        settings |= {"prompt": prompt} if prompt else {}
    return settings


def describe_module(module: model_files.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a module after the transformer as a dict: for a Pooling its pooling modes, otherwise the
    kind of the layer and its sizes or rates. `config` is the module's config.json. Raises UserError for a kind of
    module that isn't supported, or for unusable settings.
    """
    try:
        if module.kind == "Pooling":
            return {"modes": read_modes(config), "include_prompt": config.get("include_prompt", True)}
        if module.kind == "Dense":
            return {
                "kind": "Dense",
                "in_features": int(config["in_features"]),
                "out_features": int(config["out_features"]),
                "bias": bool(config.get("bias", True)),
                "activation": read_activation(config.get("activation_function", "torch.nn.modules.activation.Tanh")),
                "use_residual": bool(config.get("use_residual", False)),
            }
        if module.kind == "Dropout":
            return {"kind": "Dropout", "rate": float(config.get("dropout", 0.2))}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{module.folder}/{model_files.CONFIG_FILE} has unusable settings ({error!r})") from error
    if module.kind in ("Normalize", "LayerNorm"):
        return {"kind": module.kind}
    raise UserError(
        f"{model_files.MODULES_FILE} lists a module {module.kind}: only Transformer, Pooling, Dense, Normalize, "
        "LayerNorm and Dropout are supported"
    )


def read_modes(config: dict[str, Any]) -> list[str]:
    """Return the pooling modes in the config.json of a Pooling module. Raises ValueError if one is unknown."""
    if (mode := config.get("pooling_mode")) is not None:
        modes = [mode] if isinstance(mode, str) else list(mode)
    else:
        modes = [mode for mode in POOLING_MODES if config.get(OLD_POOLING_KEYS[mode], False)] or ["mean"]
    if unknown := [mode for mode in modes if mode not in POOLING_MODES]:
        raise ValueError(f"unknown pooling mode {unknown[0]!r}")
    return modes


def read_activation(path: str) -> str:
    """Return the name of a class of torch.nn, such as 'Tanh', for its import path in the config.json of a Dense module.
    Raises ValueError for anything else, since it would be code from outside torch.
    """
    name = path.split(".")[-1]
    is_known = name == "Identity" or hasattr(nn.modules.activation, name)
    if not path.startswith("torch.nn.") or not is_known:
        raise ValueError(f"the activation {path!r} isn't one of torch.nn")
    return name


def load_layer_weights(layer: nn.Module, module: model_files.Module, find_file: FileFinder) -> None:
    """Load the weights of a module, whose files `find_file` locates, into its layer. Raises UserError if they are
    missing or don't match.
    """
    safe, torch_file = (find_file(f"{module.folder}/{names[0]}") for names in model_files.WEIGHT_FILES)
    path = safe or torch_file
    if path is None:
        raise UserError(f"{module.folder} holds no weights: copy the model's files again, subfolders included")
    weights = load_file(path) if safe else published.read_state_dict(path)
    # sentence-transformers' LayerNorm holds torch's as its attribute `norm`.
    published.load_weights(layer, {name.removeprefix("norm."): tensor for name, tensor in weights.items()}, path)
