"""AdapterFusion as AdapterHub keeps it: its logits, byte for byte the same when written, and what has no place there is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from golden_bases import GOLDEN, base, base_of, forward, golden, read
from golden_bases import tensors as held

from peftjax.interop.exchange.adapter import extract, insert
from peftjax.interop.exchange.adapterhub_read import read_adapterhub
from peftjax.interop.exchange.adapterhub_write import write_adapterhub
from peftjax.interop.exchange.load import form_of, load_adapter
from peftjax.interop.exchange.native import read_native, write_native
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import pfeiffer
from peftjax.peft.compose import compose
from peftjax.peft.composition import Fuse
from peftjax.peft.fusion import fusion
from peftjax.peft.lora import lora

VARIANTS = ("fusion", "bert_fusion")
FILES = ("model_adapter_fusion.safetensors", "adapter_fusion_config.json")


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_adapterhub(variant):
    found, on = golden("adapterhub", variant), base_of("adapterhub", variant)
    params = on.params
    for name, inside in (("task", "task"), ("b", "b"), ("mix", "fusion")):
        params = insert(params, read("adapterhub", variant, inside), name)
    composed = compose(params, Fuse("task", "b", by="mix"))
    np.testing.assert_allclose(forward(on.config, composed, found), found["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_read_is_written_byte_for_byte(variant, tmp_path):
    theirs, on, first = GOLDEN / "adapterhub" / variant / "fusion", base_of("adapterhub", variant), read("adapterhub", variant, "fusion")
    write_adapterhub(tmp_path / "1", first, on.config, base_uri=variant.replace("fusion", "llama").replace("bert_llama", "bert"))
    names = {file.name for file in theirs.iterdir()}
    assert {file.name for file in (tmp_path / "1").iterdir()} == names
    written, wanted = held(tmp_path / "1" / FILES[0]), held(theirs / FILES[0])
    assert written.keys() == wanted.keys()
    for key, value in wanted.items():  # the bias of the keys does nothing
        assert written[key] == value if "key.bias" not in key else not np.frombuffer(written[key][2], np.float32).any()
    assert json.loads((tmp_path / "1" / FILES[1]).read_text()) == json.loads((theirs / FILES[1]).read_text())
    assert form_of(tmp_path / "1") == "AdapterHub"
    again = read_adapterhub(tmp_path / "1", on.config, on.params)
    assert again.methods == first.methods
    write_adapterhub(tmp_path / "2", again, on.config, base_uri="llama")
    write_native(tmp_path / "3", again, on)
    write_adapterhub(tmp_path / "4", read_native(tmp_path / "3"), on.config, base_uri="llama")
    for name in names - {FILES[1], "head_config.json"}:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() == (tmp_path / "4" / name).read_bytes()


EDITS = {
    "temperature": ({"temperature": True}, "temperature: a temperature that falls with every call"),
    "query_before_ln": ({"query_before_ln": True}, "query_before_ln: a query before the sum"),
    "residual_before": ({"residual_before": True}, "residual_before: values with the residual stream"),
    "no keys": ({"key": False}, "key: adapters weighed without keys"),
    "an unknown field": ({"heads": 4}, "heads = 4, which is not known here"),
    "no values": ({"value": False}, "(?s)extra .*task,b.value.weight: nothing in the config asks for it"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_not_supported_is_refused_by_name(edit, tmp_path):
    changes, message = EDITS[edit]
    folder = shutil.copytree(GOLDEN / "adapterhub" / "fusion" / "fusion", tmp_path / "fusion")
    document = json.loads((folder / FILES[1]).read_text())
    (folder / FILES[1]).write_text(json.dumps(document | {"config": document["config"] | changes}))
    with pytest.raises(ValueError, match=message):
        read_adapterhub(folder, base("llama").config)


def test_settings_are_read_and_a_fusion_wants_its_adapters():
    (method,) = read("adapterhub", "fusion", "fusion").methods
    assert method == fusion(of=("task", "b"))
    with pytest.raises(ValueError, match="fusion 'default' is of 'task', which is not attached before it"):
        load_adapter(GOLDEN / "adapterhub" / "fusion" / "fusion", base("llama"))


HOMELESS = {
    "a temperature": ([pfeiffer(size=2, name="a"), pfeiffer(size=2, name="b"), fusion(of=("a", "b"), temperature=2.0)], "temperature 2"),
    "a penalty": ([pfeiffer(size=2, name="a"), pfeiffer(size=2, name="b"), fusion(of=("a", "b"), penalty=0.5)], "penalty 0.5"),
    "of LoRAs": ([lora(rank=1, name="a"), lora(rank=1, name="b"), fusion(of=("a", "b"))], r"kernel \(KernelFusion\).*weighs bottlenecks"),
    "a name with a dot": ([pfeiffer(size=2, name="a.1"), pfeiffer(size=2, name="b"), fusion(of=("a.1", "b"))], "cannot be called 'a.1'"),
}


@pytest.mark.parametrize("case", HOMELESS)
def test_what_adapterhub_has_no_place_for_is_refused(case, tmp_path):
    methods, message = HOMELESS[case]
    adapter = extract(attach(base("llama").params, methods, jax.random.key(0)), methods, "fusion")
    with pytest.raises(ValueError, match=message):
        write_adapterhub(tmp_path / "out", adapter, base("llama").config)
    assert not (tmp_path / "out").exists()
