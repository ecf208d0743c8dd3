"""Where a training step's time goes: instructions by origin with their FLOP/s, temporaries, fraction of the machine's own GEMM rate.

    python scripts/profile_step.py [--method=lora] [--shape=4x256] [--remat=auto] [--quantise=nf4] [--top=25]
"""

from absl import app, flags

from peftjax.huge_pages import restart_with_huge_pages

METHOD = flags.DEFINE_string("method", "lora", "A method of peftjax.train.bench.METHODS.")
SHAPE = flags.DEFINE_string("shape", "4x256", "BATCHxLENGTH.")
REMAT = flags.DEFINE_string("remat", "auto", "As config.model.remat.")
BASE = flags.DEFINE_string("base", None, "Base to train; default SmolLM2-135M-Instruct.")
QUANTISE = flags.DEFINE_string("quantise", None, "How the base is held; default in float32.")
TOP = flags.DEFINE_integer("top", 25, "Lines of each table.", lower_bound=1)


def main(_):
    from peftjax.interop.base import load_base
    from peftjax.train.bench import METHODS
    from peftjax.train.config import SMOLLM2
    from peftjax.train.profile import as_table, profile_step
    from peftjax.train.startup import use_compilation_cache

    use_compilation_cache()
    base = load_base(BASE.value or SMOLLM2, quantise=QUANTISE.value)
    batch, length = (int(size) for size in SHAPE.value.split("x"))
    print(as_table(profile_step(base, METHODS[METHOD.value], batch, length, REMAT.value), TOP.value))


if __name__ == "__main__":
    restart_with_huge_pages()
    app.run(main)
