"""Put the repository's root first on the module path of a command that is run as a script: `import _run_as_script`.

A script's own folder comes first on its path, where ensemble/select.py would answer the standard library's `import
select`. The root takes its place before anything else is imported, here and in child processes.
"""

import os
import sys
from pathlib import Path

_folder = Path(__file__).resolve().parent
sys.path[:] = [str(_folder.parent), *(entry for entry in sys.path if Path(entry).resolve() != _folder)]
os.environ["PYTHONSAFEPATH"] = "1"
