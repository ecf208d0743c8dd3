"""Writes a base as it is held in memory, quantised or dense, so that the next load is a copy: nothing is decoded or quantised again.

    python scripts/convert.py --base /models/mine --quantise nf4 --to /models/mine-nf4
    python scripts/convert.py --base pypi:... --quantise "embed=int8,all-linear=nf4" --to held
    python scripts/train.py --config configs/own.py --config.base.uri=/models/mine-nf4 --config.data.name=mine.jsonl

    python scripts/convert.py --base /models/mine --quantise nf4 --start loftq --rank 16 --to /models/mine-loftq
    python scripts/train.py --config configs/train_on.py --config.base.uri=/models/mine-loftq \\
        --config.adapter.path=/models/mine-loftq/adapter

The forms are those of `peftjax.interop.quantise`; without --quantise the base stays dense. With --start it is quantised together with the
LoRA that makes up for what that loses, which is written beside it (`peftjax.train.quantised_start`).
"""

from absl import app, flags

BASE = flags.DEFINE_string("base", None, "Directory, .gguf file, pypi:... or hub id. Default: SmolLM2-135M-Instruct.")
QUANTISE = flags.DEFINE_string("quantise", None, 'Rules: "nf4", "as stored", "embed=int8,all-linear=nf4", ...')
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of what is not quantised.")
START = flags.DEFINE_enum("start", None, ["loftq", "qpissa"], "Of a LoRA that makes up for quantising; default none.")
RANK = flags.DEFINE_integer("rank", 16, "Of --start.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of --start: how often the LoRA is found and the rest quantised.", lower_bound=1)
TARGETS = flags.DEFINE_list("targets", ["all-linear"], "Of --start.")
TO = flags.DEFINE_string("to", None, "Folder of the converted base.", required=True)


def main(_):
    from peftjax.interop.base import load_base
    from peftjax.interop.held import write_held
    from peftjax.interop.quantise import describe
    from peftjax.peft.partition import size
    from peftjax.train.config import SMOLLM2
    from peftjax.train.startup import log_warnings_only

    log_warnings_only()
    uri = BASE.value or SMOLLM2
    base = load_base(uri, dtype=DTYPE.value, quantise=QUANTISE.value)
    if START.value:
        from peftjax.peft import lora
        from peftjax.train.quantised_start import ADAPTER, write_start

        method = lora(rank=RANK.value, targets=tuple(TARGETS.value))
        print(f"{START.value} of rank {RANK.value} on {uri}, {describe(base.quantise)}: {ROUNDS.value} rounds at each kernel", flush=True)
        for path, (alone, both) in write_start(TO.value, base, load_base(uri), method, START.value, ROUNDS.value).items():
            print(f"{path:30}  {100 * alone:6.2f} % of the weight is lost by quantising, {100 * both:6.2f} % with the LoRA")
        print(f"{TO.value}: the base; {TO.value}/{ADAPTER}: the LoRA, for this base and no other")
        return
    write_held(TO.value, base.config, base.params, base.tokenizer, dtype=base.dtype, quantise=base.quantise, origin={"base": base.uri})
    values, held = size(base.params)
    print(f"{base.uri} -> {TO.value}: {values:,} weights in {held / 1e6:.1f} MB, {describe(base.quantise)}; fingerprint {base.fingerprint}")


if __name__ == "__main__":
    app.run(main)
