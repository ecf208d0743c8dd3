"""Exports of a tiny run: every form that can hold it loads again with its logits, and nothing foreign is replaced."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_run import tiny_config, write_text

from peftjax.interop.base import load_base
from peftjax.interop.exchange.adapter import digest
from peftjax.interop.exchange.load import form_of, load_adapter, read_adapter
from peftjax.models.decoder import Decoder
from peftjax.nn.quant import Affine4
from peftjax.peft import houlsby, lora
from peftjax.peft.certificate import Budget
from peftjax.train.adapters import ready
from peftjax.train.config import methods
from peftjax.train.export import FORMS, export, import_adapter
from peftjax.train.loop import run

IDS = jnp.asarray(np.random.default_rng(0).integers(3, 300, (2, 9)))
PLACES = {form: form for form in FORMS} | {"gguf": "lora.gguf"}


def trained(folder, method, quantise=None):
    """The adapter of a run of three steps."""
    config = tiny_config(folder)
    config.base.quantise = quantise
    config.peft = methods(method)
    config.train.steps, config.eval.before, config.eval.every, config.eval.generate = 3, False, 0, False
    return ready(str(run(config, folder / "run")))


@pytest.fixture(scope="module")
def of_lora(tmp_path_factory):
    """LoRA where every form has a place for it."""
    return trained(tmp_path_factory.mktemp("lora"), lora(rank=4, alpha=32, dropout=0.1, targets=["q_proj", "v_proj"]))


@pytest.fixture(scope="module")
def of_bottleneck(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bottleneck"), houlsby(size=4))


@pytest.fixture(scope="module")
def exported(of_lora, tmp_path_factory):
    """(what was written, what was said) by default."""
    lines = []
    return export(of_lora, tmp_path_factory.mktemp("out"), say=lines.append), lines


def logits(params, config, segments=()):
    return np.asarray(tiny.run(params, IDS, Decoder(config, segments=segments)))


def files(folder):
    """Content of all files below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def another_base(on, folder):
    """The base with one weight changed."""
    from peftjax.interop.hf import write_directory

    params = on.params | {"embed": {"embedding": on.params["embed"]["embedding"].at[0, 0].add(1.0)}}
    write_directory(folder, on.config, params)
    on.tokenizer.write_directory(folder)
    return load_base(folder)


def test_by_default_every_form_that_can_hold_it_is_written(exported):
    written, lines = exported
    assert [path.name for path in written] == list(PLACES.values()) and all(path.exists() for path in written)
    assert [line.split()[:2] for line in lines[: len(FORMS)]] == [[form, str(path)] for form, path in zip(FORMS, written, strict=True)]
    assert "use_safetensors=True" in next(line for line in lines if line.startswith("adapterhub"))


def test_what_servers_make_of_it_is_said_and_written(exported):
    written, lines = exported
    assert (written[0].parent / "servers.md").read_text() == lines[-1] + "\n"
    assert {"vLLM", "SGLang", "llama.cpp"} <= {line.split()[0] for line in lines[-1].splitlines()}


@pytest.mark.parametrize(("form", "known"), [("peftjax", "peftjax"), ("peft", "HF PEFT"), ("adapterhub", "AdapterHub")])
def test_each_adapter_gives_the_logits_of_the_run(form, known, exported, of_lora):
    (folder,) = [path for path in exported[0] if path.name == form]
    assert form_of(folder) == known
    there, on = load_adapter(folder, of_lora.base), of_lora.base.config
    wanted = logits(of_lora.params, on, of_lora.segments)
    assert np.abs(wanted - logits(of_lora.base.params, on)).max() > 1e-3  # else an adapter that does nothing would pass
    np.testing.assert_allclose(logits(there.params, on, there.segments), wanted, atol=1e-5)
    assert there.adapter.base == of_lora.base.fingerprint and there.adapter.lineage["run"] == "run"


