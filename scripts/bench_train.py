"""Times the training step, alone or in turns with HF PEFT and AdapterHub: tokens/s, fraction of the GEMM rate, peaks, first steps.

    python scripts/bench_train.py                      ours alone: all methods at 4x256, 8x128, 1x1024, on SmolLM2-135M
    python scripts/bench_train.py --remat=auto,block --peer_python /tmp/peft/bin/python --adapters_python /tmp/adapters/bin/python
    python scripts/bench_train.py --quantise=nf4 --only=lora --shapes=4x256     QLoRA; ours in float32 takes the peer's place
    python scripts/bench_train.py --cold=3 --peer_python ...           from process start to the first step at 4x256, warm caches

Environments as in scripts/agree_with_peers.py; remat=block is compared with the peer's gradient checkpointing, all else without.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

PEFT = flags.DEFINE_string("peer_python", None, "Python of an environment with HF PEFT.")
ADAPTERS = flags.DEFINE_string("adapters_python", None, "Python of an environment with AdapterHub's `adapters`.")
BASE = flags.DEFINE_string("base", None, "Base to train; default SmolLM2-135M-Instruct.")
ONLY = flags.DEFINE_list("only", None, "Methods; default all of peftjax.train.bench.METHODS.")
SHAPES = flags.DEFINE_list("shapes", ["4x256", "8x128", "1x1024"], "BATCHxLENGTH of the cases.")
STEPS = flags.DEFINE_integer("steps", 5, "Timed steps a side.", lower_bound=1)
REMAT = flags.DEFINE_list("remat", ["auto"], "What the backward pass recomputes: auto is what a run does.")
QUANTISE = flags.DEFINE_string("quantise", None, "Quantise our base so, and compare with our own float32 step.")
COLD = flags.DEFINE_integer("cold", 0, "Process starts to time, each side; 0 times steps.", lower_bound=0)
SERVE = flags.DEFINE_string("serve", None, "Our side of one case, as JSON (used by the script itself).")


def main(_):
    from peftjax.train import bench_pair, bench_worker

    if SERVE.value:
        return bench_worker.serve(lambda: bench_pair.training_worker(**json.loads(SERVE.value)))
    from peftjax.train.bench import METHODS
    from peftjax.train.config import SMOLLM2

    uri, rows, script = BASE.value or SMOLLM2, [], str(Path(__file__).parent / "peers" / "bench_train_peer.py")

    def ours(case, **more):
        fields = dict(zip(("method", "remat", "batch", "length"), case, strict=True), uri=uri, **more)
        return [sys.executable, __file__, f"--serve={json.dumps(fields)}"]

    def peer(method, remat, batch, length):
        name, python = ("AdapterHub", ADAPTERS.value) if method in ("pfeiffer", "houlsby") else ("HF PEFT", PEFT.value)
        command = [python, script, f"--base={folder}/base", f"--method={method}", f"--shape={batch}x{length}"]
        return {name: command + ["--checkpointing"] * (remat == "block")} if python else {}

    with tempfile.TemporaryDirectory() as folder:
        if PEFT.value or ADAPTERS.value:
            bench_pair.write_base(uri, f"{folder}/base")
        for shape, remat, method in itertools.product(SHAPES.value, REMAT.value, ONLY.value or METHODS):
            case = (method, remat, *map(int, shape.split("x")))
            sides = {"peftjax": ours(case, quantise=QUANTISE.value, cache=COLD.value > 0)}
            sides |= {"peftjax float32": ours(case, cache=COLD.value > 0)} if QUANTISE.value else peer(*case)
            if COLD.value:
                print(f"{method} {shape}\n{bench_pair.cold_table(bench_pair.cold_starts(sides, COLD.value))}", flush=True)
                continue
            rows.append(bench_pair.compare(case, sides, STEPS.value))
            print(bench_pair.describe(rows[-1]), file=sys.stderr, flush=True)
    if rows:
        print(bench_pair.as_table(rows))


if __name__ == "__main__":
    if any(argument.startswith("--serve") for argument in sys.argv):  # as scripts/train.py; the peers as their users start them
        restart_with_huge_pages()
    app.run(main)
