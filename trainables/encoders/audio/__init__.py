"""Audio encoders: segments of audio -> one vector each.

`build(config)` makes one with its initial weights, `restore(config)` one whose weights are loaded later. Both return an `nn.Module` with `width` and
`forward(segments_SN, mask_draws, generator) -> [S, width]`: S segments of N samples, their SpecAugment draws
[S, data.batches.MASK_DRAWS], and the generator of what one global batch shares (jitter, dropped patches); the last two
matter in training only. `Config.segment_s` says how long a segment is.
"""
