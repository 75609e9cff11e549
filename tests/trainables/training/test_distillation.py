"""Distillation: the loss of a student, and what it reads of its teachers."""

import itertools
import logging
import math
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from first_step import compute_first_gradients
from safetensors.torch import load_file
from torch.nn.functional import normalize

from data.captions import normalise
from data.errors import UserError
from data.store.stored_split import open_split
from trainables.execution.session import RunContext
from trainables.execution.teachers import fetch_teachers
from trainables.networks.dual_encoder import build
from trainables.records import checkpoint
from trainables.records.checkpoint import MODEL_FILE, save_model
from trainables.records.embeddings import read_embeddings, write_embeddings
from trainables.records.run_storage import RunStorage
from trainables.schedule import Schedule
from trainables.signature import compute_signature
from trainables.training.distillation import TeacherTargets, list_texts
from trainables.training.embedding import embed_split
from trainables.training.loss import soft_cross_entropy
from trainables.training.train import Callbacks, TrainingStart, open_pairs, train
from trainables.trial import Teacher, from_json, iter_required_trials, to_json

STILL = Schedule(peak_rate=0.0, final_rate=0.0, epochs=1, warmup_epochs=0, final_epochs=0)


def vectors(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(normalize(torch.randn(size, 16, generator=generator), dim=-1) for _ in range(2))


def softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def compute_by_hand(scores, targets):
    """The cross entropy over rows and columns in loops: -sum(target * log(student)), halved; both are logits."""
    transposed = [[list(column) for column in zip(*matrix, strict=True)] for matrix in (scores, targets)]
    total = 0.0
    for student, teacher in ((scores, targets), transposed):
        for row, target_row in zip(student, teacher, strict=True):
            logs = [math.log(share) for share in softmax(row)]
            total -= sum(share * log for share, log in zip(softmax(target_row), logs, strict=True)) / len(scores)
    return total / 2


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.3])
def test_the_loss_of_one_teacher_is_the_one_computed_by_hand(temperature):
    (audio, text), (teacher_audio, teacher_text) = vectors(7, 0), vectors(7, 1)
    targets = teacher_audio @ teacher_text.T / temperature
    loss = soft_cross_entropy(audio, text, targets, torch.tensor(0.07))
    by_hand = compute_by_hand((audio.double() @ text.double().T / 0.07).tolist(), targets.double().tolist())
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_gradient_is_the_difference_of_the_shares():
    """With respect to a logit: ((student's share of its row - the teacher's) + the same of its column) / (2 B)."""
    (audio, text), (teacher_audio, teacher_text) = vectors(7, 0), vectors(7, 1)
    scores = (audio @ text.T).double().requires_grad_()
    targets = (teacher_audio @ teacher_text.T / 0.1).double()
    soft_cross_entropy(scores, torch.eye(7).double(), targets, torch.tensor(1.0)).backward()
    expected = sum(scores.detach().softmax(dim) - targets.softmax(dim) for dim in (0, 1)) / (2 * 7)
    torch.testing.assert_close(scores.grad, expected, atol=1e-7, rtol=1e-5)


def first_gradients(student, store, files, **start):
    return compute_first_gradients(student, store, TrainingStart(teachers=files, **start))


@pytest.fixture(scope="module")
def plain(trial):
    """A trial without anything random: a student computes in training what its teacher did in evaluation."""
    front_end = replace(trial.audio.front_end, mask_mels=0, mask_frames=0, fmin_jitter_hz=0, fmax_jitter_hz=0)
    return replace(
        trial,
        audio=replace(trial.audio, dropout=0.0, front_end=front_end),
        text=replace(trial.text, dropout=0.0),
        schedule=STILL,
        longest_audio_s=30.0,
        paraphrase_probability=0.0,
        temperature=0.1,
        fixed_temperature=True,
    )


