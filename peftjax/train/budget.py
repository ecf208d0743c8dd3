"""LoRA ranks for a config, bought with a budget by what the base's first batches say: statistics (`peftjax.peft.probe`) of the training
data, gains of each further row (`peftjax.peft.budget`), and a config file with the ranks that they buy.

    chosen = choose(get_config(), parameters=2_442_240)
    print(as_table(chosen))
    write_config("configs/mine.py", "configs/quickstart.py", chosen)         python scripts/train.py --config configs/mine.py

| by       | a row's gain                                                        | what is measured                    |
|---|---|---|
| gradient | the squared singular value of the kernel's gradient                 | one gradient of the base, summed    |
| inputs   | the share of the variance of the kernel's input along the direction | second moments of the base's inputs |

The base is measured without adapters. The config's own methods do not matter.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.files import replacing
from peftjax.hints import did_you_mean
from peftjax.interop.base import Base, load_base
from peftjax.models.decoder import cut as cut_stack
from peftjax.nn.tree import get, numbered
from peftjax.peft.attach import attach, cut_points
from peftjax.peft.budget import buy, loras, of_covariances, of_gradients
from peftjax.peft.lora import lora
from peftjax.peft.partition import partition, size
from peftjax.peft.probe import measure
from peftjax.peft.select import module_of
from peftjax.peft.spec import as_code
from peftjax.train.inputs import prepare
from peftjax.train.lapack import one_thread
from peftjax.train.loss import token_losses
from peftjax.train.startup import make_model, precision
from peftjax.train.task import task_for

BY = ("gradient", "inputs")  # kinds of statistics


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The LoRAs that a budget bought; `ranks` at each kernel of each layer, `blocks/7/attn/q/kernel`; `parameters`, the numbers in A and B
    that they train; `padded`, those with the zeros that pad every stack to its largest rank, as a run's table counts them; and in words
    what they were chosen by."""

    methods: tuple[lora, ...]
    ranks: Mapping[str, int]
    parameters: int
    padded: int
    about: str


def choose(
    config: Any, *, parameters: int | None = None, nbytes: int | None = None, by: str = "gradient", targets: str | tuple = "all-linear",
    batches: int = 4, max_rank: int = 64, cut: bool = False, base: Base | None = None, say: Callable[[str], None] = print, **settings: Any,
) -> Chosen:
    """Measures the config's base on its first training batches and spends the budget.

    Args:
        parameters, nbytes, max_rank, cut: as of `peftjax.peft.budget.buy`; settings: of `lora`.
        by: as in the module's table.
        targets: kernels that may get a rank.
        batches: how many are measured.
        base: the config's base, where it is loaded already.
        say: is told what is done, as it takes a while.

    Raises:
        ValueError: an unknown `by`, or what `buy`, the data or the targets refuse.
    """
    if by not in BY:
        raise ValueError(f"by is {by!r}{did_you_mean(by, BY)}; it may be {', '.join(BY)}")
    base = base or load_base(config.base.uri, dtype=precision(config.base.dtype).name, quantise=config.base.quantise)
    inputs = prepare(config, base.tokenizer, task=task_for(config, base.config))
    model = make_model(base.config, config.model, ())

    def loss(params, batch):
        return jnp.sum(token_losses(model, params, batch)[0] * batch.weights)

    say(f"measuring {by} of {batches} batches of {config.data.name} on {base.uri}")
    found = measure(loss, base.params, [inputs.train.at(n) for n in range(batches)], targets, by, at_once=2)
    say(f"weighing {len(found)} kernels, those of all layers each")
    with one_thread(base.params):
        if by == "gradient":
            gains = of_gradients({path: one.gradient for path, one in found.items()})
        else:
            gains = of_covariances({path: one.mean_square() for path, one in found.items()},
                                   {path: get(base.params, path).shape[-1] for path in found})
    ranks = buy(gains, parameters=parameters, nbytes=nbytes, max_rank=max_rank, cut=cut)
    spent = sum(rank * sum(gains[numbered(path)[0]].shape) for path, rank in ranks.items())
    methods = loras(ranks, base.config.layers, **settings)
    segments = cut_points(methods, base.config.layers)
    made = jax.eval_shape(lambda params: attach(cut_stack(params, base.config, segments), methods, jax.random.key(0)), base.params)
    budget = f"{parameters:,} parameters" if parameters is not None else f"{nbytes:,} bytes"
    about = f"by {by} of {batches} batches of {config.data.name}, of at most {budget}"
    return Chosen(methods, ranks, spent, size(partition(made)[0])[0], about)


def as_table(chosen: Chosen) -> str:
    """Ranks by kernel in Markdown: how many layers have one, their mean and largest, and those of all layers."""
    by_kernel: dict[str, dict[int | None, int]] = collections.defaultdict(dict)
    for path, rank in chosen.ranks.items():
        logical, layer = numbered(module_of(path))
        by_kernel[logical][layer] = rank
    lines = ["| kernel | layers | mean rank | largest | by layer |", "| --- | --: | --: | --: | --- |"]
    for kernel, ranks in sorted(by_kernel.items()):
        each = [ranks[layer] for layer in sorted(ranks, key=lambda layer: layer or 0)]
        lines.append(f"| {kernel} | {len(each)} | {np.mean(each):.1f} | {max(each)} | {' '.join(map(str, each))} |")
    lines.append(f"{chosen.parameters:,} parameters, chosen {chosen.about}")
    if chosen.padded > chosen.parameters:
        lines.append(f"A run's table will count {chosen.padded:,}: it holds every stack at its largest rank, the rest is zero and stays so")
    return "\n".join(lines)


def write_config(path: str | Path, source: str | Path, chosen: Chosen) -> None:
    """A config file: the config of `source`, a path, with these LoRAs in the place of its methods.

    Raises:
        FileExistsError: something is there that this function did not write.
    """
    path = Path(path)
    if path.exists() and _WRITTEN not in path.read_text("utf-8"):
        raise FileExistsError(f"{path} exists and was not written by scripts/ranks.py; name another file")
    text = _CONFIG.format(
        source=source, about=chosen.about, written=_WRITTEN, path=path, parameters=f"{chosen.parameters:,}",
        methods="".join(f"        {as_code(method)},\n" for method in chosen.methods), absolute=str(Path(source).resolve()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")


_WRITTEN = "Written by scripts/ranks.py"
_CONFIG = '''"""{source} with LoRAs of ranks that were chosen {about}: {parameters} parameters.

    python scripts/train.py --config {path}

{written}.
"""

from peftjax.peft import lora
from peftjax.train.config import from_file, methods


def get_config(variant: str = ""):
    """The config; `variant` is one of {source}."""
    config = from_file({absolute!r}, variant)
    config.peft = methods(
{methods}    )
    return config
'''
