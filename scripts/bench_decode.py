"""Times greedy decoding (128-token prompts, 64 new tokens), alone or in turns with HF PEFT and AdapterHub.

    python scripts/bench_decode.py                                     ours alone, on SmolLM2-135M
    python scripts/bench_decode.py --peer_python /tmp/peft/bin/python --adapters_python /tmp/adapters/bin/python
    python scripts/bench_decode.py --only=base,lora --batches=1 --rounds=5

The environments are those of scripts/agree_with_peers.py. All libraries hold all their variants at once and are asked in turns.
"""

import json
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

PEFT = flags.DEFINE_string("peer_python", None, "Python of an environment with HF PEFT.")
ADAPTERS = flags.DEFINE_string("adapters_python", None, "Python of an environment with AdapterHub's `adapters`.")
BASE = flags.DEFINE_string("base", None, "Base to decode with; default SmolLM2-135M-Instruct.")
ONLY = flags.DEFINE_list("only", None, "Cases; default all of peftjax.train.bench_decode.CASES.")
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Rows decoded together.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds; medians are printed.", lower_bound=1)
PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens of a prompt.", lower_bound=1)
NEW = flags.DEFINE_integer("new", 64, "New tokens.", lower_bound=2)
SERVE = flags.DEFINE_string("serve", None, "Our side, as JSON (used by the script itself).")


def main(_):
    from peftjax.train import bench_decode
    from peftjax.train.bench_worker import serve

    if SERVE.value:
        return serve(lambda: bench_decode.decoding_worker(**json.loads(SERVE.value)))
    from peftjax.train.bench_pair import write_base
    from peftjax.train.config import SMOLLM2

    cases, uri = ONLY.value or list(bench_decode.CASES), BASE.value or SMOLLM2
    peers = [("HF PEFT", PEFT.value, ["base", "lora", "merged", "mixed"]), ("AdapterHub", ADAPTERS.value, ["base", "pfeiffer", "houlsby"])]
    ours = {"uri": uri, "cases": cases, "prompt": PROMPT.value, "new": NEW.value}
    commands = {"peftjax": [sys.executable, __file__, f"--serve={json.dumps(ours)}"]}
    with tempfile.TemporaryDirectory() as folder:
        for name, python, known in peers:
            wanted = [case for case in known if case in cases]
            if python and wanted:
                script = str(Path(__file__).parent / "peers" / "bench_decode_peer.py")
                commands[name] = [
                    python, script, f"--base={folder}/base", f"--cases={','.join(wanted)}", f"--prompt={PROMPT.value}", f"--new={NEW.value}"
                ]
        if len(commands) > 1:
            write_base(uri, f"{folder}/base")
        result = bench_decode.run(commands, [int(batch) for batch in BATCHES.value], ROUNDS.value, NEW.value)
    print(bench_decode.as_table(result))
    if result.idle is not None:
        print(f"\nA waiting process took at most {100 * result.idle:.1f} % of a core.")


if __name__ == "__main__":
    if any(argument.startswith("--serve") for argument in sys.argv):  # as scripts/train.py; the peers start as their users start them
        restart_with_huge_pages()
    app.run(main)
