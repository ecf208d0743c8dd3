"""Times training on real data, alone or in turns with HF PEFT: response tokens a second, packed and shared against padded batches.

    python scripts/bench_data.py                                           ours alone, on the data of three configs
    python scripts/bench_data.py --turns=6 --peer_python /tmp/peft/bin/python
    python scripts/bench_data.py --only=bank_lora --forms=run,plain,full,bucket --turns=12 --peer_python ...
"""

import json
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

PEFT = flags.DEFINE_string("peer_python", None, "Python of an environment with HF PEFT.")
BASE = flags.DEFINE_string("base", None, "Base to train; default that of each config.")
ONLY = flags.DEFINE_list("only", ["quickstart", "icd_lora", "bank_lora"], "Files in configs/ whose data is used.")
FORMS = flags.DEFINE_list("forms", ["run", "full"], "Ours: run, plain, full, bucket (see peftjax.train.bench_data).")
TURNS = flags.DEFINE_integer("turns", 4, "Batches of rows that each form works through.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 16, "Rows of a batch.", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", 2, "Threads of the peer.", lower_bound=1)
SERVE = flags.DEFINE_string("serve", None, "Our side of one set, as JSON (used by the script itself).")


def main(_):
    from peftjax.train import bench_data
    from peftjax.train.bench_worker import serve

    if SERVE.value:
        return serve(lambda: bench_data.data_worker(**json.loads(SERVE.value)))
    from peftjax.interop.base import load_base
    from peftjax.train.bench_pair import write_base
    from peftjax.train.config import from_file

    root, found = Path(__file__).parent, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ONLY.value:
            config, rows = from_file(root.parent / "configs" / f"{name}.py"), Path(folder, f"{name}.npz")
            uri, base = BASE.value or config.base.uri, Path(folder, f"{name}-base")
            bench_data.write_rows(rows, config, load_base(uri).tokenizer, ROWS.value)
            case = {"uri": uri, "file": str(rows), "length": config.data.length, "rows_per_step": ROWS.value, "forms": FORMS.value}
            peer = [PEFT.value, str(root / "peers" / "bench_data_peft.py"), f"--base={base}", f"--rows={rows}"]
            peer += [f"--rows_per_step={ROWS.value}", f"--threads={THREADS.value}"]
            if PEFT.value:
                write_base(uri, str(base))
            ours = [sys.executable, __file__, f"--serve={json.dumps(case)}"]
            found[name], facts, idle = bench_data.compare(ours, peer if PEFT.value else None, FORMS.value, TURNS.value, ROWS.value)
            print(f"{name}: {facts['forms']}; who waits takes {idle} of a core at most", file=sys.stderr, flush=True)
    print(bench_data.as_table(found))


if __name__ == "__main__":
    if any(argument.startswith("--serve") for argument in sys.argv):  # as scripts/train.py; the peer starts as its users start it
        restart_with_huge_pages()
    app.run(main)
