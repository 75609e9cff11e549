"""Models that users bring as `huggingface:FOLDER`: what is loaded of each kind of folder, and what is refused and why.

All are real models of transformers, tiny and with random weights, and real folders of sentence-transformers, whose
vectors the library itself computes for comparison.
"""

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    FunnelConfig,
    FunnelModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    LongformerConfig,
    LongformerModel,
    PegasusConfig,
    PegasusModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetModel,
)

from data.captions import normalise
from data.errors import UserError
from trainables import encoders
from trainables.encoders import published
from trainables.encoders.audio import cnn
from trainables.encoders.text import huggingface, transformer
from trainables.encoders.text.huggingface import Config
from trainables.networks import dual_encoder, load_network_module, validation
from trainables.networks.validation import SENTENCES, require_working_encoders
from trainables.records import checkpoint
from trainables.training.embedding import embed_text as embed_sentences
from trainables.training.train import Callbacks, TrainingStart, train

CAPTIONS = [*SENTENCES, "rain", "a dog barks while rain falls on a car"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
VOCABULARY = [*SPECIAL, *sorted({word for caption in CAPTIONS for word in caption.split()})]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SEQ2SEQ = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
VOCAB = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

KINDS = {
    "bert": lambda **more: BertModel(BertConfig(**SIZES, **VOCAB, **more)),
    "roberta": lambda **more: RobertaModel(RobertaConfig(**SIZES, **{**VOCAB, "pad_token_id": 1}, **more)),
    "gpt2": lambda **more: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **VOCAB, **more)),
    "llama": lambda **more: LlamaModel(LlamaConfig(**SIZES, **VOCAB, **more)),
    "t5": lambda **more: T5ForConditionalGeneration(T5Config(**T5_SIZES, **VOCAB, **more)),
    "t5-encoder": lambda **more: T5EncoderModel(T5Config(**T5_SIZES, **VOCAB, **more)),
    "bart": lambda **more: BartModel(BartConfig(**SEQ2SEQ, **VOCAB, **more)),
}
WITH_UNUSED_WEIGHTS = {
    "longformer": lambda: LongformerModel(
        LongformerConfig(**SIZES, **{**VOCAB, "pad_token_id": 1}, attention_window=4)
    ),
    "pegasus": lambda: PegasusModel(PegasusConfig(**SEQ2SEQ, **VOCAB)),
    "xlnet": lambda: XLNetModel(XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64, vocab_size=len(VOCABULARY))),
}
DECODER_ONLY = ("gpt2", "llama")


def write_tokenizer(folder, with_padding=True, with_ends=True, vocabulary=VOCABULARY, side="right"):
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if with_ends:
        words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    padding = {"pad_token": "<pad>"} if with_padding else {}
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", padding_side=side, **padding).save_pretrained(
        folder
    )


def write_model(folder, kind, with_padding=True, tokenizer=True, **more):
    torch.manual_seed(0)
    (KINDS | WITH_UNUSED_WEIGHTS)[kind](**more).save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder, with_padding, with_ends=kind not in DECODER_ONLY)
    return folder


def build(config):
    return load_network_module(config).build(config, CAPTIONS).eval()


@torch.no_grad()
def embed(encoder, captions):
    return encoder(encoder.tokenize(captions))


@pytest.fixture
def check(trial):
    """A function that validates a trial with a text encoder, as pretrain.py and a sweep do."""
    return lambda config: require_working_encoders([replace(trial, text=config)], None)


# Kinds of models.


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [(kind, pooling) for kind in KINDS for pooling in ("mean", "last" if kind in DECODER_ONLY else "first")],
)
@pytest.mark.parametrize("with_padding", [True, False])
def test_every_kind_of_model_embeds_each_caption_by_itself_and_is_restored(
    kind, pooling, with_padding, tmp_path, check
):
    config = Config(str(write_model(tmp_path / kind, kind, with_padding)), pooling=pooling)
    check(config)
    encoder = build(config)
    together = embed(encoder, CAPTIONS)
    for caption, vector in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(embed(encoder, [caption])[0], vector, rtol=0, atol=1e-6)
    (tmp_path / "saved").mkdir()
    encoder.save_tokenizer(tmp_path / "saved")
    restored = load_network_module(config).restore(config, tmp_path / "saved").eval()
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(embed(restored, CAPTIONS), together)


