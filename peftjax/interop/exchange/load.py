"""An adapter from a directory in any form, on a base.

    loaded = load_adapter("my-adapter", base)             our own form, HF PEFT's or AdapterHub's
    logits = Decoder(base.config, segments=loaded.segments).apply({"params": loaded.params}, tokens)

| what lies there | form |
|---|---|
| peftjax.safetensors, peftjax.json | ours |
| adapter_config.json with peft_type | HF PEFT |
| adapter_config.json with config and model_type | AdapterHub |
| adapter_fusion_config.json | AdapterHub's fusion of adapters of other directories |
"""

import dataclasses
from pathlib import Path
from typing import Any

from peftjax.interop.base import Base
from peftjax.interop.exchange import native
from peftjax.interop.exchange.adapter import Adapter, insert
from peftjax.interop.exchange.adapterhub_fusion import CONFIG as FUSION
from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.interop.exchange.manifest import check_identity, read_manifest
from peftjax.interop.exchange.peft_read import read_peft
from peftjax.interop.json_file import read_json
from peftjax.models.decoder import cut
from peftjax.peft.attach import cut_points

FORMS = """an adapter is a directory with one of
  peftjax.json, peftjax.safetensors                      our own form
  adapter_config.json, adapter_model.safetensors         HF PEFT
  adapter_config.json, adapter.safetensors               AdapterHub
  adapter_fusion_config.json, model_adapter_fusion.safetensors      AdapterHub's fusion"""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A base with an adapter on it.

    Attributes:
        adapter: what was read.
        methods: its methods under the name it was given.
        segments: how the stack of layers is cut.
        params: the base's tree, cut, with the adapter in it.
    """

    adapter: Adapter
    methods: tuple[Any, ...]
    segments: tuple[int, ...]
    params: dict


def form_of(folder: str | Path) -> str:
    """"peftjax", "HF PEFT" or "AdapterHub".

    Raises:
        FileNotFoundError, ValueError: no adapter directory; names the forms.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no directory {str(folder)!r}; {FORMS}")
    if (folder / native.WEIGHTS).is_file():
        return "peftjax"
    if (folder / FUSION).is_file():
        return "AdapterHub"
    document = read_json(folder / "adapter_config.json")
    if "peft_type" in document:
        return "HF PEFT"
    if "config" in document or "config_id" in document:
        return "AdapterHub"
    raise ValueError(f"{folder / 'adapter_config.json'} is neither HF PEFT's (no peft_type) nor AdapterHub's (no config); {FORMS}")


def read_adapter(folder: str | Path, base: Base, other_base: bool = False) -> Adapter:
    """The adapter of a directory, for this base.

    Args:
        other_base: take it although it was made for another base or tokenizer; names and shapes must fit all the same.

    Raises:
        FileNotFoundError, ValueError: as the form's reader; or another base, where the directory says which one it was made for.
    """
    folder, form = Path(folder), form_of(folder)
    content = read_manifest(folder)
    if content is not None:
        check_identity(content, base, str(folder), other_base)
    if form == "peftjax":
        return native.read_native(folder)
    if form == "HF PEFT":
        adapter = read_peft(folder, base.config, base.params, base.uri, other_base)
    else:
        adapter = read_adapterhub(folder, base.config, base.params)
    if content is not None:
        adapter = dataclasses.replace(
            adapter, base=content["base"]["fingerprint"], tokenizer=content["tokenizer"]["fingerprint"],
            lineage=content["lineage"] | dict(adapter.lineage),
        )
    return adapter


def load_adapter(folder: str | Path, base: Base, name: str = "default", other_base: bool = False) -> Loaded:
    """The base with the adapter of a directory on it, under `name`. Errors as in `read_adapter`."""
    return adapt(base, read_adapter(folder, base, other_base), name, str(folder))


def adapt(base: Base, adapter: Adapter, name: str = "default", origin: str = "the adapter") -> Loaded:
    """The base with an adapter on it. The base's arrays are shared.

    Raises:
        ValueError: it does not fit; every difference.
    """
    segments = cut_points(adapter.methods, base.config.layers)
    methods = tuple(dataclasses.replace(method, name=name) for method in adapter.methods)
    return Loaded(adapter, methods, segments, insert(cut(base.params, base.config, segments), adapter, name, origin))
