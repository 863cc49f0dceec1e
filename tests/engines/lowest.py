"""Print the lowest version that pyproject.toml allows of each direct dependency, for pip.

    python tests/engines/lowest.py EXTRA ... > constraints.txt

torch is left out: see lowest.sh.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def lowest(text: str) -> str:
    """Return `name==version` of a requirement's lower bound."""
    needed = Requirement(text)
    (floor,) = (s.version for s in needed.specifier if s.operator in (">=", "=="))
    return f"{needed.name}=={floor}"


wanted = [*PROJECT["dependencies"]]
for extra in sys.argv[1:]:
    wanted += PROJECT["optional-dependencies"][extra]
for line in sorted({lowest(text) for text in wanted if Requirement(text).name != "torch"}):
    print(line)