@pytest.mark.parametrize(("dtype", "close"), [(None, 1e-5), ("bfloat16", 0.1), ("float16", 1e-2)])
def test_the_merged_base_gives_the_logits_of_the_run(dtype, close, exported, of_lora, tmp_path):
    folder = exported[0][0].parent / "merged" if dtype is None else export(of_lora, tmp_path, ["merged"], dtype=dtype)[0]
    merged, wanted = load_base(folder), logits(of_lora.params, of_lora.base.config, of_lora.segments)
    np.testing.assert_allclose(logits(merged.params, merged.config), wanted, atol=close)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == (dtype or "float32")
    assert merged.tokenizer.fingerprint == of_lora.base.tokenizer.fingerprint


@pytest.mark.parametrize(("dtype", "kept"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "F32")])
def test_llama_cpps_file_has_the_dtype_or_float32(dtype, kept, of_lora, tmp_path):
    import gguf

    (file,) = export(of_lora, tmp_path, ["gguf"], dtype=dtype)
    tensors = gguf.GGUFReader(file).tensors
    assert {tensor.tensor_type.name for tensor in tensors} == {kept} and len(tensors) == 2 * 2 * 2  # layers, modules, factors


def test_a_form_that_cannot_hold_it_is_left_out_with_the_reason(of_bottleneck, tmp_path):
    lines = []
    written = export(of_bottleneck, tmp_path / "out", say=lines.append)
    assert [path.name for path in written] == ["peftjax", "adapterhub"]
    said = {line.split()[0]: line for line in lines[: len(FORMS)]}
    reasons = {"peft": "HF PEFT has no place for", "merged": "no dense weight to be merged into", "gguf": "blocks/0/"}
    for form, reason in reasons.items():
        assert "not written: " in said[form] and reason in said[form]
        assert not (tmp_path / "out" / PLACES[form]).exists()
    wanted = logits(of_bottleneck.params, of_bottleneck.base.config, of_bottleneck.segments)
    for folder in written:
        there = load_adapter(folder, of_bottleneck.base)
        np.testing.assert_allclose(logits(there.params, of_bottleneck.base.config, there.segments), wanted, atol=1e-5)


def test_an_earlier_export_that_stays_is_named(of_lora, of_bottleneck, tmp_path):
    export(of_lora, tmp_path, ["peft", "gguf"])
    lines = []
    export(of_bottleneck, tmp_path, say=lines.append)
    said = {line.split()[0]: line for line in lines[: len(FORMS)]}
    assert "peft is of an earlier export" in said["peft"] and "lora.gguf is of an earlier export" in said["gguf"]
    assert "earlier" not in said["merged"]