@pytest.mark.parametrize("kind", ["t5", "t5-encoder", "bart"])
def test_of_an_encoder_decoder_model_the_encoder_is_used(kind, tmp_path, capsys):
    folder = write_model(tmp_path / kind, kind)
    capsys.readouterr()
    encoder = build(Config(str(folder)))
    assert "MISSING" not in capsys.readouterr().err
    reference = KINDS[kind]().from_pretrained(folder).eval().get_encoder()
    tokens = encoder.tokenize(CAPTIONS)
    with torch.no_grad():
        states = reference(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
    torch.testing.assert_close(embed(encoder, CAPTIONS), states[:, 0])
    assert not [name for name in encoder.state_dict() if "decoder" in name]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_model_without_its_embeddings_is_refused(kind, tmp_path):
    path = write_model(tmp_path / kind, kind) / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if "shared" not in name and "embed" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="names are missing"):
        build(Config(str(path.parent)))


@pytest.mark.parametrize("kind", DECODER_ONLY)
def test_a_decoder_only_model_with_the_first_token_is_refused_with_the_remedy(kind, tmp_path, check):
    folder = write_model(tmp_path / kind, kind)
    with pytest.raises(UserError, match=f"huggingface:{kind} returned the same vector .* pooling 'last' or 'mean'"):
        check(Config(str(folder)))


def test_padding_on_the_left_is_not_used(tmp_path):
    """A decoder-only model is often published with it; the first tokens would be padding."""
    folder = write_model(tmp_path / "gpt2", "gpt2", tokenizer=False)
    write_tokenizer(folder, with_ends=False, side="left")
    encoder = build(Config(str(folder), pooling="last"))
    torch.testing.assert_close(embed(encoder, ["rain"])[0], embed(encoder, ["rain", CAPTIONS[3]])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_and_activation_checkpointing_reach_every_kind_of_model(kind, tmp_path, trial):
    """Also where the library calls the rate `pdrop`; a cache of keys and values would be filled twice."""
    pooling = "last" if kind in DECODER_ONLY else "first"
    config = Config(str(write_model(tmp_path / kind, kind)), dropout=0.4, pooling=pooling)
    encoder = build(config)
    assert {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)} <= {0.4}
    assert not torch.equal(embed(encoder.train(), CAPTIONS), embed(encoder, CAPTIONS))
    network = dual_encoder.build(replace(trial, text=replace(config, dropout=0.0)), CAPTIONS)
    tokens = network.text.tokenize(CAPTIONS)

    def gradients():
        network.zero_grad()
        network.embed_text(tokens)[:, 0].sum().backward()
        return [parameter.grad.clone() for parameter in network.text.parameters()]

    before = gradients()
    dual_encoder.checkpoint_activations(network)
    torch.testing.assert_close(gradients(), before)


@pytest.mark.parametrize(
    ("kind", "more", "limit"),
    [
        ("bert", {"max_position_embeddings": 16}, 16),
        ("roberta", {"max_position_embeddings": 16}, 14),
        ("gpt2", {"n_positions": 16}, 16),
        ("bart", {"max_position_embeddings": 16}, 16),
        ("t5", {}, 32),
    ],
)
def test_captions_are_cut_to_the_positions_of_the_model(kind, more, limit, tmp_path, check, caplog):
    config = Config(str(write_model(tmp_path / kind, kind, **more)), pooling="mean")
    check(config)
    assert ("max_tokens is 32" in caplog.text) == (limit < 32)
    encoder = build(config)
    assert encoder.tokenize([validation.LONG_SENTENCE]).ids.shape == (1, limit)
    assert embed(encoder, [validation.LONG_SENTENCE]).isfinite().all()


