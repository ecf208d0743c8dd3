"""The config of a study of two methods on one data set, as small as one can be."""

from peftjax.peft import lora, pfeiffer
from peftjax.study.config import default_study
from peftjax.train.config import methods


def study():
    """LoRA against Pfeiffer at 1000 parameters on ICD chapters."""
    found = default_study()
    found.methods = {"LoRA": methods(lora()), "Pfeiffer": methods(pfeiffer())}
    found.budgets = {"small": {"parameters": 1000}}
    found.data = {"icd": {"data": {"name": "icd_chapter"}, "eval": {"metrics": ("accuracy",)}}}
    return found
