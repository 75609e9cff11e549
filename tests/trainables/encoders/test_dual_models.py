"""Trials that start from a whole published dual encoder: its scores, its tower's and projections' weights, refusals.

The models are tiny ones of transformers with random weights, saved with their feature extractors and tokenizers.
"""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as library
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional
from torchaudio.functional import resample

from data.captions import normalise
from data.errors import UserError
from data.splits import Splits
from data.store.stored_split import open_split
from sweeps.spaces import check_trials, published
from trainables.encoders import dual_models
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.networks import dual_encoder
from trainables.records import checkpoint
from trainables.records import lease as leases
from trainables.records.embeddings import VALIDATION_FILE
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.schedule import UNTRAINED, Schedule
from trainables.signature import compute_signature, find_relations, read_fingerprints, sign
from trainables.training.averaging import evaluate_once
from trainables.training.embedding import embed_split
from trainables.training.train import Callbacks, TrainingStart, train
from trainables.trial import Trial, from_json, to_json

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZES, "vocab_size": 300, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
CLAP_AUDIO = {"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "window_size": 4,
              "depths": [1, 2], "num_attention_heads": [1, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32,
              "num_hidden_layers": 2, "enable_fusion": False}  # fmt: skip
DAC = {"encoder_hidden_size": 4, "downsampling_ratios": [8, 8], "decoder_hidden_size": 16, "n_codebooks": 2,
       "codebook_size": 16, "codebook_dim": 8, "sampling_rate": 48_000, "hop_length": 64,
       "hidden_size": 32}  # fmt: skip
SEGMENT_S = 1.0


def make_clap():
    shape = library.ClapConfig(text_config=TEXT, audio_config=CLAP_AUDIO, projection_dim=16)
    extractor = library.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc")
    return library.ClapModel(shape), extractor


def make_pe_audio():
    text = {**TEXT, "model_type": "modernbert", "cls_token_id": 0, "sep_token_id": 2}
    audio = {**SIZES, "head_dim": 16, "dac_config": DAC}
    model = library.PeAudioModel(library.PeAudioConfig(text_config=text, audio_config=audio))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d):
            torch.nn.init.kaiming_normal_(module.weight)  # so that vectors depend on the audio
    torch.nn.init.constant_(model.text_audio_logit_scale, 8.0)
    return model, library.PeAudioFeatureExtractor(hop_length=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory, store):
    """A function that returns the folder of a model by its kind, which is written once."""
    captions = [text for captions in open_split(store, "synthetic/development").captions for text in captions]
    folder = tmp_path_factory.mktemp("dual")

    def write(kind):
        if not (folder / kind).exists():
            torch.manual_seed(0)
            model, extractor = {"clap": make_clap, "pe-audio": make_pe_audio}[kind]()
            model.save_pretrained(folder / kind)
            extractor.save_pretrained(folder / kind)
            tokenizer = ByteLevelBPETokenizer()
            special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
            tokenizer.train_from_iterator(captions, vocab_size=300, special_tokens=special, show_progress=False)
            tokenizer.save_model(str(folder / kind))
            vocabulary, merges = (str(folder / kind / name) for name in ("vocab.json", "merges.txt"))
            library.RobertaTokenizer(vocabulary, merges).save_pretrained(folder / kind)
        return folder / kind

    return write


@pytest.fixture
def zero_shot(models, trial):
    """A function that returns the trial of 0 epochs of a kind of model."""

    def make(kind) -> Trial:
        settings = dual_models.parse_init(f"{kind}:{models(kind)}")
        settings["audio"] = replace(settings["audio"], segment_s=SEGMENT_S)
        own = {"paraphrase_probability": 0.0, "schedule": UNTRAINED, "longest_audio_s": SEGMENT_S}
        return replace(trial, **settings, **own)

    return make