def test_a_model_whose_vectors_depend_on_padding_is_refused(tmp_path, check):
    """Funnel pools over neighbouring tokens, padding included."""
    shape = {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]}
    torch.manual_seed(0)
    FunnelModel(FunnelConfig(**shape, vocab_size=len(VOCABULARY))).save_pretrained(tmp_path / "funnel")
    write_tokenizer(tmp_path / "funnel")
    with pytest.raises(UserError, match=r"huggingface:funnel returned another vector for 'a dog barks' in a batch"):
        check(Config(str(tmp_path / "funnel")))


@pytest.mark.parametrize("kind", ["longformer", "pegasus", "xlnet"])
def test_weights_that_take_no_part_are_not_trained(kind, tmp_path, check):
    """With several ranks, DDP would wait for their gradients. The same ones are left out when a model is restored."""
    config = Config(str(write_model(tmp_path / kind, kind)))
    check(config)
    encoder = build(config).train()
    encoder(encoder.tokenize(CAPTIONS)).square().sum().backward()
    frozen = {name for name, one in encoder.named_parameters() if not one.requires_grad}
    assert frozen
    assert not [name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None]
    (tmp_path / "saved").mkdir()
    encoder.save_tokenizer(tmp_path / "saved")
    restored = load_network_module(config).restore(config, tmp_path / "saved")
    assert {name for name, one in restored.named_parameters() if not one.requires_grad} == frozen


# What is refused.


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, check):
    folder = write_model(tmp_path / "bert", "bert", tokenizer=False)
    with pytest.raises(UserError, match=r"holds no tokenizer.*put the tokenizer's files there"):
        check(Config(str(folder)))


def test_a_tokenizer_that_knows_no_word_is_refused(tmp_path, check):
    folder = write_model(tmp_path / "bert", "bert", tokenizer=False)
    write_tokenizer(folder, vocabulary=[*SPECIAL, "ein", "hund"])
    with pytest.raises(
        UserError, match=r"huggingface:bert: the tokenizer makes the same tokens .* knows none of their words"
    ):
        check(Config(str(folder)))


def test_the_tokenizer_of_a_larger_model_is_refused(tmp_path, check):
    folder = write_model(tmp_path / "bert", "bert", tokenizer=False)
    write_tokenizer(folder, vocabulary=[*VOCABULARY, *(f"word{number}" for number in range(100))])
    with pytest.raises(UserError, match=rf"has {len(VOCABULARY) + 100} tokens, .* vectors for {len(VOCABULARY)}"):
        check(Config(str(folder)))


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("marker").touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Evil(PretrainedConfig):
    model_type = "evil"
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
@pytest.mark.parametrize("use", ["build", "restore", "flops"])
def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(kind, use, tmp_path, monkeypatch, trial):
    """The library would ask on standard input, which holds the sentences of a search."""
    folder = write_model(tmp_path / "model", "bert")
    config = Config(str(folder), pooling="mean")
    (folder / "evil.py").write_text(EVIL)
    file = folder / {"config": "config.json", "tokenizer": "tokenizer_config.json"}[kind]
    changes = {
        "config": {"model_type": "evil", "architectures": ["Evil"], "auto_map": {"AutoConfig": "evil.Evil"}},
        "tokenizer": {
            "tokenizer_class": "EvilTokenizer",
            "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]},
        },
    }[kind]
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\nrain\n"))
    before = set(tmp_path.rglob("*"))
    load = {
        "build": build,
        "restore": lambda config: load_network_module(config).restore(config, folder),
        "flops": lambda config: huggingface.flops(config, 10),
    }[use]
    if kind == "tokenizer":  # transformers has a class of its own for it
        assert load(config)
    else:
        with pytest.raises(UserError, match=r"needs Python code that comes with the model .* never run"):
            load(config)
    assert sys.stdin.read() == "y\nrain\n"
    assert set(tmp_path.rglob("*")) == before


