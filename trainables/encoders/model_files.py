"""Files of a transformers or sentence-transformers model in a local folder: which of them determine its vectors.

A folder of sentence-transformers has a modules.json, which lists its modules in order: the transformer, whose files are
in the folder itself or in a subfolder, and then the pooling and further layers, each with a folder for its config.json
and its weights.
"""

import fnmatch
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.sources.json_text import parse_json
from trainables.encoders import published

MODULES_FILE = "modules.json"
SENTENCE_CONFIG_FILES = ("sentence_bert_config.json", "config_sentence_transformers.json")
"""Files of sentence-transformers with the maximum number of tokens, and with prompts."""

CONFIG_FILE = "config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",  # SentencePiece
    "*.spm",
    "*.bpe",
    "*.codes",
    "*.tiktoken",
    "dict.txt",
)
"""Names of the files that transformers' tokenizers read, with wildcards."""

EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Names of the files from which transformers reads the settings of an audio model's feature extractor."""

OTHER_FORMATS = {
    "adapter_config.json": "an adapter (PEFT), which changes another model: merge it into that model "
    "(merge_and_unload) and write the result with save_pretrained",
    "*.gguf": "weights in GGUF: use the model's folder in the format of transformers",
    "*.onnx": "weights in ONNX: use the model's folder in the format of transformers",
}
"""What a folder holds that has a file of this name, with wildcards, and what to do about it."""

WEIGHT_FILES = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
"""Names of files of weights, with wildcards; the second group is read only if a folder has none of the first."""


@dataclass(frozen=True)
class Module:
    """Entry of sentence-transformers' modules.json: the kind of a module, such as 'Pooling', and the folder of its
    files, relative to the model's; '' is that folder itself.
    """

    kind: str
    folder: str


def parse_modules(entries: Any, source: str) -> list[Module]:
    """Return the modules listed in the content of a modules.json (sentence-transformers), in order. Raises UserError,
    which begins with `source`, if it is malformed, doesn't begin with a transformer, or needs code from outside
    sentence-transformers.
    """
    try:
        ordered = sorted(entries, key=lambda entry: int(entry["idx"]))
        modules = [(str(entry["type"]), Module(str(entry["type"]).split(".")[-1], entry["path"])) for entry in ordered]
        if not all(isinstance(module.folder, str) for _, module in modules):
            raise TypeError("a path isn't text")
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise UserError(f"{source} isn't a list of sentence-transformers' modules ({error!r})") from error
    for path, module in modules:
        if not path.startswith("sentence_transformers."):
            raise UserError(f"{source} needs the module {path!r}, and code that comes with a model is never run")
        if Path(module.folder).is_absolute() or ".." in Path(module.folder).parts:
            raise UserError(f"{source}: the path {module.folder!r} isn't inside the model's folder")
    if not modules or modules[0][1].kind != "Transformer":
        raise UserError(f"{source} doesn't begin with a Transformer: only models with a transformer are supported")
    return [module for _, module in modules]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises UserError if it can't be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): copy the model's files again") from error


def read_modules(folder: Path) -> list[Module]:
    """Return the modules that the modules.json of a model's folder lists; an empty list if it has no such file."""
    path = folder / MODULES_FILE
    return parse_modules(read_json(path), str(path)) if path.is_file() else []


def find_body(folder: Path) -> Path:
    """Return the folder of a model's transformer: the model's folder itself, or the subfolder that its modules.json
    names.
    """
    modules = read_modules(folder)
    return folder / modules[0].folder if modules else folder


def require_model_folder(folder: Path) -> None:
    """Raise UserError if a folder lacks the config.json or the weights of a transformers model."""
    body = find_body(folder)
    refuse_other_formats(body)
    missing = [CONFIG_FILE] if not (body / CONFIG_FILE).is_file() else []
    missing += [WEIGHT_FILES[0][0]] if not list_weights(body) else []
    if missing:
        raise UserError(
            f"{body} isn't the folder of a transformers model, since it has no {' and no '.join(missing)}: write it "
            "with save_pretrained of the model and of its tokenizer"
        )


def refuse_other_formats(folder: Path) -> None:
    """Raise UserError if a folder holds an adapter, or if its only weights are in GGUF or ONNX (also in the subfolder
    onnx).
    """
    has_weights = bool(list_weights(folder))
    for pattern, problem in OTHER_FORMATS.items():
        is_adapter = pattern.endswith(".json")
        files = [*match_files(folder, (pattern,)), *match_files(folder / "onnx", (pattern,))]
        if files and (is_adapter or not has_weights):
            raise UserError(f"{files[0]}: the folder holds {problem}")


def list_weights(folder: Path) -> list[Path]:
    """Return the paths of the files in a folder from which weights are loaded, sorted: safetensors if there are any,
    otherwise torch's files.
    """
    for patterns in WEIGHT_FILES:
        if paths := list(match_files(folder, patterns)):
            return paths
    return []


def match_files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Yield the paths of the files directly in a folder whose names match one of the shell patterns, such as '*.json',
    sorted. Yield nothing if the folder doesn't exist.
    """
    for path in sorted(folder.iterdir() if folder.is_dir() else []):
        if path.is_file() and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            yield path


def hash_model(folder: Path, with_layers: bool, input_files: tuple[str, ...] = TOKENIZER_FILES) -> str:
    """Return the SHA-256 of the names and contents of a model's weights and configuration in a folder, and of the files
    that prepare its input, whose names match `input_files`, in hexadecimal. `with_layers` includes the layers that
    sentence-transformers' modules.json defines.

    Raises UserError if the folder has no weights, or a model in another format.
    """
    modules = read_modules(folder) if with_layers else []
    body = folder / modules[0].folder if modules else folder
    refuse_other_formats(body)
    weights = list_weights(body)
    if not weights:
        raise UserError(f"{body} holds no weights ({WEIGHT_FILES[0][0]}): copy the model's files again")
    paths = [*match_files(body, (CONFIG_FILE, *input_files)), *weights]
    if modules:
        paths += match_files(folder, (MODULES_FILE, *SENTENCE_CONFIG_FILES))
        paths += match_files(body, SENTENCE_CONFIG_FILES)
        for module in modules[1:]:
            layer = folder / module.folder
            paths += [*match_files(layer, (CONFIG_FILE,)), *list_weights(layer)]
    digest = hashlib.sha256()
    for path in sorted(set(paths), key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()}\t{published.hash_file(path)}\n".encode())
    return digest.hexdigest()
