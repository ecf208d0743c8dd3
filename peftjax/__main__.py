"""The command that comes with the package: what methods there are.

    peftjax methods             the README's table, made from the code: what each is, where it acts, whether it merges, what it trains
    peftjax methods lora        one of them: its formula, its settings with their defaults, and what they mean
    peftjax methods houlsby     a preset, and the methods that it is

`python -m peftjax` is the same where the package is not installed.
"""

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what was asked for; a method that is not there ends the process with the nearest one that is."""
    parser = argparse.ArgumentParser(prog="peftjax", description="LoRA and adapters as parameter-tree transformations.")
    commands = parser.add_subparsers(required=True)
    methods = commands.add_parser("methods", help="the table of methods, or one of them with its settings")
    methods.add_argument("name", nargs="?", help="of a method or a preset, as in a config")
    asked = parser.parse_args(arguments)
    from peftjax.train.catalogue import as_table, as_text

    try:
        print(as_table() if asked.name is None else as_text(asked.name), flush=True)
    except ValueError as error:
        parser.error(str(error))
    except BrokenPipeError:  # who reads, as `head`, has enough; nor is the rest to be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
