"""Exports: a trained or imported adapter in every form that can hold it, and what servers make of it.

    out/peftjax/       our own form                      out/merged/      the base with the adapter folded in, Hugging Face layout
    out/peft/          HF PEFT's                         out/lora.gguf    llama.cpp's
    out/adapterhub/    AdapterHub's                      out/servers.md   which servers take it, and what they would ignore
    out/quantised/     the quantised base with the adapter folded in, in our own form, and certificate.json: on request alone

A LoRA that started by LoftQ or QPiSSA holds what quantising took from its base's weights. Other tools would add it to the dense ones, which
never lost it: that is said beside their forms and in servers.md, and such an adapter on a dense base is not exported at all.

Every folder and file is written whole or not at all. In each folder lies `peftjax.json` with the identity of the base and the lineage.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from peftjax.files import replacing, replacing_folder
from peftjax.hints import did_you_mean
from peftjax.interop.exchange.adapter import Adapter, extract
from peftjax.interop.exchange.adapterhub_write import write_adapterhub
from peftjax.interop.exchange.gguf_lora import write_gguf_lora
from peftjax.interop.exchange.lint import as_table, lint
from peftjax.interop.exchange.load import adapt, read_adapter
from peftjax.interop.exchange.manifest import FILE, manifest, write_manifest
from peftjax.interop.exchange.merged import settled, write_merged
from peftjax.interop.exchange.native import write_native
from peftjax.interop.exchange.peft_write import PEFT_KNOWS, write_peft
from peftjax.interop.exchange.plain_form import in_plain_form
from peftjax.interop.held import write_held
from peftjax.interop.json_file import write_json
from peftjax.interop.quantise import describe
from peftjax.peft.attach import activate
from peftjax.peft.certificate import USUAL, Budget
from peftjax.peft.compose import decompose
from peftjax.train.adapters import Ready
from peftjax.train.certificate import merge_quantised
from peftjax.train.quantised_start import start_of

DTYPES = ("float32", "bfloat16", "float16")
FORMS = ("peftjax", "peft", "adapterhub", "merged", "gguf")
QUANTISED = "quantised"
PLAIN = {"peft": PEFT_KNOWS, "adapterhub": (), "gguf": ()}  # where LoRA's relatives are plain LoRAs, but for these
GGUF, SERVERS, CERTIFICATE = "lora.gguf", "servers.md", "certificate.json"


def export(
    ready: Ready, to: str | Path, forms: Sequence[str] = (), *, name: str | None = None, dtype: str | None = None,
    budget: Budget = USUAL, sample: str = "general", say: Callable[[str], None] = print,
) -> list[Path]:
    """Writes an adapter in these forms; () is every form of FORMS that can hold it. Returns what was written.

    Args:
        ready: a base with an adapter.
        to: folder of the exports.
        name: of the adapter, where there are several; also its name in AdapterHub.
        dtype: of tensors in other tools' forms and of merged weights; default float32, and the base's own for merged weights. llama.cpp's
            file has no bfloat16 and is float32 then.
        budget: what merging into a quantised base may cost, for the form "quantised", which no other tool reads: `load_base` does.
        sample: data set or JSONL file whose texts that is measured on.
        say: is told of each form what became of it.

    Raises:
        ValueError: an unknown form or dtype, no adapter, a form that was asked for and cannot hold it, or an adapter on a dense base that
            makes up for what quantising lost.
        FileExistsError: something else stands where a form would go.
    """
    known = (*FORMS, QUANTISED)
    unknown = [form for form in forms if form not in known]
    if unknown:
        raise ValueError(f"no form is called {unknown[0]!r}{did_you_mean(unknown[0], known)}; forms are {', '.join(known)}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    names = ready.names()
    name = names[0] if name is None and len(names) == 1 else name
    adapter = extract(
        ready.params, ready.methods, name, dtype=dtype or "float32", base=ready.base.fingerprint,
        tokenizer=ready.base.tokenizer.fingerprint, lineage=ready.lineage,
    )
    bound = _bound(ready, adapter)
    writers = _writers(ready, adapter, name, dtype)
    writers[QUANTISED] = lambda folder: _quantised(ready, adapter, name, folder, budget, sample, say)
    written, folder = [], Path(to)
    for form in forms or FORMS:
        if form == "gguf":
            _refuse_foreign_gguf(folder)
        else:
            refuse_foreign(folder / form)
    for form in forms or FORMS:
        try:
            path = writers[form](folder)
        except ValueError as error:
            if forms:
                raise ValueError(f"form {form}: {error}") from error
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # what it is, and the first of a list
            older = folder / ("lora.gguf" if form == "gguf" else form)
            say(f"{form:10}  not written: {reason}" + (f" ({older} is of an earlier export)" if older.exists() else ""))
            continue
        written.append(path)
        hint = "  (load_adapter(..., use_safetensors=True))" if form == "adapterhub" else ""
        plain = form in PLAIN and in_plain_form(adapter, PLAIN[form]) is not adapter
        say(f"{form:10}  {path}{hint}{'  (as the plain LoRA that it is as a function)' if plain else ''}"
            f"{'  (for the quantised base alone)' if bound and form in PLAIN else ''}")
    table = as_table(lint(adapter, ready.base.config)) + (f"\n\n{bound}" if bound else "")
    with replacing(folder / SERVERS) as partial:
        partial.write_text(table + "\n", "utf-8")
    say(table)
    return written


def _bound(ready: Ready, adapter: Adapter) -> str | None:
    """A sentence for people where the adapter belongs to weights as they are quantised, which other tools do not have."""
    start = start_of(adapter.methods, ready.lineage, ready.base)
    if start is None:
        return None
    if ready.base.quantise is None:
        raise ValueError(f"the adapter started by {start}: it holds what quantising took from the weights, and {ready.base.uri} is dense "
                         "here, which never lost it; export it from its run, or with the base that it was made for as --base")
    return (f"This adapter started by {start}: it belongs to {ready.base.uri} as it is held here ({describe(ready.base.quantise)}). "
            "On the dense weights it adds what they never lost, and so it does where another tool quantises otherwise. What needs no such "
            "base is `merged`, which holds both.")


def import_adapter(folder: str | Path, base, to: str | Path, other_base: bool = False) -> Adapter:
    """Brings an adapter of any form into our own, checked against the base it is for.

    Raises:
        FileNotFoundError, ValueError: as `read_adapter`.
        FileExistsError: something else stands at `to`.
    """
    refuse_foreign(Path(to))
    if Path(to).resolve() == Path(folder).resolve():
        raise ValueError(f"{to} holds the adapter itself; name another folder to import it into")
    adapter = read_adapter(folder, base, other_base)
    adapt(base, adapter, origin=str(folder))  # whether it fits is seen here, before anything is written
    if other_base:  # from now on it belongs to this one
        adapter = dataclasses.replace(adapter, base=base.fingerprint, tokenizer=base.tokenizer.fingerprint)
    with replacing_folder(Path(to)) as partial:
        write_native(partial, adapter, base)
    return adapter


def refuse_foreign(target: Path) -> None:
    """Raises FileExistsError if something stands at `target` that no export of this library left there: it would be replaced."""
    if target.exists() and not (target.is_dir() and ((target / FILE).is_file() or not any(target.iterdir()))):
        raise FileExistsError(f"{target} exists and is no export of peftjax (it has no {FILE}); name another folder, or move it away")


def _refuse_foreign_gguf(folder: Path) -> None:
    """The same for the file, which has no peftjax.json: each export leaves the table of servers beside it."""
    if (folder / GGUF).exists() and not (folder / SERVERS).is_file():
        raise FileExistsError(f"{folder / GGUF} exists and is no export of peftjax (no {SERVERS} lies beside it); name another folder, or "
                              "move it away")


def _quantised(
    ready: Ready, adapter: Adapter, name: str, folder: Path, budget: Budget, sample: str, say: Callable[[str], None]
) -> Path:
    """The base with the adapter folded into its quantised weights, and what that cost; nothing is written above the budget."""
    one = dataclasses.replace(ready, params=activate(decompose(ready.params), [name]))
    try:
        merged, certificate = merge_quantised(one, budget, sample)
    except TypeError as error:  # what `merge` says of a piece without a dense form
        raise ValueError(str(error)) from error
    say(f"merged into the quantised base: {certificate}")
    tree, config = settled(merged, ready.base.config, ready.methods)
    base, about = ready.base, manifest(adapter, ready.base)
    with replacing_folder(folder / QUANTISED) as partial:
        write_held(partial, config, tree, base.tokenizer, dtype=base.dtype, quantise=base.quantise, origin=about["base"])
        write_json(partial / CERTIFICATE, certificate.as_data() | {"sample": sample, "budget": dataclasses.asdict(budget)})
        files = sorted(path.name for path in partial.iterdir())
        write_manifest(partial, about | {"format": "peftjax merged base"}, files)
    return folder / QUANTISED


def _writers(ready: Ready, adapter: Adapter, name: str, dtype: str | None) -> dict[str, Callable[[Path], Path]]:
    """By form: writes it into a folder and returns where."""
    base, uri = ready.base, ready.base.uri
    about = manifest(adapter, base)

    def peftjax(folder):
        with replacing_folder(folder / "peftjax") as partial:
            write_native(partial, adapter, base)
        return folder / "peftjax"

    def beside(target, write):
        with replacing_folder(target) as partial:
            write(partial)
            files = sorted(path.name for path in partial.iterdir())
            write_manifest(partial, about, files)
        return target

    def merged(folder):
        with replacing_folder(folder / "merged") as partial:
            try:
                write_merged(partial, base, activate(decompose(ready.params), [name]), ready.methods, dtype)
            except TypeError as error:  # what `merge` says of a piece without a dense form
                raise ValueError(str(error)) from error
            files = sorted(path.name for path in partial.iterdir())
            write_manifest(partial, about | {"format": "peftjax merged base"}, files)
        return folder / "merged"

    def gguf(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / GGUF) as partial:
            write_gguf_lora(partial, adapter, base.config, name=name, base_uri=uri, dtype="float16" if dtype == "float16" else "float32")
        return folder / GGUF

    task = "SEQ_CLS" if hasattr(base.config, "labels") else "CAUSAL_LM"
    return {
        "peftjax": peftjax,
        "peft": lambda folder: beside(folder / "peft", lambda at: write_peft(at, adapter, base.config, uri, task)),
        "adapterhub": lambda folder: beside(folder / "adapterhub", lambda at: write_adapterhub(at, adapter, base.config, name, uri)),
        "merged": merged,
        "gguf": gguf,
    }
