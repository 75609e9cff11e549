"""What the built-in encoders promise beyond the contract of encoders, which test_contract.py checks."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from data.errors import UserError
from data.loading.batch import NUM_MASK_DRAWS
from data.schema import SAMPLE_RATE_HZ
from trainables import encoders
from trainables.encoders.audio import cnn, passt
from trainables.encoders.text import huggingface, transformer
from trainables.networks import load_network_module

CAPTIONS = [
    "a dog barks twice",
    "rain",
    "a bell rings and then a siren wails while rain falls",
    "a dog barks and rain falls",
]

FAMILIES = [(kind, name) for kind in ("audio", "text") for name in encoders.list_families(kind)]


def test_the_families_are_found_by_their_files():
    assert {
        ("audio", "cnn"),
        ("audio", "cnn14"),
        ("audio", "passt"),
        ("text", "huggingface"),
        ("text", "transformer"),
    } <= set(FAMILIES)


@pytest.mark.parametrize("name", ["cnn:small", "cnn:small5", "passt:tiny", "passt:tiny5"])
def test_in_training_an_audio_encoder_draws_from_the_generator_it_is_given(name):
    config = encoders.config_of_variant("audio", name)
    encoder = initial(config).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it draws from the global generator, which each rank seeds for itself
    segments = torch.rand(1, round(config.segment_s * SAMPLE_RATE_HZ), generator=torch.Generator().manual_seed(0))
    first, again, other = (embed_audio(encoder, segments, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def initial(config: Any, captions: list[str] | None = None) -> Any:
    torch.manual_seed(0)
    return load_network_module(config).build(config, *([] if captions is None else [captions]))


@torch.no_grad()
def embed_audio(encoder: Any, segments: Tensor, seed: int = 0) -> Tensor:
    draws = torch.full((len(segments), NUM_MASK_DRAWS), 0.5)
    return encoder(segments, draws, torch.Generator().manual_seed(seed))


@torch.no_grad()
def embed_text(encoder: Any, captions: list[str]) -> Tensor:
    return encoder(encoder.tokenize(captions))


def check_text_encoder(config: Any, folder: Path) -> None:
    encoder = initial(config, CAPTIONS).eval()
    together = embed_text(encoder, CAPTIONS)
    assert together.shape == (len(CAPTIONS), encoder.width)
    alone = torch.cat([embed_text(encoder, [caption]) for caption in CAPTIONS])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert torch.cdist(together, together).fill_diagonal_(1).min() > 1e-4

    folder.mkdir()
    encoder.save_tokenizer(folder)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".txt"}
    restored = load_network_module(config).restore(config, folder).eval()
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(embed_text(restored, CAPTIONS), together)

    encoder.train()
    encoder(encoder.tokenize(CAPTIONS)).square().sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]


# What is unknown.


@pytest.mark.parametrize(
    ("kind", "name", "known"),
    [
        ("audio", "vggish:small", "cnn,.* cnn14,.* passt"),
        ("audio", "", "cnn,.* cnn14,.* passt"),
        ("text", "passt:N", "huggingface,.* transformer"),
        ("audio", "cnn:enormous", "cnn:small"),
        ("audio", "passt", "passt:N, passt:S, passt:S15, passt:tiny"),
        ("text", "huggingface:gpt", "huggingface:bert-base, huggingface:bert-large"),
    ],
)
def test_an_unknown_encoder_is_answered_with_the_known_ones(kind, name, known):
    with pytest.raises(UserError, match=known):
        encoders.config_of_variant(kind, name)


def test_a_config_that_is_no_variant_is_labelled_custom():
    assert encoders.format_label(replace(cnn.VARIANTS["small"], dropout=0.5)) == "cnn:custom"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"dropout": "much"}, "dropout"),
        ({"front_end": {"num_mels": 64, "bins": 3}}, "bins"),
        ({"family": "vggish"}, "known: .*cnn14,.* passt"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_settings_that_an_encoder_does_not_have_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        encoders.from_json("audio", encoders.to_json(cnn.VARIANTS["small"]) | change)


def test_a_missing_setting_is_refused():
    settings = encoders.to_json(cnn.VARIANTS["small"])
    del settings["channels"]
    with pytest.raises(UserError, match="channels"):
        encoders.from_json("audio", settings)


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        (cnn.VARIANTS["small"], {"channels": (8, 8)}, "give the same number of both"),
        (cnn.VARIANTS["small"], {"channels": (), "convolutions": ()}, "give the same number of both"),
        (cnn.VARIANTS["small"], {"dropout": 1.0}, "dropout is 1.0"),
        (transformer.VARIANTS["small"], {"heads": 5}, "multiple of heads"),
        (transformer.VARIANTS["small"], {"dropout": -0.1}, "dropout is -0.1"),
        (transformer.VARIANTS["small"], {"pooling": "last"}, "pooling is 'last': it must be first or tokens"),
        (passt.VARIANTS["tiny"], {"pooling": "mean"}, "pooling is 'mean': it must be class or patches"),
        (huggingface.VARIANTS["bert-base"], {"dropout": 1.0}, "dropout is 1.0"),
        (huggingface.VARIANTS["bert-base"], {"max_tokens": 2}, "max_tokens is 2"),
        (huggingface.VARIANTS["bert-base"], {"pooling": "median"}, "pooling is 'median'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, setting, message):
    with pytest.raises(UserError, match=message):
        replace(config, **setting)


@pytest.mark.parametrize("final_norm", [False, True])
def test_the_small_cnn_pools_the_features_of_its_frames_normalised_or_not(final_norm):
    config = replace(cnn.VARIANTS["small5"], final_norm=final_norm)
    encoder = initial(config).eval()
    outputs: list[Tensor] = []
    encoder.layers.register_forward_hook(lambda _layers, _inputs, output: outputs.append(output))
    embeddings = embed_audio(encoder, torch.randn(2, round(config.segment_s * SAMPLE_RATE_HZ)))
    for embedding, features_CMT in zip(embeddings, outputs[0], strict=True):
        frames = [features_CMT[:, :, frame].reshape(-1) for frame in range(features_CMT.shape[2])]
        if final_norm:
            frames = [(frame - frame.mean()) / (frame.var(correction=0) + 1e-5).sqrt() for frame in frames]
        expected = torch.stack(frames).max(dim=0).values + torch.stack(frames).mean(dim=0)
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)


# The transformer with a vocabulary of its own.

SMALL = replace(transformer.VARIANTS["small"], width=32, layers=1, heads=2)
LEARN = f"print(t.build(t.Config(width=32, layers=1, heads=2), {CAPTIONS!r}).tokenizer.to_str())"


def test_learning_a_vocabulary_is_deterministic():
    """Also between processes: ranks learn it each for themselves. The library alone orders letters by a hash map."""
    code = f"from trainables.networks.text import transformer as t; {LEARN}"
    elsewhere = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    here = [load_network_module(SMALL).build(SMALL, CAPTIONS).tokenizer.to_str() for _ in range(5)]
    assert {*here, elsewhere.strip()} == {here[0]}


@pytest.mark.parametrize(("pooling", "tolerance"), [("first", 1e-6), ("tokens", 4e-6)])  # pooled vectors are longer
def test_padding_does_not_change_an_embedding(pooling, tolerance):
    encoder = initial(replace(SMALL, pooling=pooling), CAPTIONS).eval()
    short = encoder.tokenize(["rain"])
    padded = encoder.tokenize(["rain", CAPTIONS[2]])
    assert padded.mask[0].sum() == short.mask.sum() < padded.mask.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(encoder(padded)[:1], encoder(short), rtol=0, atol=tolerance)


def test_a_captions_vector_is_the_first_tokens_output_or_the_mean_plus_the_maximum_over_its_tokens():
    """The plain computation is one caption at a time, without padding."""
    first, pooled = (initial(replace(SMALL, pooling=pooling), CAPTIONS).eval() for pooling in ("first", "tokens"))
    for caption in CAPTIONS:
        ids = first.tokenize([caption]).ids[0]
        with torch.no_grad():
            outputs_LW = first.layers((first.words(ids) + first.positions[: len(ids)]).unsqueeze(0))[0]
        in_batch = {encoder: embed_text(encoder, CAPTIONS)[CAPTIONS.index(caption)] for encoder in (first, pooled)}
        torch.testing.assert_close(in_batch[first], outputs_LW[0], rtol=0, atol=1e-5)
        expected = sum(outputs_LW) / len(ids) + outputs_LW.max(dim=0).values
        torch.testing.assert_close(in_batch[pooled], expected, rtol=0, atol=1e-5)


def test_settings_stored_without_a_pooling_or_a_norm_are_those_of_before():
    for kind, config, name, value in (
        ("text", transformer.VARIANTS["small"], "pooling", "first"),
        ("audio", passt.VARIANTS["tiny"], "pooling", "class"),
        ("audio", cnn.VARIANTS["small"], "final_norm", False),
    ):
        settings = encoders.to_json(config)
        del settings[name]
        before = replace(config, **{name: value})
        assert encoders.from_json(kind, settings) == before
        assert encoders.to_json(before) == settings


def test_a_long_caption_is_cut_to_max_tokens():
    encoder = initial(replace(SMALL, max_tokens=6), CAPTIONS).eval()
    long = "a dog barks twice a dog barks twice a dog barks"
    tokens = encoder.tokenize([long])
    assert tokens.ids.shape == (1, 6)
    assert tokens.ids[0, -1] == encoder.tokenizer.token_to_id("[SEP]")
    assert torch.equal(embed_text(encoder, [long]), embed_text(encoder, ["a dog barks twice"]))


def test_the_vocabulary_stays_within_its_limit_and_unknown_letters_have_a_token():
    encoder = initial(replace(SMALL, vocabulary=50), CAPTIONS)
    assert encoder.tokenizer.get_vocab_size() == 50
    assert encoder.tokenizer.token_to_id("[UNK]") in encoder.tokenize(["żółw"]).ids


# BERT, RoBERTa, MPNet and DistilBERT, tiny, with random weights and laid out as on the hub.

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES = {
    "bert": {**SIZES, "intermediate_size": 64, "vocab_size": 60, "max_position_embeddings": 40},
    "roberta": {**SIZES, "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 42},
    "mpnet": {**SIZES, "intermediate_size": 64, "vocab_size": 60, "max_position_embeddings": 42},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "vocab_size": 60,
        "max_position_embeddings": 40,
    },
}


@pytest.fixture(params=SHAPES)
def published(request, tmp_path, write_text_model) -> Path:
    folder: Path = write_text_model(tmp_path / request.param, request.param, CAPTIONS, **SHAPES[request.param])
    return folder


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_published_text_encoder_embeds_each_caption_by_itself_and_can_be_restored(published, pooling, tmp_path):
    check_text_encoder(huggingface.Config(str(published), pooling=pooling), tmp_path / "saved")


def test_a_published_text_encoders_vector_is_the_first_tokens_output_or_the_mean(published):
    first, mean = (
        initial(huggingface.Config(str(published), pooling=pooling), CAPTIONS).eval() for pooling in ("first", "mean")
    )
    tokens = first.tokenize(CAPTIONS)
    model = AutoModel.from_pretrained(published).eval()
    with torch.no_grad():
        states = model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
    means = torch.stack([own[mask == 1].mean(dim=0) for own, mask in zip(states, tokens.mask, strict=True)])
    torch.testing.assert_close(embed_text(first, CAPTIONS), states[:, 0])
    torch.testing.assert_close(embed_text(mean, CAPTIONS), means)


@pytest.mark.parametrize("place", ["sentence-transformers/tiny", "tiny"])
def test_a_model_is_found_in_the_directory_of_published_weights(published, place, tmp_path):
    config = huggingface.Config("sentence-transformers/tiny")
    weights = tmp_path / "weights"
    (weights / place).parent.mkdir(parents=True)
    published.rename(weights / place)
    encoder = load_network_module(config).build(config, CAPTIONS, weights).eval()
    local = huggingface.Config(str(weights / place))
    assert torch.equal(
        embed_text(encoder, CAPTIONS), embed_text(load_network_module(local).build(local, CAPTIONS).eval(), CAPTIONS)
    )
    fingerprint = huggingface.weights_fingerprint(config, weights)
    assert fingerprint == huggingface.weights_fingerprint(local) == huggingface.weights_fingerprint(local, tmp_path)


@pytest.mark.parametrize("function", [huggingface.weights_fingerprint, huggingface.locate_model])
def test_a_model_that_the_directory_lacks_is_named(function, tmp_path):
    with pytest.raises(UserError, match=r"holds no directory 'bert-base-uncased': put .*config\.json"):
        function(huggingface.Config("bert-base-uncased"), tmp_path)


def layers(published: Path) -> str:
    return "transformer.layer" if published.name == "distilbert" else "encoder.layer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: {f"{layer}.1.": None}, r"16 names are missing \({layer}\.1\.attention"),
        (lambda layer: {f"{layer}.2.new": torch.zeros(3)}, r"1 names are unexpected \(.*{layer}\.2\.new\)"),
        (lambda layer: {"position_embeddings.weight": torch.zeros(9, 32)}, r"1 shapes differ \(.*\[9, 32\] instead of"),
    ],
)
def test_a_published_text_encoder_whose_weights_differ_is_refused(published, change, message, capsys):
    path = published / "model.safetensors"
    weights = load_file(path)
    prefix = "" if published.name == "mpnet" else f"{published.name}."
    for part, tensor in change(layers(published)).items():
        if tensor is None:
            weights = {name: value for name, value in weights.items() if part not in name}
        else:
            name = next((name for name in weights if part in name), f"{prefix}{part}")
            weights[name] = tensor
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=message.format(layer=layers(published).replace(".", r"\."))):
        initial(huggingface.Config(str(published)), CAPTIONS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_published_text_encoder_with_a_torn_file_is_named(published, file):
    path = published / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"text encoder '{published}' can't be loaded"):
        initial(huggingface.Config(str(published)), CAPTIONS)


def test_a_published_text_encoder_knows_its_words_and_cuts_to_max_tokens(published):
    encoder = initial(huggingface.Config(str(published), max_tokens=7), CAPTIONS)
    tokens = encoder.tokenize(["a dog barks " * 20])
    assert tokens.ids.shape == (1, 7)
    assert encoder.tokenizer.unk_token_id not in tokens.ids


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_dropout_is_the_configs_before_and_after_restoring(published, dropout, tmp_path):
    config = huggingface.Config(str(published), dropout=dropout)
    encoder = initial(config, CAPTIONS)
    encoder.save_tokenizer(tmp_path)
    restored = load_network_module(config).restore(config, tmp_path)
    for one in (encoder, restored):
        settings = one.model.config.to_dict()
        rates = {settings[name] for name in settings if "dropout" in name and settings[name] is not None}
        assert rates == {dropout}
        assert {module.p for module in one.modules() if isinstance(module, nn.Dropout)} == {dropout}


def test_the_fingerprint_of_a_directory_is_that_of_its_contents(published, tmp_path):
    first = huggingface.weights_fingerprint(huggingface.Config(str(published)))
    moved = published.rename(tmp_path / "moved")
    assert huggingface.weights_fingerprint(huggingface.Config(str(moved))) == first
    weights = load_file(moved / "model.safetensors")
    weights[next(iter(weights))][0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert huggingface.weights_fingerprint(huggingface.Config(str(moved))) != first


def test_a_pinned_revision_is_its_own_fingerprint():
    config = huggingface.Config("bert-base-uncased", revision="86b5e0934494bd15c9632b12f734a8a67f723594")
    assert config.revision in huggingface.weights_fingerprint(config)


@pytest.mark.parametrize("model", ["absent/model", "/no/such/directory"])
def test_a_model_that_cannot_be_signed_is_named(model, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a hub that refuses connections
    with pytest.raises(UserError, match=f"text encoder '{model}' is neither a directory nor found on the hub"):
        huggingface.weights_fingerprint(huggingface.Config(model))


@pytest.mark.parametrize("model", ["absent/model", "/no/such/directory"])
def test_a_model_that_cannot_be_loaded_is_named(model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # else it would try for a minute
    with pytest.raises(UserError, match=f"text encoder '{model}' (can't be loaded|is neither a directory nor found)"):
        initial(huggingface.Config(model), CAPTIONS)
