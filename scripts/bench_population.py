"""Times a population of K members against K runs of their own, on SmolLM2-135M and on a base of a million parameters.

    python scripts/bench_population.py                                     the table of ratios, and memory
    python scripts/bench_population.py --bases=small --shapes=1x32,4x64    one base alone
    python scripts/bench_population.py --search                            the best of 16 points by halving, against running all
    python scripts/bench_population.py --peer_python /tmp/peft/bin/python  a sweep of 8 LoRAs, 20 steps at 4x64, against HF PEFT
"""

import sys
import tempfile
from pathlib import Path

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

BASES = flags.DEFINE_list("bases", ["small", "smollm2"], "Bases: small, smollm2, or a URI.")
SHAPES = flags.DEFINE_list("shapes", ["1x32", "4x64"], "BATCHxLENGTH of a member's step.")
COUNT = flags.DEFINE_integer("count", 8, "Members.", lower_bound=1)
PEER = flags.DEFINE_string("peer_python", None, "Python of an environment with HF PEFT, to time the sweep against.")
SEARCH = flags.DEFINE_bool("search", False, "Time a search by halving instead, on the first base and shape.")
TURNS = flags.DEFINE_integer("turns", 5, "Timed turns.", lower_bound=1)


def main(_):
    from peftjax.interop.base import load_base
    from peftjax.train import bench_pair
    from peftjax.train import bench_population as bench
    from peftjax.train.config import SMOLLM2

    if SEARCH.value:
        from peftjax.train.population import Halving

        base = bench.small_base() if BASES.value[0] == "small" else load_base(SMOLLM2)
        found = bench.search(base, *map(int, SHAPES.value[0].split("x")), Halving((25, 50, 100)))
        return print(f"{found.count} points of {found.steps} steps: all {found.all_s:.1f} s, by halving {found.halving_s:.1f} s, "
                     f"{found.halving_s / found.all_s:.2f}; best point {found.best}, found {found.found}")
    if PEER.value:
        script = str(Path(__file__).parent / "peers" / "bench_train_peer.py")
        with tempfile.TemporaryDirectory() as folder:
            bench_pair.write_base(SMOLLM2, f"{folder}/base")
            command = [PEER.value, script, f"--base={folder}/base", "--method=lora", "--shape=4x64"]
            found = bench.sweep(lambda: load_base(SMOLLM2), command, COUNT.value, 4, 64, 20, TURNS.value)
        return print(f"{found}: {found.ratio:.2f}")
    rows = []
    for name in BASES.value:
        base = bench.small_base() if name == "small" else load_base(SMOLLM2 if name == "smollm2" else name)
        for shape in SHAPES.value:
            rows.append(bench.compare(name, base, COUNT.value, *map(int, shape.split("x")), TURNS.value))
            print(f"{name} {shape}: {rows[-1].ratio:.2f}", file=sys.stderr, flush=True)
    print(bench.as_table(rows))


if __name__ == "__main__":
    restart_with_huge_pages()
    app.run(main)
