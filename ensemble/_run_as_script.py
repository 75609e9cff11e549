"""Put the repository's root first on the module path of a command that is run as a script: `import _run_as_script`.

The folder of a script is the first entry of its module path, where ensemble/select.py would shadow the standard
library's `select`. The repository's root replaces it before anything else is imported, here and in child processes.
"""

import os
import sys
from pathlib import Path

_folder = Path(__file__).resolve().parent
sys.path[:] = [str(_folder.parent), *(entry for entry in sys.path if Path(entry).resolve() != _folder)]
os.environ["PYTHONSAFEPATH"] = "1"
