"""A step on several ranks equals a step on one rank with the joined batch; a training on several, a training on one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from first_step import compute_first_gradients
from safetensors.torch import load_file, save_file

from data.captions import normalise
from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch, split_among_ranks
from data.store.stored_split import open_split
from trainables.encoders.audio import passt
from trainables.networks import dual_encoder
from trainables.records.checkpoint import MODEL_FILE
from trainables.schedule import Plateau
from trainables.training.compute import Execution
from trainables.training.loss import gather_rows, nt_xent
from trainables.training.train import Callbacks, TrainingStart, seed_step, train
from trainables.trial import RATE_SETTINGS, Teacher, Trial

GRADIENTS, EPOCHS, RESUMED = "gradients.safetensors", "epochs.json", "resumed.safetensors"
RESUMED_AFTER = 2
"""Steps, of 5 or 4 an epoch."""


def without_dropout(trial: Trial) -> Trial:
    """Ranks draw dropout each for themselves; all else that training draws is shared."""
    return replace(trial, audio=replace(trial.audio, dropout=0.0), text=replace(trial.text, dropout=0.0))


def with_patchout(trial: Trial) -> Trial:
    """A small PaSST that drops patches: the same ones on all ranks."""
    shape = {"num_frames": 100, "segment_s": 2.0, "width": 24, "depth": 1, "patchout_time": 3}
    audio = replace(passt.VARIANTS["tiny"], front_end=trial.audio.front_end, **shape)
    return replace(trial, audio=audio, text=replace(trial.text, dropout=0.0))


def on_a_plateau(trial: Trial) -> Trial:
    """The rate hangs on validation losses, which rank 0 alone computes, and the temperature isn't learned."""
    plateau = Plateau(
        3e-3, 1e-4, 3, factor=0.1, patience=0, threshold=0.0, settled_std=0.0, settled_epochs=2, first_end=3
    )
    return replace(with_patchout(trial), schedule=plateau, fixed_temperature=True)


def as_student(trial: Trial) -> Trial:
    """Two teachers, whose files the fixture writes, and rates by part."""
    teachers = (Teacher(files=("first.arrow",)), Teacher(files=("second.arrow",), weight=3.0))
    student = replace(without_dropout(trial), teachers=teachers, teacher_temperature=0.1, hard_share=0.3)
    return replace(student, audio_rate_share=0.5, text_rate_share=0.25, layer_decay=0.5)


def start_of(trial: Trial, **start) -> TrainingStart:
    return TrainingStart(teachers=tuple(tuple(map(Path, teacher.files)) for teacher in trial.teachers), **start)


def work(rank: int, world_size: int, trial: Trial, store: Path, folder: Path, micro_batch: int | None = None) -> None:
    """What a rank does: the gradients of one step, a training, and that training again from its first epoch's midst.

    What comes of it is written to `folder`/rank.
    """
    torch.set_num_threads(1)
    own = folder / str(rank)
    own.mkdir(parents=True)
    if world_size > 1:
        rendezvous = f"file://{folder / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    try:
        write_gradients(rank, world_size, trial, store, own, micro_batch)
        epochs = []

        def report(metrics, snapshot):
            if metrics or not snapshot:
                epochs.append(metrics)
            if snapshot:
                snapshot.write(own if metrics else own / f"step{snapshot.progress.steps_done}")

        execution = Execution(micro_batch=micro_batch, checkpoint_every_s=0)
        network = train(trial, store, Callbacks(report), start_of(trial), execution=execution)
        if rank > 0:
            save_file(network.state_dict(), own / MODEL_FILE)  # the last epoch's: only rank 0 knows the best one
        (own / EPOCHS).write_text(json.dumps([metrics for metrics in epochs if metrics]))
        checkpoint = folder / "0" / f"step{RESUMED_AFTER}"
        start, execution = start_of(trial, resume_from=checkpoint), Execution(micro_batch=micro_batch)
        resumed = train(trial, store, Callbacks(lambda *_: None), start, execution=execution)
        save_file(resumed.state_dict(), own / RESUMED)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def write_gradients(
    rank: int, world_size: int, trial: Trial, store: Path, folder: Path, micro_batch: int | None
) -> None:
    """Those of the training loop's first step; without the loop if there is one rank, no micro-batch and no teacher."""
    splits = [open_split(store, name) for name in trial.train]
    pairs = ClipCaptionDataset(
        splits, trial.audio.segment_s, trial.longest_audio_s, trial.paraphrase_probability, trial.seed
    )
    network = dual_encoder.build(trial, [normalise(caption) for caption in pairs.iter_captions()]).train()
    batches = order_epoch(pairs, 0, trial.batch_size)
    batch = next(load_epoch(pairs, 0, batches, rank, world_size))
    counts = [len(share) for share in split_among_ranks(pairs, batches[0], world_size)]
    clips = gather_rows(batch.clips, counts)
    assert len(clips.unique()) < len(clips), "the batch should hold two captions of one clip"
    learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if world_size > 1 or micro_batch or trial.teachers:
        one_group = replace(trial, **dict.fromkeys(RATE_SETTINGS, 1.0))  # in the order of the model
        gradients = compute_first_gradients(one_group, store, start_of(trial), Execution(micro_batch=micro_batch))
    else:
        shared = seed_step(trial.seed, 0, rank)
        audio, text, temperature = network(batch, network.text.tokenize(batch.captions), shared)
        nt_xent(audio, text, clips, temperature).backward()
        gradients = [parameter.grad for parameter in learned.values()]
    save_file({"clips": clips, **dict(zip(learned, gradients, strict=True))}, folder / GRADIENTS)


