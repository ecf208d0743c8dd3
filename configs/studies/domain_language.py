"""Domains x languages: a language adapter fused with a domain adapter against one LoRA for the pair.

    python scripts/paper_check.py --config configs/studies/domain_language.py

Papers: MAD-X (2005.00052, 2020), language adapters under task adapters; AdapterFusion (2005.00247, 2021), whose gains are told for tasks
with few rows; 2602.12323 (2026), by which merging works as well with random adapters: hence a random library as control. Set-up: T64, a
tiny base trained on English prose alone, so that other languages are hard; Home Assistant's commands to JSON, four domains x four
languages, of which four pairs, one a domain and language, are seen by no adapter of the library. Library: for each seed a Pfeiffer
adapter of size 16 a language and a domain, 120 steps of 4 x 80 tokens, rate 1e-2, not tuned. On 16 and 128 rows of each pair, 60 steps:
LoRA of rank 10 on all linear layers (48,640 numbers), fusion of the pair's two adapters (49,408), fusion of two random ones; the rate of
each is tuned with as many trials on seed 100. Without training: both stacked, averaged, each alone. Loss on test rows of other templates.
Predicted: fusion below LoRA on 16 rows, not told apart or above on 128; fusion below that of random adapters on both; stack below the base.
Comparisons with the domain adapter alone were added when its loss was seen, before LoRA's and the fusions' were.
Measured (253 items in 142 groups, three seeds): fusion above LoRA by .149 [.075, .222] on 16 rows, not as predicted, and not told apart on
128 (+.147 [-.027, .321]); below random adapters by .951 [.896, 1.006] and .930 [.701, 1.160]; stack below the base by 2.97 [2.74, 3.20] and
above the domain adapter alone by 1.34 [1.14, 1.54], the best of what trains nothing on the pair. In README with all losses.
"""

from peftjax.peft import lora
from peftjax.study.checks.domain_language import default_config
from peftjax.train.config import methods


def get_config(variant: str = ""):
    """The config; `variant` is "", or "runlocal" with two pairs and few steps."""
    config = default_config()
    config.pairs = (("switch", "de"), ("timer", "fr"), ("media", "es"), ("query", "en"))
    run = config.run
    run.base.uri = "tiny:t64"
    run.data.name, run.data.prompt, run.data.length = "ha_intents", "Command: {prompt}\nJSON:", 80
    run.data.options = {"cap": 36, "cap_other": 36}
    run.data.fractions = {"train": 0.5, "validation": 0.2, "test": 0.3}
    run.train.steps, run.train.batch_size = 60, 4
    run.eval.rows, run.eval.batch_size = 64, 16
    config.lora = methods(lora(rank=10))
    if variant == "runlocal":
        config.pairs = (("timer", "de"), ("query", "en"))
        config.library.steps, run.train.steps, run.eval.rows = 8, 4, 8
        config.sizes, config.rounds, config.seeds = (16,), 0, (0, 1)
    elif variant:
        raise ValueError(f"no variant {variant!r}; there is runlocal")
    return config
