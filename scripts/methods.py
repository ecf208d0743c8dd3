"""Prints the README's table of methods, made from the code: what each is, where it acts, whether it merges, how many numbers it trains.

    python scripts/methods.py
"""

from absl import app


def main(_):
    from peftjax.train.catalogue import as_table

    print(as_table())


if __name__ == "__main__":
    app.run(main)