@pytest.fixture(scope="module")
def own_teacher(plain, store, tmp_path_factory):
    """The model of `plain` at 0 epochs, and its embeddings of the training split."""
    folder = tmp_path_factory.mktemp("teacher")
    split = open_split(store, plain.train[0])
    network = build(plain, [normalise(caption) for captions in split.captions for caption in captions])
    save_model(folder / "model", plain, network, checkpoint.copy_weights(network))
    embeddings = embed_split(network, plain, "", split, list_texts(split, with_paraphrases=False))
    write_embeddings(folder / "e.arrow", embeddings)
    return folder


def test_a_student_of_itself_has_no_gradient_at_the_same_temperature_and_the_formulas_at_another(
    plain, own_teacher, store
):
    files, start = ((own_teacher / "e.arrow",),), {"pretrained": own_teacher / "model"}
    base = replace(plain, pretraining=plain, teachers=(Teacher(plain),), teacher_temperature=0.1)
    hard = first_gradients(replace(plain, pretraining=plain), store, (), **start)
    size = max(float(gradient.abs().max()) for gradient in hard)
    assert all(float(gradient.abs().max()) < 1e-4 * size for gradient in first_gradients(base, store, files, **start))
    mixed = first_gradients(replace(base, hard_share=0.25), store, files, **start)
    for gradient, expected in zip(mixed, hard, strict=True):
        torch.testing.assert_close(gradient, 0.25 * expected, atol=1e-4 * size, rtol=1e-3)
    sharper = first_gradients(replace(base, teacher_temperature=0.05), store, files, **start)
    assert max(float(gradient.abs().max()) for gradient in sharper) > 1e-2 * size


def targets_of(student, store, *paths):
    """The teachers' cosines for all clips and all texts of the training split."""
    pairs = open_pairs(student, store)
    targets = TeacherTargets(student, pairs, tuple((path,) for path in paths))
    texts = list_texts(pairs.splits[0], student.paraphrase_probability > 0)
    size = max(len(texts), len(pairs.splits[0].clip_ids))
    clips = torch.arange(size) % len(pairs.splits[0].clip_ids)
    texts_B = targets.find_texts((texts * size)[:size])
    return targets.compute_logits(clips, texts_B).numpy() * student.teacher_temperature


def as_student(trial, *weights):
    return replace(trial, teachers=tuple(Teacher(files=("any",), weight=weight) for weight in weights))


def test_targets_are_the_weighted_mean_of_the_teachers_cosines(trial, store, write_teacher, tmp_path):
    first, second = (write_teacher(tmp_path / f"{seed}.arrow", trial, seed) for seed in range(2))
    alone = [targets_of(as_student(trial, 1.0), store, path) for path in (first, second)]
    file = read_embeddings(first)
    np.testing.assert_allclose(alone[0][:13], file.audio_AD @ file.text_QD[: alone[0].shape[1]].T, atol=1e-6)
    both = targets_of(as_student(trial, 1.0, 3.0), store, first, second)
    np.testing.assert_allclose(both, alone[0] / 4 + 3 * alone[1] / 4, atol=1e-6)


def test_files_in_another_order_and_files_of_scores_give_the_same_targets(trial, store, write_teacher, tmp_path):
    trial = replace(trial, paraphrase_probability=0.0)
    path = write_teacher(tmp_path / "e.arrow", trial)
    expected, file = targets_of(as_student(trial, 1.0), store, path), read_embeddings(path)
    clips, texts = (np.random.default_rng(1).permutation(len(names)) for names in (file.clip_ids, file.queries))
    shuffled = replace(
        file,
        clip_ids=[file.clip_ids[row] for row in clips],
        queries=[file.queries[row] for row in texts],
        audio_AD=file.audio_AD[clips],
        text_QD=file.text_QD[texts],
    )
    write_embeddings(tmp_path / "shuffled.arrow", shuffled)
    np.testing.assert_array_equal(targets_of(as_student(trial, 1.0), store, tmp_path / "shuffled.arrow"), expected)
    row = {text: number for number, text in enumerate(file.queries)}
    captions = itertools.chain.from_iterable(open_split(store, trial.train[0]).captions)
    scores = file.text_QD[[row[normalise(caption)] for caption in captions]] @ file.audio_AD.T
    np.save(tmp_path / "scores.npy", scores.astype(np.float64))
    np.testing.assert_allclose(targets_of(as_student(trial, 1.0), store, tmp_path / "scores.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: replace(file, clip_ids=["other", *file.clip_ids[1:]]), "the clip 'synthetic/development/"),
        (lambda file: replace(file, queries=["other", *file.queries[1:]]), "the normalised caption '"),
    ],
)
def test_a_file_that_lacks_a_clip_or_a_text_is_named(trial, store, write_teacher, tmp_path, change, message):
    path = write_teacher(tmp_path / "e.arrow", trial)
    write_embeddings(path, change(read_embeddings(path)))
    with pytest.raises(UserError, match=f"e.arrow: {message}") as error:
        targets_of(as_student(trial, 1.0), store, path)
    assert "write the file again for this store" in str(error.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((3, 13)), "must be floats"),
        (np.zeros((65, 13), int), "must be floats"),
        (np.full((65, 13), np.nan), "aren't finite"),
    ],
)
def test_scores_of_another_shape_or_that_are_not_finite_are_refused(trial, store, tmp_path, scores, message):
    np.save(tmp_path / "scores.npy", scores)
    with pytest.raises(UserError, match=message):
        targets_of(as_student(replace(trial, paraphrase_probability=0.0), 1.0), store, tmp_path / "scores.npy")


