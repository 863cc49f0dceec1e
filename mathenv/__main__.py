"""`python -m mathenv` is the `mathenv` command.

The command stands in a package above this one, which this one may not import. Whoever installs the
project registers it as the entry point `mathenv`, and this runs what is registered.
"""

import sys
from importlib.metadata import entry_points


def main() -> None:
    """Run the installed command."""
    found = list(entry_points(group="console_scripts", name="mathenv"))
    if not found:
        sys.exit("mathenv: not installed: run `pip install -e .` in the folder of its source")
    found[0].load()()


main()