@torch.no_grad()
def compute_scores_of_the_library(kind, folder, split) -> Any:
    """The cosines of a split's queries and the first second of its clips, by transformers alone."""
    model = library.AutoModel.from_pretrained(folder).eval()
    extractor = library.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    clips = [torch.from_numpy(split.read_window(clip, 0, 32_000).copy()) for clip in range(len(split.clip_ids))]
    rate = extractor.sampling_rate
    samples = [resample(clip, 32_000, rate).numpy() for clip in clips]
    audio = extractor(samples, sampling_rate=rate, return_tensors="pt")
    texts = [normalise(query) for query in split.queries["text"].to_pylist()]
    text = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    if kind == "clap":
        logits = model(**audio, input_ids=text.input_ids, attention_mask=text.attention_mask).logits_per_text
        return logits / model.logit_scale_t.exp(), 1 / model.logit_scale_t.exp()
    outputs = model(**audio, input_ids=text.input_ids, attention_mask=text.attention_mask)
    vectors = [functional.normalize(one) for one in (outputs.text_audio_embeds, outputs.audio_embeds)]
    return vectors[0] @ vectors[1].T, 1 / model.text_audio_logit_scale


@pytest.mark.parametrize("kind", ["clap", "pe-audio"])
def test_zero_shot_scores_are_those_of_the_library(kind, models, zero_shot, store):
    trial, split = zero_shot(kind), open_split(store, "synthetic/validation")
    network = dual_encoder.build(trial, ())
    scores = embed_split(network, trial, "", split).compute_scores()
    expected, temperature = compute_scores_of_the_library(kind, models(kind), split)
    assert scores.std(axis=1).min() > 1e-3
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(network.temperature, temperature.reshape(()))


@pytest.mark.parametrize("kind", ["clap", "pe-audio"])
def test_a_fine_tuning_trains_both_towers_and_their_projections(kind, zero_shot, store, tmp_path):
    """And the model is restored from its folder alone."""
    parent = zero_shot(kind)
    network = dual_encoder.build(parent, ())
    checkpoint.save_model(tmp_path / "parent", parent, network, checkpoint.copy_weights(network))
    trial = replace(parent, schedule=Schedule(1e-3, 1e-3, 1, 0, 0), pretraining=parent)
    start = TrainingStart(tmp_path / "parent")
    trained = train(trial, str(store), Callbacks(lambda *_: None), start, torch.device("cpu"))
    before, after = network.state_dict(), trained.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("audio.", "text.", "audio_projection.", "text_projection."):
        assert any(name.startswith(part) for name in changed), part
    checkpoint.save_model(tmp_path / "trained", trial, trained, checkpoint.copy_weights(trained))
    restored = checkpoint.load_model(tmp_path / "trained")
    split = open_split(store, trial.validation)
    vectors = [embed_split(one, trial, "", split).text_QD for one in (trained, restored)]
    np.testing.assert_array_equal(*vectors)


def test_a_trial_of_0_epochs_is_evaluated_once(zero_shot, store):
    trial, split = zero_shot("clap"), open_split(store, "synthetic/validation")
    reports: list[Any] = []
    network = dual_encoder.build(trial, ())
    evaluate_once(trial, network, split, Callbacks(lambda metrics, snapshot: reports.append(metrics)))
    ((metrics),) = reports
    assert (metrics["epoch"], metrics["epochs"], metrics["best_epoch"]) == (1, 1, 1)
    assert metrics["best_map10"] == metrics["map10"] > 0
    assert trial.name == f"{trial.name.split()[0]} {trial.name.split()[1]} without training"


def test_a_trial_survives_json_and_its_signature_knows_the_kind_of_start(zero_shot, store):
    trial = zero_shot("clap")
    assert from_json(json.loads(json.dumps(to_json(trial)))) == trial
    other = replace(trial, initial=None, schedule=Schedule(1e-3, 1e-3, 1, 0, 0))
    assert compute_signature(trial, store) != compute_signature(replace(other, initial="clap"), store)
    assert compute_signature(other, store) != compute_signature(replace(other, initial="clap"), store)


def test_the_temperature_may_be_the_trials_own(zero_shot):
    trial = zero_shot("clap")
    own = replace(trial, schedule=Schedule(1e-3, 1e-3, 1, 0, 0), temperature=0.3, reset_temperature=True)
    torch.testing.assert_close(dual_encoder.build(own, ()).temperature.detach(), torch.tensor(0.3))


