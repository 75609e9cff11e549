"""Counts of floating-point operations in a forward pass; a multiplication and an addition count as two."""


def count_transformer(num_tokens: float, layers: int, width: int) -> float:
    """Return the number of floating-point operations that the `layers` layers of a transformer, of this width, take for
    one sequence of `num_tokens` tokens. As in BERT and ViT, the feed-forward layers are four times as wide.

    A layer multiplies each token by matrices of (3 + 1 + 4 + 4) width x width entries (query, key and value; output;
    two feed-forward layers), and computes two products between all tokens (attention scores and weighted values).
    """
    return layers * (24 * num_tokens * width**2 + 4 * num_tokens**2 * width)


def count_convolution(channels_in: int, channels_out: int, kernel: tuple[int, int], positions: int) -> float:
    """Return the number of floating-point operations of a two-dimensional convolution, from its numbers of channels,
    its kernel size (height, width), and the number of positions in its output, height times width.
    """
    return 2 * channels_in * channels_out * kernel[0] * kernel[1] * positions
