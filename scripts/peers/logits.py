"""Answers jobs in a peer's environment: loads a base and an exported adapter, and leaves the logits.

    python scripts/peers/logits.py JOBS.json peft            (torch, transformers 5, peft)
    python scripts/peers/logits.py JOBS.json adapterhub      (torch, adapters)
    python scripts/peers/logits.py JOBS.json merged          (torch, transformers)
"""

import json
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
import training
import transformers


def plain(job, folder=None):
    """A base, or merged weights, without adapters."""
    if job["classifies"] == "True":
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder or job["base"], dtype=torch.float32)
    return training.load_base(Path(folder or job["base"]))


def peft_model(job):
    """The base under HF PEFT; a key that it does not know or does not find is an error."""
    import peft

    model = plain(job)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return peft.PeftModel.from_pretrained(model, f"{job['at']}/adapter")


def adapterhub_model(job):
    """The base under AdapterHub, with its own classes where there is a flexible head."""
    import adapters

    if job["classifies"] == "True":
        model = adapters.AutoAdapterModel.from_pretrained(job["base"])
    else:
        model = plain(job)
        adapters.init(model)
    model.load_adapter(f"{job['at']}/adapter", set_active=True, use_safetensors=True, with_head=job["classifies"] == "True")
    if "prefix_tuning" in Path(job["at"], "adapter", "adapter_config.json").read_text():
        model.set_attn_implementation("eager")  # its mask for the default one is wrong
    return model


MODELS = {"peft": peft_model, "adapterhub": adapterhub_model, "merged": lambda job: plain(job, f"{job['at']}/adapter")}


def main(jobs: str, form: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    for job in json.loads(Path(jobs).read_text()):
        if job["form"] != form or Path(job["at"], "theirs.npz").is_file():
            continue
        try:
            with torch.no_grad():
                tokens = torch.tensor(np.load(f"{job['at']}/ours.npz")["tokens"]).long()
                logits = MODELS[form](job).eval()(input_ids=tokens).logits
                logits = logits[:, -tokens.shape[1] :] if logits.ndim == 3 else logits  # those of the tokens, behind virtual ones
            np.savez(f"{job['at']}/theirs.npz", logits=logits.numpy())
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError, Warning):  # what is missing counts as a failure
            print(f"{job['case']} on {job['base']}:", file=sys.stderr)
            traceback.print_exc()


if __name__ == "__main__":
    main(*sys.argv[1:])
