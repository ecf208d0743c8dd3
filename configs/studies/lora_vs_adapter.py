"""LoRA or adapters? LoRA against Pfeiffer and Houlsby at two budgets of trained parameters, on three data sets.

    python scripts/study.py --config configs/studies/lora_vs_adapter.py

Base: tiny:t64, a decoder of 4 layers of width 64 that was trained from scratch (configs/pretrain/t64.py): a tiny base, which says how the
methods compare there and nothing of larger ones; it hardly ever answers a whole row rightly, so methods are compared by their loss on the
test items, in nats a token. Methods: LoRA on all linear layers (2106.09685, 2021), Pfeiffer (2005.00247, 2020), Houlsby (1902.00751, 2019).
Data: Home Assistant intents in English, ICD-10-CM chapters, and the bank's facts asked without their text; training and test differ in
whole templates, categories and products.

Measured on 2 CPU cores that other work shared, in some 30 minutes, ten seeds (as many as was settled before any was measured): of 18 pairs
14 are told apart. LoRA is best on all three sets at 9,728 parameters; at 38,912 Pfeiffer is best on Home Assistant and ICD chapters, LoRA
on the bank's facts; by ranks over all six LoRA and Pfeiffer are not told apart. The README has the table.

`:smollm2` asks the same of SmolLM2-135M-Instruct, as far as two cores carry it: two data sets, one budget (LoRA of rank 8), 60 steps of
2 x 128 tokens, five seeds. Measure, settled before any run: the loss; what is answered rightly is told beside it. Measured in 90 minutes on
two cores that other work shared: of six pairs none is told apart, and none is shown to be within 0.02 nats.

`:runlocal` is the first in a few steps, to see that everything works.
"""

from peftjax.peft import houlsby, lora, pfeiffer
from peftjax.study.config import default_study
from peftjax.train.config import SMOLLM2, methods

HOME = {
    "data": {"name": "ha_intents", "options": {"languages": ("en",)}, "prompt": "Command: {prompt}\nJSON:",
             "fractions": {"train": 0.75, "validation": 0.1, "test": 0.15}},
    "eval": {"metrics": ("exact_match", "json_field_f1"), "max_new": 48},
}
ICD = {"data": {"name": "icd_chapter"}, "eval": {"metrics": ("accuracy",), "max_new": 6}}
BANK = {
    "data": {"name": "rhobank", "options": {"kinds": ("fact_closed",)}, "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}},
    "eval": {"metrics": ("value_match", "exact_match"), "max_new": 12},
}


def get_config(variant: str = ""):
    """The study; `variant` is "", "smollm2" or "runlocal"."""
    study = default_study()
    study.run.base.uri = "tiny:t64"
    study.run.data.length = 128
    study.run.train.steps, study.run.train.batch_size, study.run.optimizer.warmup = 100, 2, 10
    study.run.eval.rows, study.run.eval.general.rows = 384, 12
    study.methods = {"LoRA": methods(lora(targets="all-linear")), "Pfeiffer": methods(pfeiffer()), "Houlsby": methods(houlsby())}
    study.budgets = {"10k": {"parameters": 9_728}, "39k": {"parameters": 38_912}}  # LoRAs of rank 2 and 8
    study.data = {"home": HOME, "icd": ICD, "bank": BANK}
    study.seeds = tuple(range(10))
    study.measure, study.region = "loss", 0.02
    study.tuning.centre, study.tuning.rates, study.tuning.more = 1e-2, 3, 1
    study.timing.rounds, study.timing.budget_s = 150, 30.0
    study.combine = True
    if variant == "runlocal":
        study.run.train.steps, study.run.eval.rows, study.run.eval.general.rows = 4, 16, 2
        study.seeds, study.tuning.rates, study.tuning.rounds, study.timing.rounds = (0, 1), 3, 1, 3
    elif variant == "smollm2":
        study.run.base.uri = SMOLLM2
        study.budgets, study.data, study.seeds = {"2442k": {"parameters": 2_442_240}}, {"home": HOME, "icd": ICD}, tuple(range(5))
        study.run.train.steps, study.run.eval.rows, study.combine = 60, 256, False
        study.tuning.centre = 3e-3
        study.timing.rounds, study.timing.budget_s = 20, 60.0
    elif variant:
        raise ValueError(f"no variant {variant!r}; there are smollm2 and runlocal")
    return study
