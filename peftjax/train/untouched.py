"""The base without adapters, as evaluations compare with it: each measurement of it is made once, however many runs ask."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.interop.base import Base
from peftjax.peft.partition import nothing
from peftjax.train.quantised_start import written_with
from peftjax.train.start import Start


def written_beside(base: Base, starts: Sequence[Start], trainable: Any) -> Any:
    """Where a base was written together with its LoRA, and a run starts from one: a copy of the run's first values, without which the base
    is not what it is compared with. None of any other run."""
    return jax.tree.map(jnp.copy, trainable) if starts and written_with(base) is not None else None


class Untouched:
    """Evaluations of the base alone.

    Args:
        evaluator: see `peftjax.train.task`.
        params: gives the base's parameters; asked when there is something to measure.
        trainable: values of an adapter in `params` without which they are not the base; by default there is none.
    """

    def __init__(self, evaluator: Any, params: Callable[[], Any], trainable: Any = None):
        self._evaluator, self._params, self._trainable = evaluator, params, trainable
        self._evaluations: dict[str, dict] = {}
        self._general: float | None = None

    def evaluation(self, split: str) -> dict:
        """The evaluation of step 0 on a split."""
        if split not in self._evaluations:
            params = self._params()
            found = self._evaluations[split] = self._evaluator.run(0, split, self._with(params), params, None)
            self._general = found.get("general_loss", self._general)
        return self._evaluations[split]

    def general_loss(self) -> float:
        """Its loss on the general text, in nats a token."""
        if self._general is None:
            params = self._params()
            self._general = self._evaluator.loss("general", self._with(params), params)
        return self._general

    def _with(self, params: Any) -> Any:
        return nothing(params) if self._trainable is None else self._trainable
