"""Times the training step: tokens/s, fraction of the machine's GEMM rate, peak memory, one process a case.

    python scripts/bench_train.py                                 all methods and shapes, on SmolLM2-135M
    python scripts/bench_train.py --cases lora:4x256 --steps 9
"""

import json
import subprocess
import sys

from absl import app, flags

CASES = flags.DEFINE_list("cases", None, "Cases as method:BATCHxLENGTH; default is every method at 4x256, 8x128, 1x1024.")
BASE = flags.DEFINE_string("base", None, "Base to train; default SmolLM2-135M-Instruct.")
STEPS = flags.DEFINE_integer("steps", 5, "Timed steps a case; the median is printed.", lower_bound=1)
REMAT = flags.DEFINE_enum(
    "remat", "dots", ["none", "attention", "dots", "block"], "What the backward pass recomputes; dots is what a run does."
)
ONE = flags.DEFINE_string("one", None, "One case, measured in this process, printed as JSON (used by the script itself).")


def measure_here(case: str) -> None:
    """Measures one case and prints it as JSON."""
    import dataclasses

    from peftjax.interop.base import load_base
    from peftjax.train.bench import measure
    from peftjax.train.config import SMOLLM2

    method, _, shape = case.partition(":")
    batch, length = map(int, shape.split("x"))
    row = measure(load_base(BASE.value or SMOLLM2), method, batch, length, STEPS.value, REMAT.value)
    print(json.dumps(dataclasses.asdict(row)))


def main(_):
    if ONE.value:
        return measure_here(ONE.value)
    from peftjax.train.bench import METHODS, SHAPES, Measured, as_table

    rows = []
    for case in CASES.value or [f"{method}:{b}x{n}" for b, n in SHAPES for method in METHODS]:
        command = [sys.executable, __file__, f"--one={case}", f"--steps={STEPS.value}", f"--remat={REMAT.value}"]
        done = subprocess.run(command + ([f"--base={BASE.value}"] if BASE.value else []), stdout=subprocess.PIPE, text=True, check=True)
        rows.append(Measured(**json.loads(done.stdout.splitlines()[-1])))
        print(f"{case}: {rows[-1].tokens_per_s:.0f} tokens/s", file=sys.stderr, flush=True)
    print(as_table(rows))


if __name__ == "__main__":
    app.run(main)
