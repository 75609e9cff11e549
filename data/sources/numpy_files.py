"""NumPy files of arrays that come from a user."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError


def read_array(path: Path) -> NDArray[Any]:
    """Return the array in a NumPy file, memory-mapped. Raises UserError if the file is missing or invalid."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # what np.load raises for a damaged header depends on Python's tokenizer and parser
        raise UserError(f"{path} isn't a NumPy file of numbers: {error}; write it again with np.save") from error