def test_scores_have_none_of_paraphrases(trial, store, tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros((65, 13)))
    with pytest.raises(UserError, match="has no scores of paraphrases"):
        targets_of(as_student(trial, 1.0), store, tmp_path / "scores.npy")


# Trials with teachers.


def test_a_student_survives_json_and_names_its_teachers(trial):
    teachers = (Teacher(trial, 0.5), Teacher(files=("/a.arrow",)))
    student = replace(trial, seed=1, teachers=teachers, teacher_temperature=0.02, hard_share=0.5)
    assert from_json(to_json(student)) == student
    assert "student of 2" in student.name
    assert list(iter_required_trials(student)) == [student, trial]
    own = replace(trial, train=("other/split",))
    assert replace(trial, teachers=(Teacher(own),)).training_splits == {*trial.train, "other/split"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"teacher_temperature": 0.1}, "teacher_temperature has no effect without teachers"),
        ({"hard_share": 0.5}, "hard_share has no effect without teachers"),
        ({"teachers": (Teacher(files=("a", "b")),)}, "has 2 files: give one for each of the training splits"),
        ({"teachers": (Teacher(files=("a",)),), "teacher_temperature": 0.0}, "teacher_temperature is 0.0"),
        ({"teachers": (Teacher(files=("a",)),), "hard_share": 1.0}, "hard_share is 1.0"),
    ],
)
def test_settings_of_a_student_that_make_no_sense_are_refused(trial, setting, message):
    with pytest.raises(UserError, match=message):
        replace(trial, **setting)


@pytest.mark.parametrize("setting", [{}, {"files": ("a",), "trial": 1}, {"files": ("a",), "weight": 0.0}])
def test_a_teacher_is_a_trial_or_files_with_a_positive_weight(setting):
    with pytest.raises(UserError, match="teacher"):
        Teacher(**setting)


def test_the_signature_of_a_student_depends_on_its_teachers_and_not_on_where_their_files_are(trial, store, tmp_path):
    def sign(*teachers, **settings):
        return compute_signature(replace(trial, seed=1, teachers=teachers, **settings), store)

    for folder, contents in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "e.arrow").write_bytes(contents)
    file = {folder: Teacher(files=(str(tmp_path / folder / "e.arrow"),)) for folder in "abc"}
    assert sign(file["a"]) == sign(file["b"]) == sign(replace(file["a"], weight=5.0))
    other = replace(trial, seed=7)
    different = [
        sign(),
        sign(file["a"]),
        sign(file["c"]),
        sign(Teacher(trial)),
        sign(Teacher(other)),
        sign(Teacher(trial), Teacher(other)),
        sign(Teacher(trial), Teacher(other, 2.0)),
        sign(Teacher(trial), teacher_temperature=0.1),
        sign(Teacher(trial), hard_share=0.5),
    ]
    assert len(set(different)) == len(different)
    with pytest.raises(UserError, match=r"absent.arrow, can't be read: No such file"):
        sign(Teacher(files=(str(tmp_path / "absent.arrow"),)))


