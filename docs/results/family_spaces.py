"""Space of five families of audio models from Hugging Face, small and with random weights, trained from scratch.

    python docs/results/family_spaces.py MODELS
    FAMILY_MODELS=MODELS python sweeps/grid.py --space docs/results/family_spaces.py:families --corpus clotho \
        --store store --precision float32

The first command writes the models and their extractors into the folder MODELS, as `save_pretrained` does.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.splits import Splits
from trainables import recipes
from trainables.trial import Precision, Trial

EPOCHS = 4
SEGMENT_S = 5
LONGEST_S = 10.0

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SPEECH = {
    **SIZES,
    "conv_dim": (32, 32, 32, 32),
    "conv_kernel": (10, 8, 4, 4),
    "conv_stride": (10, 8, 4, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
CLAP_AUDIO = {
    "spec_size": 128,
    "num_mel_bins": 32,
    "patch_stride": [4, 4],
    "window_size": 4,
    "depths": [1, 2],
    "num_attention_heads": [2, 4],
    "patch_embeds_hidden_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "enable_fusion": False,
}
WHISPER = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 32,
    "max_source_positions": 50 * SEGMENT_S,
    "vocab_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def build_models() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return functions that build the model and the feature extractor of each family, by the family's name."""
    import transformers

    return {
        "ast": (
            lambda: transformers.ASTModel(transformers.ASTConfig(**SIZES, max_length=500, num_mel_bins=64)),
            lambda: transformers.ASTFeatureExtractor(max_length=500, num_mel_bins=64),
        ),
        "clap": (
            lambda: transformers.ClapModel(
                transformers.ClapConfig(text_config={**SIZES, "vocab_size": 20}, audio_config=CLAP_AUDIO)
            ),
            lambda: transformers.ClapFeatureExtractor(feature_size=32, max_length_s=SEGMENT_S, truncation="rand_trunc"),
        ),
        "whisper": (
            lambda: transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)),
            lambda: transformers.WhisperFeatureExtractor(feature_size=32, chunk_length=SEGMENT_S),
        ),
        "wav2vec2": (
            lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SPEECH)),
            lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        ),
        "wav2vec2-bert": (
            lambda: transformers.Wav2Vec2BertModel(
                transformers.Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=160)
            ),
            transformers.SeamlessM4TFeatureExtractor,
        ),
    }


def write_models(folder: Path) -> None:
    """Write the models with random weights, and their extractors, into subfolders of `folder`."""
    import torch

    torch.manual_seed(0)
    for name, (build_model, build_extractor) in build_models().items():
        build_model().save_pretrained(folder / name)
        build_extractor().save_pretrained(folder / name)


def families(splits: Splits, precision: Precision) -> list[Trial]:
    """Return a training of the model of each family in the folder that FAMILY_MODELS names."""
    folder = Path(os.environ["FAMILY_MODELS"]).resolve()
    lengths = {"wav2vec2": f":{SEGMENT_S}s", "wav2vec2-bert": f":{SEGMENT_S}s"}
    trials = [
        recipes.small(f"huggingface:{folder / name}{lengths.get(name, '')}", "transformer:shallow64", splits, precision)
        for name in build_models()
    ]
    return [
        replace(trial, schedule=replace(trial.schedule, epochs=EPOCHS), longest_audio_s=LONGEST_S) for trial in trials
    ]


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