def test_transformers_is_called_where_code_of_a_model_is_refused_alone():
    """A call elsewhere could leave `trust_remote_code` out."""
    calls = re.compile(r"Auto\w+\.from_\w+|import .*\bAuto[A-Z]|trust_remote_code")
    modules = [path for package in ("data", "trainables", "sweeps", "ensemble") for path in Path(package).rglob("*.py")]
    assert modules
    assert [path.name for path in modules if calls.search(path.read_text())] == ["pretrained_files.py"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["word_embeddings.weight", "layer.1.output.dense.bias"])
def test_weights_that_are_not_finite_are_refused(name, value, tmp_path, check):
    """Also where no sentence of the validation has the word."""
    path = write_model(tmp_path / "bert", "bert") / "model.safetensors"
    weights = load_file(path)
    next(tensor for key, tensor in weights.items() if name in key)[-1] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"weights that aren't finite, 1 tensors .*{name}"):
        check(Config(str(path.parent)))


def test_a_published_audio_checkpoint_that_is_not_finite_is_refused(tmp_path):
    layer = nn.Linear(2, 2)
    torch.save({"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}, tmp_path / "audio.pt")
    with pytest.raises(UserError, match=r"audio\.pt has weights that aren't finite"):
        published.load_checkpoint(layer, tmp_path / "audio.pt")


class Wrapped(nn.Module):
    """An encoder whose output is changed."""

    def __init__(self, encoder, change):
        super().__init__()
        self.encoder, self.change, self.width = encoder, change, encoder.width
        self.tokenize = getattr(encoder, "tokenize", None)

    def forward(self, *inputs):
        return self.change(self.encoder(*inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vectors: vectors[:, :-1], r"must return a tensor \[\d, \d+\]"),
        (lambda vectors: vectors[0], "must return a tensor"),
        (lambda vectors: [vectors], "returned list"),
        (lambda vectors: vectors * float("nan"), "NaN or infinity"),
        (lambda vectors: vectors[:1].expand_as(vectors), "same vector"),
        (lambda vectors: vectors - vectors.mean(dim=0), "another vector for .* in a batch than alone"),
    ],
)
def test_encoders_of_both_kinds_that_break_the_contract_are_refused(change, message, trial):
    text, audio = transformer.VARIANTS["shallow"], trial.audio
    with pytest.raises(UserError, match=rf"transformer:shallow.*{message}"):
        validation.require_working_text_encoder(text, Wrapped(load_network_module(text).build(text, CAPTIONS), change))
    with pytest.raises(UserError, match=rf"cnn:custom.*{message}"):
        validation.require_working_audio_encoder(audio, Wrapped(load_network_module(audio).build(audio), change))


def test_an_encoder_that_raises_is_named(trial, monkeypatch):
    module = load_network_module(trial.audio)
    broken = module.build(trial.audio)
    broken.layers = nn.Linear(3, 3)
    monkeypatch.setattr(module, "build", lambda *_: broken)
    with pytest.raises(UserError, match=r"the encoder cnn:custom can't be built or can't embed: RuntimeError"):
        require_working_encoders([trial], None)


def test_built_in_encoders_pass(trial):
    require_working_encoders([replace(trial, audio=cnn.VARIANTS["small5"], text=transformer.VARIANTS["small"])], None)


# Folders of sentence-transformers.


def write_sentence_model(folder, kind="bert", pooling=("mean",), dense=None, body="", normalize=True, old=True, **more):
    """A folder as sentence-transformers writes it, since version 5 or (`old`) before."""
    write_model(folder / body, kind, **more)
    root = "sentence_transformers.models" if old else "sentence_transformers.sentence_transformer.modules"
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    folders = [body, *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{root}.{kind}" if old else new_path(kind)}
        for number, (kind, path) in enumerate(zip(kinds, folders, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path in folders[1:]:
        (folder / path).mkdir()
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken",
            "weightedmean": "weightedmean_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens"}  # fmt: skip
    settings = {"word_embedding_dimension": 32} | {f"pooling_mode_{key}": name in pooling for name, key in keys.items()}
    new_settings = {"embedding_dimension": 32, "pooling_mode": pooling[0] if len(pooling) == 1 else list(pooling)}
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings if old else new_settings))
    if dense:
        width = 32 * len(pooling)
        activation = "torch.nn.modules.activation.Tanh"
        config = {"in_features": width, "out_features": 24, "bias": True, "activation_function": activation}
        (folder / "2_Dense/config.json").write_text(json.dumps(config))
        torch.manual_seed(1)
        weights = {"linear.weight": torch.randn(24, width) / 4, "linear.bias": torch.randn(24) / 4}
        if dense == "safetensors":
            save_file(weights, folder / "2_Dense/model.safetensors")
        else:
            torch.save(weights, folder / "2_Dense/pytorch_model.bin")
    (folder / body / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')
    return folder


def new_path(kind):
    root = "sentence_transformers.base.modules"
    if kind == "Pooling":
        root = "sentence_transformers.sentence_transformer.modules"
    return f"{root}.{kind.lower()}.{kind}"


@pytest.fixture(scope="module")
def library():
    """A function that embeds captions with sentence-transformers."""
    import sentence_transformers

    def encode(folder, captions):
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        return model.encode(captions, convert_to_tensor=True, show_progress_bar=False)

    return encode


LAYOUTS = {
    "mean": {},
    "cls": {"pooling": ("cls",)},
    "max": {"pooling": ("max",), "old": False},
    "last": {"pooling": ("lasttoken",), "kind": "gpt2"},
    "weighted": {"pooling": ("weightedmean",), "kind": "gpt2", "dense": "pytorch_model.bin"},
    "sqrt": {"pooling": ("mean_sqrt_len_tokens",), "normalize": False},
    "two": {"pooling": ("cls", "mean"), "dense": "safetensors", "normalize": False},
    "two, new": {"pooling": ("mean", "cls"), "dense": "safetensors", "old": False},
    "t5": {"kind": "t5-encoder", "dense": "pytorch_model.bin"},
    "subfolder": {"body": "0_Transformer", "dense": "safetensors"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the library's own
def test_a_sentence_transformers_folder_embeds_as_the_library_does(layout, tmp_path, library, check):
    folder = write_sentence_model(tmp_path / "model", **LAYOUTS[layout])
    config = Config(str(folder))
    check(config)
    encoder = build(config)
    vectors, expected = embed(encoder, CAPTIONS), library(folder, CAPTIONS)
    assert vectors.shape == expected.shape
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    (tmp_path / "saved").mkdir()
    encoder.save_tokenizer(tmp_path / "saved")
    shutil.rmtree(folder)
    restored = load_network_module(config).restore(config, tmp_path / "saved").eval()
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(embed(restored, CAPTIONS), vectors)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_default_prompt_and_the_maximum_length_of_the_folder_are_used(tmp_path, library):
    folder = write_sentence_model(tmp_path / "model", pooling=("mean",))
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "rain falls "}, "default_prompt_name": "query"})
    )
    captions = [*CAPTIONS, normalise(validation.LONG_SENTENCE)]
    encoder = build(Config(str(folder)))
    assert encoder.tokenize(captions).ids.shape[1] == 24
    torch.testing.assert_close(embed(encoder, captions), library(folder, captions), rtol=0, atol=1e-5)


