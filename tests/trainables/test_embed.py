"""Embeddings of a split, and the file that holds them."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data.captions import normalise
from data.errors import UserError
from data.schema import Query, Split
from data.store import split_writer
from data.store.stored_split import StoredSplit, open_split
from trainables import retrieval
from trainables.networks import dual_encoder
from trainables.networks.dual_encoder import DualEncoder
from trainables.records.embeddings import Embeddings, read_embeddings, write_embeddings
from trainables.training import embedding
from trainables.training.embedding import embed_split


@pytest.fixture(scope="module")
def split(store) -> StoredSplit:
    return open_split(store, "synthetic/development")


@pytest.fixture(scope="module")
def network(trial, split) -> DualEncoder:
    return dual_encoder.build(trial, [normalise(caption) for captions in split.captions for caption in captions])


@pytest.fixture(scope="module")
def embeddings(network, trial, split) -> Embeddings:
    return embed_split(network, trial, "0123456789abcdef", split)


def test_they_say_what_they_are_of(embeddings, split, trial):
    assert (embeddings.signature, embeddings.split) == ("0123456789abcdef", "synthetic/development")
    assert embeddings.fingerprint == split.fingerprint
    assert embeddings.clip_ids == split.clip_ids
    assert embeddings.queries == [caption for captions in split.captions for caption in captions]
    assert embeddings.relevant_clip_ids == [[clip] for clip in split.clip_ids for _ in range(5)]
    assert embeddings.audio_AD.shape == (13, trial.embedding_size)
    assert embeddings.text_QD.shape == (65, trial.embedding_size)
    assert embeddings.audio_AD.dtype == embeddings.text_QD.dtype == np.float32


def test_scores_are_cosines(embeddings):
    scores_QA = embeddings.compute_scores()
    text, audio = embeddings.text_QD.astype(np.float64), embeddings.audio_AD.astype(np.float64)
    norms = np.linalg.norm(text, axis=1)[:, None] * np.linalg.norm(audio, axis=1)
    assert scores_QA.shape == (65, 13)
    np.testing.assert_allclose(scores_QA, text @ audio.T / norms, atol=1e-6)


@torch.inference_mode()
def test_a_clip_is_the_mean_over_its_own_segments_of_its_beginning(embeddings, network, trial, split):
    samples = round(trial.longest_audio_s * 32_000)
    for index, expected in enumerate(embeddings.audio_AD):
        window = torch.from_numpy(split.read_window(index, 0, samples))
        features = network.audio(window.reshape(2, -1), torch.zeros(2, 4), torch.Generator()).mean(dim=0)
        projected = torch.nn.functional.normalize(network.audio_projection(features), dim=0)
        np.testing.assert_allclose(projected.numpy(), expected, atol=1e-6)


def test_each_clip_is_embedded_once_and_each_query_once(network, trial, split, monkeypatch):
    """Although it has five captions; and whatever the sizes of batches."""
    expected = embed_split(network, trial, "", split)
    seen = {"audio": 0, "text": 0}
    hooks = [
        network.audio.register_forward_hook(lambda _, inputs, __: seen.update(audio=seen["audio"] + len(inputs[0]))),
        network.text.register_forward_hook(lambda _, inputs, __: seen.update(text=seen["text"] + len(inputs[0].ids))),
    ]
    monkeypatch.setattr(embedding, "CLIPS_PER_BATCH", 3)
    monkeypatch.setattr(embedding, "QUERIES_PER_BATCH", 7)
    batched = embed_split(network, trial, "", split)
    for hook in hooks:
        hook.remove()
    assert seen == {"audio": 13 * 2, "text": 65}  # two segments of 2 s a clip
    np.testing.assert_allclose(batched.audio_AD, expected.audio_AD, atol=1e-5)
    np.testing.assert_allclose(batched.text_QD, expected.text_QD, atol=1e-5)


def test_the_model_is_left_in_evaluation_and_embeds_the_same_again(embeddings, network, trial, split):
    network.train()
    again = embed_split(network, trial, "0123456789abcdef", split)
    assert not network.training
    assert_equal(again, embeddings)


def test_under_bfloat16_embeddings_are_float32_on_the_unit_sphere_and_close_to_those_of_float32(
    embeddings, network, trial, split
):
    coarse = embed_split(network, replace(trial, precision="bfloat16"), "", split)
    for vectors, exact in ((coarse.audio_AD, embeddings.audio_AD), (coarse.text_QD, embeddings.text_QD)):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose((vectors * exact).sum(axis=1), 1, atol=1e-2)


def assert_equal(left: Embeddings, right: Embeddings) -> None:
    for field in dataclasses.fields(Embeddings):
        one, other = getattr(left, field.name), getattr(right, field.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, field.name


def test_a_file_gives_back_what_was_written(embeddings, tmp_path):
    write_embeddings(tmp_path / "validation.arrow", embeddings)
    assert_equal(read_embeddings(tmp_path / "validation.arrow"), embeddings)
    assert [path.name for path in tmp_path.iterdir()] == ["validation.arrow"]


def test_a_file_keeps_queries_with_several_relevant_clips_or_none_and_any_letters(tmp_path):
    vectors = np.eye(3, dtype=np.float32)
    relevant = [["b &amp; c.wav", "a.wav"], []]
    written = Embeddings(
        "s", "c/x", "f", ["a.wav", "b &amp; c.wav", "ü.wav"], ["a", "a"], relevant, vectors, vectors[:2]
    )
    write_embeddings(tmp_path / "few.arrow", written)
    assert_equal(read_embeddings(tmp_path / "few.arrow"), written)


def wrong_files(folder: Path, store: Path) -> dict[str, Path]:
    files = {name: folder / name for name in ("absent", "text.json", "empty", "other.arrow", "torn.arrow")}
    files["text.json"].write_text(json.dumps({"signature": "0123456789abcdef"}))
    files["empty"].write_bytes(b"")
    with (
        pa.OSFile(str(files["other.arrow"]), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("x", pa.int8())])) as out,
    ):
        out.write_table(pa.table({"x": pa.array([1], pa.int8())}))
    files["folder"] = folder
    files["clips"] = store / "synthetic/validation/clips-00000.arrow"
    files["queries"] = store / "synthetic/validation/queries.arrow"
    return files


@pytest.mark.parametrize(
    "name", ["absent", "text.json", "empty", "other.arrow", "torn.arrow", "folder", "clips", "queries"]
)
def test_a_file_that_holds_no_embeddings_is_refused_by_its_name(name, embeddings, store, tmp_path):
    path = wrong_files(tmp_path, store)[name]
    if name == "torn.arrow":
        write_embeddings(path, embeddings)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{path} isn't a file of embeddings"):
        read_embeddings(path)


def test_queries_with_several_relevant_clips_are_scored_on_another_splits_clips(network, trial, split, store):
    ids = split.clip_ids
    asked = (("Two of them.", ids[:2]), ("Three.", ids[3:6]), ("One.", ids[8:9]))
    queries = tuple(Query(text, tuple(relevant)) for text, relevant in asked)
    several = Split("synthetic", "several", (), queries=queries, clips_of="development")
    (store / "synthetic" / "several").mkdir()
    split_writer.write_split(store / "synthetic" / "several", several, "pcm16", [])

    found = embed_split(network, trial, "", open_split(store, "synthetic/several"))
    assert found.clip_ids == ids
    expected = []
    for row, (_, relevant) in zip(found.compute_scores(), asked, strict=True):
        ranked = [ids[column] for column in np.argsort(-row)]
        hits = [place for place, clip_id in enumerate(ranked[:16], start=1) if clip_id in relevant]
        expected.append(sum(number / place for number, place in enumerate(hits, start=1)) / len(relevant))
    relevant = retrieval.build_relevance(found.relevant_clip_ids, found.clip_ids)
    measured = retrieval.compute_metrics(found.compute_scores(), relevant, ["map16"])["map16"]
    assert measured == pytest.approx(np.mean(expected))
