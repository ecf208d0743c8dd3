"""A base ready to use: alone, with the adapter of a run, or with an adapter from a directory in any form.

    ready = of_run("runs/quickstart-1a2b3c4d")
    ready = of_adapter("my-lora", "/models/SmolLM2-135M-Instruct")
    logits = ready.model().apply({"params": ready.params}, tokens)
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax.interop.base import Base, load_base
from peftjax.interop.exchange.load import load_adapter
from peftjax.interop.exchange.manifest import read_manifest
from peftjax.interop.quantise import describe
from peftjax.models.decoder import Decoder, cut
from peftjax.models.encoder import Encoder
from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft import drop
from peftjax.peft.attach import adapters, attach
from peftjax.peft.compose import compose
from peftjax.peft.partition import combine, kept, partition
from peftjax.peft.spec import from_data
from peftjax.train.checkpoint import Checkpoints, stored_specification, stored_target
from peftjax.train.config import SMOLLM2, composition, default_config
from peftjax.train.prepare import segments_of
from peftjax.train.startup import make_model, precision

AS_TRAINED = "as trained"


@dataclasses.dataclass(frozen=True, eq=False)
class Ready:
    """What there is to use.

    Attributes:
        base: with its own parameters, whole.
        params: the base's tree, cut, with adapters where there are any.
        segments: how it is cut.
        methods: of the adapters; () for the base alone.
        config: of the run, or the defaults.
        origin: for people: a run's folder, an adapter's directory, or the base's URI.
        lineage: where the adapter comes from, as plain data.
        notes: what was left out or derived on purpose when it was read.
    """

    base: Base
    params: Any
    segments: tuple[int, ...]
    methods: tuple[Any, ...]
    config: ConfigDict
    origin: str
    lineage: dict[str, Any]
    notes: tuple[str, ...] = ()

    def model(self) -> Decoder | Encoder:
        """The model to apply to `params`."""
        return make_model(self.base.config, self.config.model, self.segments)

    def names(self) -> list[str]:
        """Names of the adapters."""
        return adapters(self.params)


def ready(run: str | None = None, base: str | None = None, adapter: str | None = None, *, step: int | None = None,
          other_base: bool = False, quantise: Any = AS_TRAINED, drop_layers: Sequence[int] = ()) -> Ready:
    """What a person asked for with --run, or with --base and --adapter. The base defaults to SmolLM2-135M-Instruct.

    Args:
        quantise: how the base of an adapter, or a base alone, is held: rules of `peftjax.interop.quantise`. By default as it was when the
            adapter was made, which is dense where its directory does not say so; a run has its own.
        drop_layers: layers on which the adapters are off (AdapterDrop, see `peftjax.peft.drop`).

    Raises:
        ValueError: a run beside a base or an adapter, layers of a base alone or on none of which the adapter acts; else as `of_run`,
            `of_adapter` and `drop_layers`.
    """
    found = _found(run, base, adapter, step, other_base, quantise)
    if not drop_layers:
        return found
    if not found.names():
        raise ValueError("--drop_layers belongs to a run (--run) or an adapter (--adapter); none is named")
    params, acting = drop.drop_layers(found.params, drop_layers), drop.acting(found.params)
    if not acting & set(drop_layers):
        where = f"it acts on {', '.join(map(str, sorted(acting)))}" if acting else "it acts outside the layers alone"
        raise ValueError(f"the adapter has nothing on layers {', '.join(map(str, drop_layers))} that could be off: {where}")
    return dataclasses.replace(found, params=params)


def _found(run: str | None, base: str | None, adapter: str | None, step: int | None, other_base: bool, quantise: Any) -> Ready:
    if run is not None:
        if base is not None or adapter is not None:
            raise ValueError("--run and --base or --adapter exclude each other: a run names its own base, and has its own adapter")
        return of_run(run, step)
    if step is not None:
        raise ValueError("--step belongs to a run: name its folder with --run")
    if adapter is None:
        return of_base(base or SMOLLM2, None if quantise == AS_TRAINED else quantise)
    return of_adapter(adapter, base or SMOLLM2, other_base, quantise)


def of_base(uri: str, quantise: Any = None) -> Ready:
    """A base alone, in the dtype that suits this machine, held as the rules say."""
    base = load_base(uri, dtype=precision("auto").name, quantise=quantise)
    return Ready(base, base.params, (), (), default_config(), uri, {})


def of_adapter(folder: str, base_uri: str, other_base: bool = False, quantise: Any = AS_TRAINED) -> Ready:
    """A base with the adapter of a directory. Errors as in `peftjax.interop.exchange.load.read_adapter`."""
    if quantise == AS_TRAINED:
        quantise = ((read_manifest(Path(folder)) or {}).get("base") or {}).get("quantise")
    base = load_base(base_uri, dtype=precision("auto").name, quantise=quantise)
    loaded = load_adapter(folder, base, other_base=other_base)
    for note in loaded.adapter.notes:
        print(f"note: {folder}: {note}", file=sys.stderr, flush=True)
    lineage, notes = dict(loaded.adapter.lineage), loaded.adapter.notes
    return Ready(base, loaded.params, loaded.segments, loaded.methods, default_config(), folder, lineage, notes)


def of_run(run: str | Path, step: int | None = None) -> Ready:
    """The base and the adapter of a run at its newest checkpoint, or at `step`.

    Raises:
        ValueError: no work directory, no such checkpoint, or a base or tokenizer that is not the one it was trained on.
    """
    config, checkpoints = config_of(Path(run)), Path(run) / "checkpoints"
    specification = stored_specification(checkpoints, step)
    # In the dtype it was trained with: another is another base, wherever the adapter is used.
    base = load_base(config.base.uri, dtype=specification["base"]["dtype"], quantise=config.base.get("quantise"))
    if specification["base"]["fingerprint"] != base.fingerprint:
        raise ValueError(f"the adapter in {checkpoints} was trained on a base with fingerprint {specification['base']['fingerprint']}, "
                         f"{base.uri} has {base.fingerprint}; both are held {describe(base.quantise)}")
    if specification["tokenizer"] != base.tokenizer.fingerprint:
        raise ValueError(f"the adapter in {checkpoints} was trained with a tokenizer of fingerprint {specification['tokenizer']}, "
                         f"that of {base.uri} has {base.tokenizer.fingerprint}")
    methods = tuple(from_data(dict(method)) for method in specification["methods"])
    segments = segments_of(config.model.segments, methods, base.config.layers)
    params = attach(cut(base.params, base.config, segments), methods, jax.random.key(0))
    if (plan := composition(config)) is not None:
        params = compose(params, plan)
    trainable, frozen = partition(params, set(adapters(params)) - set(specification.get("held", ())))
    with Checkpoints(checkpoints, specification) as store:
        at, arrays = store.restore(stored_target(checkpoints, step), step)
    values = {path.removeprefix("trainable/"): array for path, array in arrays.items() if path.startswith("trainable/")}
    missing = set(flatten(trainable)) ^ set(values)
    if missing:
        raise ValueError(f"the checkpoint in {checkpoints} does not hold the adapter its methods describe: {sorted(missing)[:10]}")
    lineage = {
        "run": str(Path(run).resolve().name), "step": int(at), "config": config.to_dict(), "records": specification["records"],
        "versions": specification["versions"], "start": specification.get("start"),
    }
    own = {path.removeprefix("kept/"): array for path, array in arrays.items() if path.startswith("kept/")}
    params = combine(unflatten_like(trainable, values), combine(unflatten_like(kept(frozen), own), frozen))
    return Ready(base, params, segments, methods, config, str(run), json.loads(json.dumps(lineage, default=str)))


def config_of(run: Path) -> ConfigDict:
    """The config that a run was asked for.

    Raises:
        ValueError: no work directory of a run.
    """
    stored = run / "config.json"
    if not stored.exists():
        raise ValueError(f"{run} is no work directory of a run: it has no config.json")
    config = ConfigDict(json.loads(stored.read_text()))
    for field in ("peft", "adapters"):
        config[field] = [ConfigDict(one) for one in config.get(field, ())]
    return config