def test_a_pooling_that_contradicts_the_folder_is_refused(tmp_path):
    folder = write_sentence_model(tmp_path / "model", pooling=("cls",), dense="safetensors")
    with pytest.raises(UserError, match=r"pooling is 'mean', but its modules\.json defines cls"):
        build(Config(str(folder), pooling="mean"))
    same = write_sentence_model(tmp_path / "same", pooling=("mean",), dense="safetensors")
    assert build(Config(str(same), pooling="mean")).width == 24


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_module(folder, number, name):
    modules = json.loads((folder / "modules.json").read_text())
    modules[number]["type"] = name
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "modules.json").write_text("{"), r"modules\.json can't be read"),
        (lambda folder: (folder / "modules.json").write_text("[3]"), r"modules\.json isn't a list"),
        (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "2_Dense holds no weights"),
        (lambda folder: (folder / "2_Dense/model.safetensors").write_bytes(b"0" * 30), "can't be loaded"),
        (lambda folder: (folder / "2_Dense/config.json").unlink(), "2_Dense/config.json has unusable settings"),
        (lambda folder: edit_json(folder / "2_Dense/config.json", out_features=5), "shapes differ"),
        (lambda folder: edit_json(folder / "2_Dense/config.json", in_features=5), "a dense layer takes 5 numbers"),
        (
            lambda folder: edit_json(folder / "2_Dense/config.json", activation_function="os.system"),
            "'os.system' isn't one of torch.nn",
        ),
        (lambda folder: edit_json(folder / "1_Pooling/config.json", pooling_mode="median"), "mode 'median'"),
        (lambda folder: rename_module(folder, 2, "sentence_transformers.models.LSTM"), "lists a module LSTM"),
        (lambda folder: rename_module(folder, 2, "my_code.Dense"), r"needs the module 'my_code\.Dense'"),
        (lambda folder: rename_module(folder, 1, "sentence_transformers.models.Normalize"), "directly after"),
        (lambda folder: rename_module(folder, 0, "sentence_transformers.models.BoW"), "doesn't begin with"),
    ],
)
def test_a_damaged_sentence_transformers_folder_is_refused(damage, message, tmp_path):
    folder = write_sentence_model(tmp_path / "model", dense="safetensors")
    damage(folder)
    with pytest.raises(UserError, match=f"text encoder '{folder}'.*{message}"):
        build(Config(str(folder)))


