"""PC9: LoRA's variants, each at a learning rate of its own: do they differ?

    python scripts/paper_check.py --config configs/studies/pc9.py

Papers: 2602.04998, 2602.09492, 2601.22708 (2026) find tuned variants within 1 to 2 % of LoRA; rsLoRA (2312.03732), LoRA+ (2402.12354),
DoRA (2402.09353), PiSSA (2404.02948), LoRA-FA (2308.03303) claim more. Set-up: T64, English commands to JSON, rank 8 on all linear layers,
60 steps of 4 x 80 tokens, constant rate; five rates a variant, more where the best is at an edge, chosen on validation with one seed; then
five seeds at the own rate and at LoRA's. Predicted: losses at own rates within 2 %, at LoRA's rate further apart, best rates up to 10 times
apart. AdaLoRA, whose ranks follow the steps of a run, is not among them.
"""

from peftjax.peft import lora
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with two variants and few steps."""
    config = trials_config("pc9")
    on_commands(config)
    config.arms = {
        "LoRA": arm(lora(rank=8, alpha=16)), "rsLoRA": arm(lora(rank=8, alpha=16, rslora=True)),
        "LoRA+": arm(lora(rank=8, alpha=16), fields={"optimizer.lora_plus_ratio": 16.0}), "DoRA": arm(lora(rank=8, alpha=16, dora=True)),
        "PiSSA": arm(lora(rank=8, alpha=16, init="pissa")), "LoRA-FA": arm(lora(rank=8, alpha=16, freeze_a=True)),
    }
    config.centre, config.at_rate_of = 1e-2, "LoRA"
    config.starts = {"LoRA+": -2, "rsLoRA": -1, "PiSSA": -1}
    if variant == "runlocal":
        shorten(config, ("LoRA", "rsLoRA"))
    elif variant:
        raise ValueError(f"no variant {variant!r}; there is runlocal")
    return config


def on_commands(config):
    """Base, data and steps of these checks: T64, commands to JSON."""
    config.runs = "runs/checks-t64"
    run = config.run
    run.base.uri = "tiny:t64"
    run.data.name, run.data.prompt, run.data.length = "ha_intents", "Command: {prompt}\nJSON:", 80
    run.data.fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
    run.train.steps, run.train.batch_size = 60, 4
    run.eval.rows = 64


def shorten(config, names):
    """A few steps of a few arms, to see that everything works."""
    config.arms = {name: config.arms[name] for name in names}
    config.runs = ""
    config.run.train.steps, config.rates, config.rounds, config.seeds, config.run.eval.rows = 25, 3, 0, (0, 1), 8
