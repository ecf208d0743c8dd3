"""Names of a base's modules, ours and Hugging Face's, in both directions.

    modules = Modules.of(config)
    modules.theirs["blocks/7/attn/q"]                == Module("model.layers.7.self_attn.q_proj", part=None, conv1d=False)
    modules.ours["model.layers.7.self_attn.qkv_proj"] == ["blocks/7/attn/q", "blocks/7/attn/k", "blocks/7/attn/v"]
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from peftjax.interop.families import Module, Weight, family_named, hf_modules
from peftjax.nn.tree import numbered


@dataclasses.dataclass(frozen=True)
class Modules:
    """The modules of one base that carry weights.

    Attributes:
        config: of the base.
        theirs: Hugging Face's module by our path with the layer's number.
        ours: our paths by Hugging Face's module, those of a fused one in the order of their parts.
        weights: our parameters by logical path, `blocks/attn/q/kernel`.
        linear: Hugging Face's names of the linear layers, the head among them.
    """

    config: Any
    theirs: Mapping[str, Module]
    ours: Mapping[str, list[str]]
    weights: Mapping[str, Weight]
    linear: tuple[str, ...]

    @classmethod
    def of(cls, config: Any) -> "Modules":
        """The modules of a base with this config."""
        family = family_named(config.family)
        theirs = hf_modules(family, config)
        ours: dict[str, list[str]] = {}
        for path, module in theirs.items():
            ours.setdefault(module.name, []).append(path)
        for paths in ours.values():
            paths.sort(key=lambda path: theirs[path].part or (0, 0))
        weights = {weight.path: weight for weight in family.weights if weight.exists(config) or weight.path == "head/kernel"}
        linear = tuple(name for name, paths in ours.items() if f"{logical(paths[0])}/kernel" in weights)
        return cls(config, theirs, ours, weights, linear)

    def parameter(self, path: str) -> str:
        """The main parameter of one of our modules: `blocks/7/attn/q` -> `blocks/7/attn/q/kernel`."""
        for leaf in ("kernel", "embedding", "scale"):
            if f"{logical(path)}/{leaf}" in self.weights:
                return f"{path}/{leaf}"
        raise ValueError(f"{path} has no weight of its own")

    def kind(self, path: str) -> str:
        """What one of our modules is: "linear", "conv1d" (a linear layer kept [in, out]), "embedding" or "norm"."""
        leaf = self.parameter(path).rpartition("/")[2]
        if leaf == "kernel":
            return "conv1d" if self.theirs[path].conv1d else "linear"
        return {"embedding": "embedding", "scale": "norm"}[leaf]

    def sizes(self, path: str) -> tuple[int, ...]:
        """Our shape of a module's main parameter, of one layer."""
        return self.weights[logical(self.parameter(path))].sizes(self.config)

    def has_bias(self, path: str) -> bool:
        """Whether one of our modules has a bias in this base."""
        return f"{logical(path)}/bias" in self.weights

    def shortest(self, names: Iterable[str], dotted: bool, among: Iterable[str]) -> list[str]:
        """Names of theirs as a list of endings that hits these modules of `among` and no other, or whole names where no ending does, and
        on the text part of a model of text and images, whose other modules, not listed here, have the same endings.

        Args:
            dotted: an ending begins behind a dot, as in target_modules; otherwise anywhere, as in modules_to_save.
        """
        names, among = set(names), list(among)
        if getattr(self.config, "multimodal", False):
            return sorted(names)
        left, chosen = set(names), []
        for name in sorted(names):
            ending = name.rpartition(".")[2]
            hit = {n for n in among if (n == ending or n.endswith(f".{ending}") if dotted else n.endswith(ending))}
            if name in left:
                chosen.append(ending if hit <= names else name)
                left -= hit if hit <= names else {name}
        return chosen


def logical(path: str) -> str:
    """`blocks/7/attn/q` -> `blocks/attn/q`."""
    return numbered(path)[0]


def layer_of(path: str) -> int | None:
    """The layer's number in one of our paths, or None outside the stack."""
    return numbered(path)[1]