# Signatures and names.


def test_only_weights_tokenizer_and_configuration_are_signed(tmp_path):
    folder = write_sentence_model(tmp_path / "model", dense="safetensors")
    config = Config(str(folder))
    before = huggingface.weights_fingerprint(config)
    for name in ("README.md", "training_args.bin", "optimizer.pt", "trainer_state.json", "tf_model.h5", ".gitignore",
                 "generation_config.json", "pytorch_model.bin", "adapter.safetensors"):  # fmt: skip
        (folder / name).write_bytes(b"anything")
    assert huggingface.weights_fingerprint(config) == before
    signed = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json",
              "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json",
              "2_Dense/model.safetensors"]  # fmt: skip
    for name in signed:
        contents = (folder / name).read_bytes()
        (folder / name).write_bytes(contents + b" ")
        assert huggingface.weights_fingerprint(config) != before, name
        (folder / name).write_bytes(contents)
    assert huggingface.weights_fingerprint(config) == before


def test_torch_files_and_shards_are_signed(tmp_path):
    folder = write_model(tmp_path / "bert", "bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        huggingface.weights_fingerprint(Config(str(folder)))
    torch.save(weights, folder / "pytorch_model.bin")
    first = huggingface.weights_fingerprint(Config(str(folder)))
    (folder / "pytorch_model.bin").unlink()
    BertModel(BertConfig(**SIZES, **VOCAB)).save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    second = huggingface.weights_fingerprint(Config(str(folder)))
    assert first != second
    shards[-1].write_bytes(shards[-1].read_bytes() + b" ")
    assert huggingface.weights_fingerprint(Config(str(folder))) != second


def test_a_folder_is_chosen_by_its_path_and_shown_by_its_name(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "my-model", "bert")
    monkeypatch.chdir(tmp_path)
    for path in (folder, "my-model", "./my-model"):
        config = encoders.config_of_variant("text", f"huggingface:{path}")
        assert config == Config(str(folder))
        assert encoders.format_label(config) == "huggingface:my-model"
    last = encoders.config_of_variant("text", "huggingface:my-model:last")
    assert last == Config(str(folder), pooling="last")
    assert encoders.format_label(last) == "huggingface:my-model:last"
    namesake = write_model(tmp_path / "roberta-large", "bert")
    assert encoders.format_label(Config(str(namesake))) == f"huggingface:{tmp_path.name}/roberta-large"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("intfloat/e5-small-v2", Config("intfloat/e5-small-v2")),
        ("intfloat/e5-small-v2@ffb93f3", Config("intfloat/e5-small-v2", "ffb93f3")),
        ("openai/gpt@main:last", Config("openai/gpt", "main", pooling="last")),
    ],
)
def test_a_model_of_the_hub_is_chosen_by_its_id(name, config):
    assert encoders.config_of_variant("text", f"huggingface:{name}") == config
    assert encoders.format_label(config) == f"huggingface:{name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/model", r"/no/such/model doesn't exist: give the folder of a model"),
        ("./model", r"model doesn't exist"),
        ("{folder}/file", "file isn't a folder"),
        ("{folder}", r"has no config\.json and no model\.safetensors"),
        ("gpt", "known: .*huggingface:bert-base.*huggingface:FOLDER"),
        ("", "known: .*huggingface:bert-base"),
        (":last", "known"),
    ],
)
def test_a_name_that_is_no_model_is_refused_with_what_is_possible(name, message, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        encoders.config_of_variant("text", f"huggingface:{name.format(folder=tmp_path)}")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "bart"])
def test_the_cost_of_a_folder_is_estimated_from_its_configuration(kind, tmp_path):
    folder = write_model(tmp_path / kind, kind)
    expected = huggingface.operations.count_transformer(10, 2, 32)
    assert huggingface.flops(Config(str(folder)), 10) == expected
    nested = write_sentence_model(tmp_path / "nested", kind=kind, body="0_Transformer")
    assert huggingface.flops(Config(str(nested)), 10) == expected