@pytest.mark.parametrize("form", ["peft", "merged", "gguf"])
def test_a_form_that_was_asked_for_and_cannot_hold_it_is_an_error(form, of_bottleneck, tmp_path):
    with pytest.raises(ValueError, match=f"^form {form}: "):
        export(of_bottleneck, tmp_path / "out", [form])
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("asked", "message"), [
    ({"forms": ["pefft"]}, r"no form is called 'pefft' \(did you mean 'peft'.*; forms are peftjax, peft"),
    ({"dtype": "float8"}, "dtype 'float8' is not one of float32"),
])
def test_an_unknown_form_or_dtype_is_refused(asked, message, of_lora, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(of_lora, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("forms", ["all", "that one"])
def test_what_somebody_else_left_there_is_not_replaced(form, forms, of_lora, tmp_path):
    place = tmp_path / PLACES[form]
    if form == "gguf":
        place.write_bytes(b"mine")
    else:
        place.mkdir()
        (place / "adapter_config.json").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=f"{place.name} exists and is no export"):
        export(of_lora, tmp_path, () if forms == "all" else [form])
    assert files(tmp_path) == before


def test_a_second_export_replaces_the_first(exported, of_lora, of_bottleneck, tmp_path):
    shutil.copytree(exported[0][0].parent, tmp_path / "out")
    (tmp_path / "out" / "peftjax" / "notes.txt").write_text("of the first")
    params = tiny.moved(of_lora.params)
    written = export(dataclasses.replace(of_lora, params=params), tmp_path / "out")
    assert [path.name for path in written] == list(PLACES.values())
    wanted = logits(params, of_lora.base.config, of_lora.segments)
    for folder in written[:3]:
        there = load_adapter(folder, of_lora.base)
        np.testing.assert_allclose(logits(there.params, of_lora.base.config, there.segments), wanted, atol=1e-5)
    assert not (tmp_path / "out" / "peftjax" / "notes.txt").exists()
    assert written[4].read_bytes() != exported[0][4].read_bytes()


# ---- a quantised base ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_qlora(tmp_path_factory):
    """LoRA on a base held in 4 bits, its embedding in 8."""
    return trained(tmp_path_factory.mktemp("qlora"), lora(rank=4, alpha=32), quantise="embed=int8,all-linear=int4")


@pytest.mark.slow  # its run, on a quantised base, and itself take eleven seconds
def test_a_run_on_a_quantised_base_is_found_on_it_again(of_qlora, tmp_path):
    """And so is its adapter from a directory, unless that is asked for otherwise."""
    assert of_qlora.base.quantise == [["embed", "int8"], ["all-linear", "int4"]]
    assert isinstance(of_qlora.base.params["blocks"]["attn"]["q"]["kernel"], Affine4)
    export(of_qlora, tmp_path, ["peftjax", "peft"])
    wanted = logits(of_qlora.params, of_qlora.base.config, of_qlora.segments)
    for form in ("peftjax", "peft"):
        there = ready(base=of_qlora.base.uri, adapter=str(tmp_path / form))
        assert there.base.fingerprint == of_qlora.base.fingerprint
        np.testing.assert_allclose(logits(there.params, there.base.config, there.segments), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="it is held dense here and was held embed int8, all-linear int4 there: say quantise="):
        ready(base=of_qlora.base.uri, adapter=str(tmp_path / "peft"), quantise=None)


@pytest.mark.slow  # needs the run on a quantised base
def test_merged_weights_of_a_quantised_base_are_dense(of_qlora, tmp_path):
    (folder,) = export(of_qlora, tmp_path, ["merged"])
    merged, wanted = load_base(folder), logits(of_qlora.params, of_qlora.base.config, of_qlora.segments)
    assert merged.quantise is None
    np.testing.assert_allclose(logits(merged.params, merged.config), wanted, atol=1e-4)


@pytest.mark.slow  # needs the run on a quantised base; budgets are tested in certificate_test
def test_an_adapter_is_folded_into_the_quantised_weights_within_a_budget(of_qlora, tmp_path):
    text, lines = write_text(tmp_path / "text.jsonl"), []
    (folder,) = export(of_qlora, tmp_path / "out", ["quantised"], budget=Budget(kl=1.0), sample=str(text), say=lines.append)
    held, certificate = load_base(folder), json.loads((folder / "certificate.json").read_text())
    assert held.quantise == of_qlora.base.quantise and isinstance(held.params["blocks"]["mlp"]["up"]["kernel"], Affine4)
    assert 0 < certificate["kl"] < 1 and certificate["budget"] == {"kl": 1.0, "max_logit": None} and len(certificate["kernels"]) == 7
    assert lines[0].startswith(f"merged into the quantised base: KL {certificate['kl']:.4g} nats a token")
    wanted = logits(of_qlora.params, of_qlora.base.config, of_qlora.segments)
    assert 0 < np.abs(logits(held.params, held.config) - wanted).max() < 2 * certificate["max_logit"]
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"^form quantised: merging into the quantised base was refused: KL .* above the budget of 1e-09"):
        export(of_qlora, tmp_path / "out", ["quantised"], budget=Budget(kl=1e-9), sample=str(text))
    assert files(tmp_path) == before


def test_a_dense_base_has_no_quantised_form(of_lora, of_bottleneck, tmp_path):
    text = str(write_text(tmp_path / "text.jsonl"))
    with pytest.raises(ValueError, match="form quantised: none of these adapters stands on a quantised weight"):
        export(of_lora, tmp_path / "out", ["quantised"], sample=text)
    with pytest.raises(ValueError, match="form quantised: blocks/.*: a network at a site has no dense weight"):
        export(of_bottleneck, tmp_path / "out", ["quantised"], sample=text)


