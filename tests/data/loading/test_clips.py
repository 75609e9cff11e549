"""Clips without captions: all of them in order, from their start."""

import numpy as np
from loading_cases import LONGEST_S, SEGMENT_S, SEGMENT_SAMPLES, single_pairs

from data.loading.clips import load_clips


def test_clips_for_embedding_come_in_order_and_from_their_start(split):
    batches = list(load_clips(split, SEGMENT_S, LONGEST_S, batch_size=3))
    assert [batch.clips.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for segments, draws, caption, clip in (pair for batch in batches for pair in single_pairs(batch)):
        samples = split.read_window(clip, 0, split.num_samples[clip])[: len(segments) * SEGMENT_SAMPLES]
        heard = segments.ravel()[: len(samples)].numpy()
        np.testing.assert_array_equal(heard, samples)
        assert len(segments) == [1, 1, 1, 2, 3, 3, 3][clip]
        assert (caption, draws.any().item()) == ("", False)