def test_a_model_without_a_size_is_not_estimated(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert huggingface.flops(Config(str(Path(tmp_path))), 10) is None


# The commands.


def test_pretraining_refuses_a_model_before_it_claims_the_trial(store, tmp_path, call_command):
    """No cluster is started: the model is refused first, and a sweep that has no such trial isn't held up."""
    folder = write_model(tmp_path / "my-gpt", "gpt2")
    runs = tmp_path / "runs"
    done = call_command(
        "trainables/pretrain.py", "--corpus", "synthetic", "--store", store, "--runs", runs,
        "--text", f"huggingface:{folder}",
    )  # fmt: skip
    assert done.returncode != 0
    assert "huggingface:my-gpt returned the same vector" in done.stderr
    assert "huggingface:MODEL:last" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(runs.glob("trials/*"))


def test_a_trial_with_a_folder_trains_and_its_model_loads_without_it(store, trial, tmp_path):
    """In this process, as a Ray worker does it: a step, a checkpoint, and the same vectors afterwards."""
    folder = write_sentence_model(tmp_path / "model", dense="safetensors")
    trial = replace(
        trial,
        text=encoders.config_of_variant("text", f"huggingface:{folder}"),
        schedule=replace(trial.schedule, epochs=1, warmup_epochs=0.1, final_epochs=0),
        paraphrase_probability=0.0,
    )
    network = train(trial, str(store), Callbacks(lambda *_: None), TrainingStart(), torch.device("cpu"))
    checkpoint.save_model(tmp_path / "trained", trial, network, checkpoint.copy_weights(network))
    shutil.rmtree(folder)
    restored = checkpoint.load_model(tmp_path / "trained")
    assert (embed_sentences(restored, trial, CAPTIONS) == embed_sentences(network, trial, CAPTIONS)).all()
    trained = network.text.state_dict()["layers.layers.0.linear.weight"]
    torch.manual_seed(1)
    assert not torch.equal(trained, torch.randn(24, 32) / 4)


def test_a_model_of_the_hub_is_loaded_with_its_layers(tmp_path, monkeypatch):
    """From the hub's local cache, which is where a download ends; a model without a modules.json is loaded, too."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    for name, width in (("sentences", 24), ("plain", 32)):
        snapshot = tmp_path / f"models--org--{name}" / "snapshots" / commit
        if name == "plain":
            write_model(snapshot, "bert")
        else:
            write_sentence_model(snapshot, body="0_Transformer", dense="safetensors")
        encoder = build(encoders.config_of_variant("text", f"huggingface:org/{name}@{commit}"))
        assert encoder.width == width
        torch.testing.assert_close(embed(encoder, CAPTIONS), embed(build(Config(str(snapshot))), CAPTIONS))