@pytest.fixture(
    scope="module",
    params=[
        (2, 16, without_dropout, None),
        (3, 21, with_patchout, None),
        (1, 16, with_patchout, 3),
        (2, 16, with_patchout, 3),
        (2, 16, on_a_plateau, 3),
        (2, 16, as_student, 3),
    ],
    ids=[
        "2 ranks, last batch of 1",
        "3 ranks, last batch of 2, patchout",
        "micro-batches, patchout",
        "2 ranks, micro-batches, patchout",
        "2 ranks, micro-batches, plateau, fixed temperature",
        "2 ranks, micro-batches, student, rates by part",
    ],
)
def folders(request, trial, store, tmp_path_factory, write_teacher) -> list[Path]:
    """What one rank wrote, then what each of several did. The 65 pairs leave a last batch too small for all ranks."""
    world_size, batch_size, variant, micro_batch = request.param
    trial = replace(variant(trial), batch_size=batch_size)
    assert 0 < 65 % batch_size < max(world_size, 2)
    teachers = [
        replace(teacher, files=(str(write_teacher(tmp_path_factory.mktemp("teacher") / "e.arrow", trial, number)),))
        for number, teacher in enumerate(trial.teachers)
    ]
    trial = replace(trial, teachers=tuple(teachers))
    one, several = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("several")
    work(0, 1, trial, store, one)
    torch.multiprocessing.spawn(work, args=(world_size, trial, store, several, micro_batch), nprocs=world_size)
    return [one / "0", *(several / str(rank) for rank in range(world_size))]


def test_gradients_of_a_step_are_those_of_the_joined_batch(folders):
    one, *ranks = (load_file(folder / GRADIENTS) for folder in folders)
    clips = one.pop("clips")
    for gradients in ranks:
        assert torch.equal(gradients.pop("clips").sort().values, clips.sort().values)
        assert gradients.keys() == one.keys()
        for name, expected in one.items():
            difference = float((gradients[name] - expected).abs().max())
            assert difference <= 1e-5 * max(float(expected.abs().max()), 1e-2), name
    assert all(float(gradient.abs().max()) > 0 for gradient in one.values())


def test_losses_and_metrics_of_a_training_are_those_of_one_rank(folders):
    one, first, *others = (json.loads((folder / EPOCHS).read_text()) for folder in folders)
    assert others == [[]] * len(others)  # rank 0 speaks for all
    assert len(one) == len(first) == one[0]["epochs"]
    for expected, metrics in zip(one, first, strict=True):
        assert metrics["map10"] == pytest.approx(expected["map10"], abs=1e-9)
        for name in ("train_loss", "validation_loss", "temperature", "learning_rate"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name


def test_weights_after_a_training_are_those_of_one_rank_on_every_rank(folders):
    """On average over a tensor: Adam divides rounding errors by a gradient near zero, here and there, and moves far."""
    one, *ranks = (load_file(folder / MODEL_FILE) for folder in folders)
    width = next(len(weights) // 3 for name, weights in one.items() if name.endswith("self_attn.in_proj_bias"))
    for weights in ranks:
        assert weights.keys() == one.keys()
        for name, expected in one.items():
            for part, same in zip(parts(name, weights[name], width), parts(name, expected, width), strict=True):
                assert float((part - same).square().mean().sqrt()) <= 2e-6, name
    for name in one:
        assert all(torch.equal(weights[name], ranks[0][name]) for weights in ranks), name


def test_a_training_goes_on_from_the_midst_of_an_epoch_bit_for_bit_on_as_many_ranks(folders):
    for rank, folder in enumerate(folders[1:]):
        last, resumed = load_file(folders[1] / MODEL_FILE), load_file(folder / RESUMED)
        final = json.loads((folders[1] / EPOCHS).read_text())[-1]
        if final["best_epoch"] == final["epoch"] or rank > 0:  # rank 0 gives the best epoch's weights back
            assert all(torch.equal(resumed[name], last[name]) for name in last)


def parts(name: str, weights: torch.Tensor, width: int) -> list[torch.Tensor]:
    """All but the bias of attention's keys: it changes nothing, so that Adam follows the rounding of its gradient."""
    if name.endswith("in_proj_bias"):
        return [weights[:width], weights[2 * width :]]
    if name.endswith("qkv.bias"):
        third = len(weights) // 3
        return [weights[:third], weights[2 * third :]]
    return [weights]
