"""AdapterHub's half of the comparison: Houlsby, Pfeiffer and parallel bottlenecks of an eighth of the width.

    python scripts/peers/adapterhub_steps.py --base DIRECTORY --steps STEPS.npz --out OUT        (torch, adapters)
"""

from pathlib import Path

import adapters
import training

CONFIGS = {"houlsby": adapters.DoubleSeqBnConfig, "pfeiffer": adapters.SeqBnConfig, "parallel": adapters.ParBnConfig}


def methods():
    """(name, start(base, folder), load(base, folder) -> model) of each method."""

    def start(config):
        def save(base: Path, folder: Path) -> None:
            model = training.load_base(base)
            adapters.init(model)
            model.add_adapter("task", config=config(reduction_factor=8))
            folder.mkdir(parents=True)
            model.save_adapter(folder, "task", with_head=False, use_safetensors=True)

        return save

    def load(base: Path, folder: Path):
        model = training.load_base(base)
        adapters.init(model)
        model.load_adapter(str(folder), with_head=False, use_safetensors=True)
        model.train_adapter("task")
        return model

    for name, config in CONFIGS.items():
        yield name, start(config), load


if __name__ == "__main__":
    training.main(methods())
