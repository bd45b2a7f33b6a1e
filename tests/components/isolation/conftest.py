"""Makes `called_in_child` importable by its name, here and in the child that has this process' path of modules."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
