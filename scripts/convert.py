"""Writes a base as it is held in memory, quantised or dense, so that the next load is a copy: nothing is decoded or quantised again.

    python scripts/convert.py --base /models/mine --quantise nf4 --to /models/mine-nf4
    python scripts/convert.py --base pypi:... --quantise "embed=int8,all-linear=nf4" --to held
    python scripts/train.py --config configs/own.py --config.base.uri=/models/mine-nf4 --config.data.name=mine.jsonl

The forms are those of `peftjax.interop.quantise`; without --quantise the base stays dense.
"""

from absl import app, flags

BASE = flags.DEFINE_string("base", None, "Directory, .gguf file, pypi:... or hub id.", required=True)
QUANTISE = flags.DEFINE_string("quantise", None, 'Rules: "nf4", "as stored", "embed=int8,all-linear=nf4", ...')
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of what is not quantised.")
TO = flags.DEFINE_string("to", None, "Folder of the converted base.", required=True)


def main(_):
    from peftjax.interop.base import load_base
    from peftjax.interop.held import write_held
    from peftjax.interop.quantise import describe
    from peftjax.peft.partition import size

    base = load_base(BASE.value, dtype=DTYPE.value, quantise=QUANTISE.value)
    write_held(TO.value, base.config, base.params, base.tokenizer, dtype=base.dtype, quantise=base.quantise, origin={"base": base.uri})
    values, held = size(base.params)
    print(f"{base.uri} -> {TO.value}: {values:,} weights in {held / 1e6:.1f} MB, {describe(base.quantise)}; fingerprint {base.fingerprint}")


if __name__ == "__main__":
    app.run(main)