# ---- imports -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["peftjax", "peft", "adapterhub"])
def test_any_form_is_brought_into_our_own(form, exported, of_lora, tmp_path):
    folder = exported[0][0].parent / form
    adapter = import_adapter(folder, of_lora.base, tmp_path / "own")
    assert form_of(tmp_path / "own") == "peftjax"
    assert digest(read_adapter(tmp_path / "own", of_lora.base)) == digest(adapter) == digest(read_adapter(folder, of_lora.base))


def test_an_adapter_is_not_imported_onto_itself_or_over_something_else(exported, of_lora, tmp_path):
    shutil.copytree(exported[0][0], tmp_path / "own")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ValueError, match="own holds the adapter itself; name another folder"):
        import_adapter(tmp_path / "own", of_lora.base, tmp_path / "mine" / ".." / "own")
    for target in ("mine", "mine/file"):
        with pytest.raises(FileExistsError, match="is no export of peftjax"):
            import_adapter(tmp_path / "own", of_lora.base, tmp_path / target)
    assert files(tmp_path) == before


@pytest.mark.parametrize("form", ["peftjax", "peft", "adapterhub"])
def test_another_base_is_refused_or_becomes_the_owner(form, exported, of_lora, tmp_path):
    other, folder = another_base(of_lora.base, tmp_path / "base"), exported[0][0].parent / form
    with pytest.raises(ValueError, match="was made for another base"):
        import_adapter(folder, other, tmp_path / "own")
    assert not (tmp_path / "own").exists()
    import_adapter(folder, other, tmp_path / "own", other_base=True)
    assert read_adapter(tmp_path / "own", other).base == other.fingerprint  # without other_base
    with pytest.raises(ValueError, match="was made for another base"):
        read_adapter(tmp_path / "own", of_lora.base)


@pytest.mark.slow
def test_what_makes_up_for_quantising_is_said_to_belong_to_the_quantised_base(tmp_path):
    """Its plain form on the dense weights is wrong by what quantising lost; merged it needs no base."""
    on = trained(tmp_path, lora(rank=4, init="loftq", targets=["q_proj", "down_proj"]), quantise="nf4:32")
    lines = []
    export(on, tmp_path / "out", ["peftjax", "peft", "merged"], say=lines.append)
    assert ["for the quantised base alone" in line for line in lines[:3]] == [False, True, False]
    assert "started by loftq" in lines[-1] and "never lost" in (tmp_path / "out" / "servers.md").read_text()
    here, merged = logits(on.params, on.base.config, on.segments), load_base(tmp_path / "out" / "merged")
    np.testing.assert_allclose(logits(merged.params, merged.config), here, atol=1e-4)
    dense = load_adapter(tmp_path / "out" / "peft", whole := load_base(on.base.uri), other_base=True)
    assert np.abs(logits(dense.params, whole.config, dense.segments) - here).max() > 1e-3
    with pytest.raises(ValueError, match="started by loftq.*is dense here"):
        export(dataclasses.replace(on, base=whole), tmp_path / "dense", say=lines.append)


def test_a_start_of_several_rounds_is_known_by_the_adapter_and_by_its_base(of_lora, tmp_path):
    from peftjax.interop.held import write_held
    from peftjax.train.quantised_start import start_of

    base = load_base(of_lora.base.uri, quantise="nf4:32")
    write_held(tmp_path, base.config, base.params, base.tokenizer, dtype=base.dtype, quantise=base.quantise, origin={"start": "qpissa"})
    assert start_of(of_lora.methods, {"start": "loftq", "rounds": 5}, base) == "loftq"
    assert start_of(of_lora.methods, {"start": {"task": "..."}}, base) is start_of(of_lora.methods, {}, base) is None
    assert start_of(of_lora.methods, {}, load_base(tmp_path)) == "qpissa"
