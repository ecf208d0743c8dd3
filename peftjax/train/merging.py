"""Adapters of runs and directories mixed into one adapter directory of our own form, with what was lost.

    out/peftjax.safetensors, peftjax.json     the adapter; where it comes from is in its lineage
    out/certificate.json                      weights, way, and the error at each kernel of each layer (`peftjax.peft.exactness`)
    out/spectra.png                           singular values of what went in and of what came out
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing_folder
from peftjax.hints import did_you_mean
from peftjax.interop.base import Base
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.load import load_adapter
from peftjax.interop.exchange.native import write_native
from peftjax.interop.json_file import write_json
from peftjax.models.decoder import cut
from peftjax.peft.attach import cut_points
from peftjax.peft.blend import blend_changes
from peftjax.peft.changes import changes
from peftjax.peft.exactness import Exactness
from peftjax.peft.mixing import WAYS, linear
from peftjax.peft.spectrum import effective_rank, spectra
from peftjax.train.adapters import Ready, of_adapter, of_run
from peftjax.train.config import SMOLLM2, default_config
from peftjax.train.export import CERTIFICATE, refuse_foreign
from peftjax.train.lapack import one_thread
from peftjax.train.quantised_start import start_of
from peftjax.train.spectra import write_spectra

SPECTRA, NAME = "spectra.png", "default"


def found_at(places: Sequence[str], base: str | None = None, other_base: bool = False) -> dict[str, Ready]:
    """Each adapter on its base, by the last name of its place.

    Args:
        places: work directories of runs, or adapter directories in any form.
        base: URI that those of directories are for; default the base of the first run, else SmolLM2-135M-Instruct.

    Raises:
        ValueError: none, several adapters at one place, or places of different bases.
    """
    found: dict[str, Ready] = {}
    is_run = {place: (Path(place) / "checkpoints").is_dir() for place in places}
    runs = {place: of_run(place) for place in places if is_run[place]}
    on: Base | None = next(iter(runs.values())).base if runs else None
    for place in places:
        if is_run[place]:
            one = runs[place]
        elif on is None:
            one = of_adapter(place, base or SMOLLM2, other_base)
        else:
            loaded = load_adapter(place, on, other_base=other_base)
            one = Ready(on, loaded.params, loaded.segments, loaded.methods, default_config(), place, dict(loaded.adapter.lineage),
                        loaded.adapter.notes)
        on = on or one.base
        if one.base.fingerprint != on.fingerprint:
            raise ValueError(f"{place} is of the base {one.base.uri} ({one.base.fingerprint[:16]}...), {next(iter(found))} of {on.uri} "
                             f"({on.fingerprint[:16]}...): what they change is not of one weight")
        if len(one.names()) != 1:
            raise ValueError(f"{place} holds {', '.join(one.names()) or 'no adapter'}; one place is one adapter here")
        name = Path(place).resolve().name
        found[name if name not in found else f"{name}-{len(found) + 1}"] = one
    if not found:
        raise ValueError("name adapters to merge: runs or adapter directories")
    return found


def way_named(name: str, **settings: Any) -> linear:
    """A way to mix by its name, with those settings that it has; None is its own default.

    Raises:
        ValueError: no such way, or a setting that it has not.
    """
    if name not in WAYS:
        raise ValueError(f"no way to merge is called {name!r}{did_you_mean(name, WAYS)}; there are {', '.join(WAYS)}")
    given = {field: value for field, value in settings.items() if value is not None}
    known = {field.name for field in dataclasses.fields(WAYS[name])}
    if set(given) - known:
        raise ValueError(f"{name} has no {', '.join(sorted(set(given) - known))}; it has {', '.join(sorted(known)) or 'no settings'}")
    return WAYS[name](**given)


def merge_adapters(
    found: Mapping[str, Ready], weights: Sequence[float] | None, way: linear, to: str | Path, *, rank: int | None = None,
    tolerance: float | None = None, as_lora: bool = False, say: Callable[[str], None] = print,
) -> Exactness:
    """Writes one adapter, whole or not at all, that is the mixture of some.

    Args:
        found: by name, on one base.
        weights: one for each; None is what `way` takes for usual: equal shares of 1, or 1 each where it takes a mean itself.
        way: of `peftjax.peft.mixing`.
        to: folder; an earlier one of ours is replaced.
        rank, tolerance: as of `peftjax.peft.blend.blend`.
        as_lora: LoRA also where a dense delta would be smaller.
        say: is told what became of it.

    Raises:
        ValueError, TypeError: as of `blend`.
        FileExistsError: something else stands at `to`.
    """
    refuse_foreign(Path(to))
    weights = way.usual(len(found)) if weights is None else list(weights)
    if len(weights) != len(found):
        raise ValueError(f"{len(found)} adapters and {len(weights)} weights; there is one for each")
    weights = dict(zip(found, weights, strict=True))
    base = next(iter(found.values())).base
    segments = cut_points([method for one in found.values() for method in one.methods], base.config.layers)
    changed = {name: changes(one.params, one.names()[0]) for name, one in found.items()}
    say(f"{type(way).__name__} of {', '.join(f'{weight:g} x {name}' for name, weight in weights.items())}")
    with one_thread(base.params):
        made = blend_changes(cut(base.params, base.config, segments), changed, weights, way, rank=rank, tolerance=tolerance, name=NAME,
                             may_be_dense=not as_lora)
        drawn = {name: spectra(one.params, one.names()[0]) for name, one in found.items()} | {"merged": spectra(made.params, NAME)}
    lineage = {"merged": {
        "way": type(way).__name__, "settings": dataclasses.asdict(way), "weights": weights, "rank": rank, "tolerance": tolerance,
        "error": made.certificate.total, "from": {name: {"origin": one.origin, "lineage": one.lineage} for name, one in found.items()},
    }}
    starts = {start_of(one.methods, one.lineage, base) for one in found.values()} - {None}
    if starts:  # what it took from the quantised weights went into the mixture, which belongs to them as well
        lineage["start"] = min(starts)
    adapter = extract(made.params, made.methods, NAME, base=base.fingerprint, tokenizer=base.tokenizer.fingerprint, lineage=lineage)
    with replacing_folder(Path(to)) as partial:
        write_native(partial, adapter, base)
        about = {key: value for key, value in lineage["merged"].items() if key != "from"}
        write_json(partial / CERTIFICATE, about | made.certificate.as_data())
        write_spectra(partial / SPECTRA, drawn)
    for name, by_kernel in drawn.items():
        ranks = [effective_rank(values) for values in by_kernel.values()]
        say(f"{name:24}  effective rank {min(ranks):.1f} to {max(ranks):.1f} of {max(map(len, by_kernel.values()))}")
    say(f"{to}: {made.certificate}")
    return made.certificate