# Embeddings of teachers in the run storage.


@pytest.fixture
def site(trial, store, tmp_path):
    """A run storage with the models of two trials, whose students need their embeddings."""
    site = RunContext(str(store), RunStorage.of(tmp_path / "runs"), "")
    for seed in range(2):
        teacher = replace(trial, seed=seed)
        with site.runs.make_scratch() as scratch:
            network = build(teacher, ["a dog barks", "rain"])
            save_model(scratch / "m", teacher, network, checkpoint.copy_weights(network))
            site.runs.store_model(compute_signature(teacher, store), scratch / "m")
    return site


def student_of(trial, **settings):
    return replace(trial, seed=9, teachers=(Teacher(trial), Teacher(replace(trial, seed=1))), **settings)


def test_teachers_embed_a_split_once_for_all_their_students(trial, store, site, tmp_path):
    device = torch.device("cpu")
    files = fetch_teachers(student_of(trial), site, device, tmp_path / "scratch")
    assert fetch_teachers(student_of(trial, hard_share=0.5), site, device, tmp_path / "scratch") == files
    written = {path: path.stat().st_mtime_ns for (path,) in files}
    assert len(written) == 2 and all(path.is_relative_to(tmp_path / "runs" / "teachers") for path in written)
    without = fetch_teachers(student_of(trial, paraphrase_probability=0.0), site, device, tmp_path / "scratch")
    assert not {path for (path,) in without} & written.keys()
    assert written == {path: path.stat().st_mtime_ns for (path,) in files}
    split = open_split(store, trial.train[0])
    for ((path,), (plain_path,)), seed in zip(zip(files, without, strict=True), range(2), strict=True):
        both = read_embeddings(path), read_embeddings(plain_path)
        assert both[0].queries == list_texts(split, with_paraphrases=True)
        assert both[1].queries == list_texts(split, with_paraphrases=False)
        assert both[0].signature == compute_signature(replace(trial, seed=seed), store)
        np.testing.assert_array_equal(both[0].audio_AD, both[1].audio_AD)


def fetch_at_once(barrier, trial, site, folder):
    logging.basicConfig(filename=f"{folder}.log", level=logging.INFO)
    barrier.wait()
    fetch_teachers(student_of(trial), site, torch.device("cpu"), folder)


def test_processes_that_need_a_teacher_at_the_same_time_embed_it_once(trial, site, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=fetch_at_once, args=(barrier, trial, site, tmp_path / f"{number}"))
        for number in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = [line for number in range(3) for line in (tmp_path / f"{number}.log").read_text().splitlines()]
    assert len([line for line in lines if "embeds synthetic/development for its students" in line]) == 2
    folders = list((tmp_path / "runs" / "teachers").glob("*/*"))
    assert sorted(path.name for folder in folders for path in folder.iterdir()) == ["embeddings.arrow"] * 2


def test_a_teacher_without_a_model_is_named(trial, store, tmp_path):
    site = RunContext(str(store), RunStorage.of(tmp_path / "runs"), "")
    with pytest.raises(UserError, match=r"the model of the teacher cnn.* isn't in .*runs: train it first"):
        fetch_teachers(student_of(trial), site, torch.device("cpu"), tmp_path / "scratch")


def test_a_student_goes_on_bit_for_bit_where_it_was_interrupted(trial, store, site, tmp_path):
    student = student_of(trial, hard_share=0.2)
    teachers = fetch_teachers(student, site, torch.device("cpu"), tmp_path / "scratch")
    checkpoints = []

    def keep(metrics, snapshot):
        if metrics:
            checkpoints.append(tmp_path / f"{len(checkpoints)}")
            snapshot.write(checkpoints[-1])

    train(student, store, Callbacks(keep), TrainingStart(teachers=teachers))
    train(student, store, Callbacks(keep), TrainingStart(teachers=teachers, resume_from=checkpoints[0]))
    whole, resumed = (load_file(checkpoints[number] / MODEL_FILE) for number in (1, 2))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
