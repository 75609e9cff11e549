"""Floating-point operations of layers in a forward pass; a multiplication and an addition are two."""


def transformer(num_tokens: float, layers: int, width: int) -> float:
    """A transformer of BERT's and ViT's shape on one sequence, its feed-forward layers four times as wide.

    A layer multiplies each token with matrices of 3 + 1 + 4 + 4 times width x width, and mixes all tokens twice.
    """
    return layers * (24 * num_tokens * width**2 + 4 * num_tokens**2 * width)


def convolution(channels_in: int, channels_out: int, kernel: tuple[int, int], positions: int) -> float:
    """A two-dimensional convolution; `positions` is the size of what it gives."""
    return 2 * channels_in * channels_out * kernel[0] * kernel[1] * positions
