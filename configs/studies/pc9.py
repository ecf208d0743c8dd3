"""PC9: LoRA's variants, each at a learning rate of its own: do they differ?

    python scripts/paper_check.py --config configs/studies/pc9.py

Papers: 2602.04998, 2602.09492, 2601.22708 (2026) find tuned variants within 1 to 2 % of LoRA; rsLoRA (2312.03732), LoRA+ (2402.12354),
DoRA (2402.09353), PiSSA (2404.02948), LoRA-FA (2308.03303), AdaLoRA (2303.10512) claim more. Set-up: T64, English commands to JSON, rank 8
on all linear layers, 60 steps of 4 x 80 tokens, constant rate; five rates a variant, more where the best is at an edge, chosen on
validation with one seed; then five seeds at the own rate and at LoRA's. Predicted: losses at own rates within 2 %, at LoRA's rate further
apart, best rates up to 10 times apart. AdaLoRA, with LoRA's scale, starts at rank 12 and is at 8 on average from step 40 on; it was added
when the others' results were known, to the same prediction.
Measured: every best rate lies inside its grid, and they are 10 times apart. At own rates (63 test items in 48 groups, loss against LoRA's
2.83 nats a token, 95 %): LoRA-FA -5.1 % [-8.0, -2.1], DoRA -2.9 % [-4.6, -1.2], LoRA+ -1.2 % [-5.1, +2.7], rsLoRA -0.4 % [-2.2, +1.4],
AdaLoRA -0.3 % [-2.3, +1.7], PiSSA -0.1 % [-2.1, +1.9]: none told apart from LoRA after Holm's correction of six, and none shown to be a
tie. LoRA-FA and DoRA have p .051, and would have .042 with the five comparisons that there were before AdaLoRA. The spread is 5.4 %, at
LoRA's rate 71 %. On the first training of T64, of perplexity 111, PiSSA was 4.3 % worse [2.8, 5.8], p .002, and the others not told apart:
DoRA +0.7 % [-0.2, +1.7], LoRA+ -0.3 %, LoRA-FA -1.7 % [-4.0, +0.7], rsLoRA +0.3 %. The rule was first a spread of 2 %, or exceptions that
survive the correction, as PiSSA's did then; both are told apart since.
"""

from peftjax.peft import adalora, lora
from peftjax.study.checks.trials import arm, trials_config


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with two variants and few steps."""
    config = trials_config("pc9")
    on_commands(config)
    config.arms = {
        "LoRA": arm(lora(rank=8, alpha=16)), "rsLoRA": arm(lora(rank=8, alpha=16, rslora=True)),
        "LoRA+": arm(lora(rank=8, alpha=16), fields={"optimizer.lora_plus_ratio": 16.0}), "DoRA": arm(lora(rank=8, alpha=16, dora=True)),
        "PiSSA": arm(lora(rank=8, alpha=16, init="pissa")), "LoRA-FA": arm(lora(rank=8, alpha=16, freeze_a=True)),
        "AdaLoRA": arm(adalora(rank=12, target_rank=8, alpha=24, warmup=10, final=20)),
    }
    config.centre, config.at_rate_of = 1e-2, "LoRA"
    config.starts = {"LoRA+": -2, "rsLoRA": -1, "PiSSA": -1, "AdaLoRA": 1}
    in_variant(config, variant, ("LoRA", "rsLoRA"))
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


def in_variant(config, variant, names=()):
    """As it is for "", or for "runlocal" a few steps of these arms (default: all), to see that everything works.

    Raises:
        ValueError: another variant.
    """
    if variant == "runlocal":
        shorten(config, names or tuple(config.arms))
    elif variant:
        raise ValueError(f"no variant {variant!r}; there is runlocal")


def shorten(config, names):
    """A few steps of a few arms, to see that everything works."""
    config.arms = {name: config.arms[name] for name in names}
    config.runs = ""
    config.run.train.steps, config.rates, config.rounds, config.seeds, config.run.eval.rows = 25, 3, 0, (0, 1), 8