def test_a_job_without_training_stores_a_model_that_a_fine_tuning_starts_from(zero_shot, store, tmp_path):
    """In this process, as a Ray worker does it."""
    parent = zero_shot("clap")
    tuned = replace(parent, schedule=Schedule(1e-3, 1e-3, 1, 0, 0), pretraining=parent)
    runs, ledger = RunStorage.of(tmp_path), create_ledger(tmp_path)
    fingerprints = read_fingerprints([tuned], str(store))
    site = RunContext(str(store), runs, ledger.tracking_uri)
    metrics = {}
    for trial in (parent, tuned):
        signature = sign(trial, fingerprints)
        lease, relations = leases.acquire(runs, signature), find_relations(trial, fingerprints)
        run_id = ledger.claim(trial, signature, None, relations)
        job = TrainingJob(trial, lease, run_id, site, Allocation(), relations=relations)
        metrics[trial] = train_in_process(job, lambda _: None)
        ledger.finish(run_id)
    candidate = ledger.find_finished_trial(sign(parent, fingerprints))
    assert ledger.load_best_metrics(candidate)["map10"] == metrics[parent]["map10"] > 0
    split = open_split(store, parent.validation)
    expected = embed_split(dual_encoder.build(parent, ()), parent, "", split)
    np.testing.assert_array_equal(ledger.load_embeddings(candidate, VALIDATION_FILE).text_QD, expected.text_QD)
    assert runs.has_model(sign(tuned, fingerprints))


def damage(change):
    """A function that changes the weights of a folder."""

    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(lambda weights: weights.pop("text_projection.linear1.weight")), "text_projection.linear1.weight"),
        (damage(lambda weights: weights.update({"audio_projection.linear2.bias": torch.zeros(3)})), "shapes differ"),
        (damage(lambda weights: weights["audio_projection.linear1.bias"].fill_(torch.nan)), "aren't finite"),
        (damage(lambda weights: weights.pop("text_model.pooler.dense.weight")), "pooler.dense.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, models, zero_shot, tmp_path):
    folder = shutil.copytree(models("clap"), tmp_path / "clap")
    change(folder)
    trial = zero_shot("clap")
    moved = {kind: replace(getattr(trial, kind), model=str(folder)) for kind in ("audio", "text")}
    with pytest.raises(UserError, match=message):
        dual_encoder.build(replace(trial, **moved), ())


def test_other_models_are_refused_by_what_they_are(models, write_text_model, tmp_path, monkeypatch):
    bert = write_text_model(tmp_path / "bert", "bert", ["a dog"], vocab_size=60, **SIZES)
    with pytest.raises(UserError, match=r"its type is bert, not clap: .* --text huggingface:"):
        dual_models.parse_init(f"clap:{bert}")
    with pytest.raises(UserError, match="its type is pe_audio, not clap"):
        dual_models.parse_init(f"clap:{models('pe-audio')}")
    with pytest.raises(UserError, match="unknown dual encoder 'clip:a/b'; known: clap:FOLDER"):
        dual_models.parse_init("clip:a/b")
    with pytest.raises(UserError, match="doesn't exist: give the folder of a model"):
        dual_models.parse_init(f"clap:{tmp_path / 'absent'}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"--init clap:laion/absent: its config\.json can't be read"):
        dual_models.parse_init("clap:laion/absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trial: {"text": replace(trial.text, pooling="first")}, "the text encoder's 'own'"),
        (lambda trial: {"text": replace(trial.text, model="/other")}, "both encoders must be of one model"),
        (lambda trial: {"initial": None}, "a trial of 0 epochs needs a published dual encoder"),
        (lambda trial: {"mix_probability": 0.5}, "mix_probability has no effect on a trial of 0 epochs"),
        (lambda trial: {"pretraining": trial}, "a trial of 0 epochs needs a published dual encoder"),
        (lambda trial: {"pretraining": trial, "initial": None, "schedule": Schedule(1.0, 1.0, 1, 0, 0)}, "`initial`"),
    ],
)
def test_settings_that_contradict_the_start_are_refused(change, message, zero_shot):
    trial = zero_shot("clap")
    with pytest.raises(UserError, match=message):
        replace(trial, **change(trial))


def test_encoders_of_other_families_are_refused(zero_shot, trial):
    with pytest.raises(UserError, match="the audio encoder must be huggingface:MODEL"):
        replace(zero_shot("clap"), audio=trial.audio)


def test_the_space_published_has_zero_shot_and_fine_tuned_models_and_encoders_trained_here():
    splits = Splits("clotho/development", "clotho/validation", "clotho/evaluation", ("clotho/development",))
    trials = check_trials(published(splits, "float32"))
    untrained = [trial for trial in trials if not trial.is_trained]
    assert {trial.initial for trial in trials} == {None, "clap"}
    assert {trial.pretraining for trial in trials if trial.initial and trial.is_trained} == set(untrained)
