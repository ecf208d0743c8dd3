"""The harness's questions: its conventions without it, and its own tasks where it is installed."""

import json
from types import SimpleNamespace

import jax
import pytest
import tiny_tokenizer
import tokenizers

from peftjax.evals.harness import HarnessModel, as_lm, evaluate
from peftjax.evals.likelihood import log_likelihoods
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, init_params
from peftjax.models.generate import generate_ids
from peftjax.models.tokenizer import Tokenizer

CONFIG = DecoderConfig(vocab_size=300, width=32, layers=2, heads=2, kv_heads=2, head_size=16, ff=64, tied=True, max_length=64)
TEXT = "turn the light in the kitchen on, the user and the assistant talk about the end of the text " * 2


def subject(**options) -> HarnessModel:
    return HarnessModel(Decoder(CONFIG), init_params(CONFIG, jax.random.key(0)), tiny_tokenizer.tokenizer(), **options)


def with_bos() -> Tokenizer:
    """The tiny tokenizer, with bos before each text."""
    backend = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend().to_str())
    bos = "<|endoftext|>"
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, 0)])
    return Tokenizer(backend, {"bos_token": bos, "eos_token": "<|im_end|>"}, tiny_tokenizer.CHATML)


def asked(*args):
    return SimpleNamespace(args=args)


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer.tokenizer(), with_bos()], ids=["no bos", "bos"])
def test_pairs_are_cut_out_of_one_encoding(tokenizer):
    model = subject()
    model.tokenizer = tokenizer
    first = [0] * tokenizer.bos_first
    assert model.encode_pair("the", " light") == (first + tokenizer.encode("the"), tokenizer.encode(" light"))
    assert model.encode_pair("the ", "light") == model.encode_pair("the", " light")
    assert model.encode_pair("", "light") == ([0], tokenizer.encode("light"))
    assert model.encode_pair("", "<|endoftext|>the") == ([0], tokenizer.encode("the"))
    assert model.encode("<|endoftext|>the") == [0, *tokenizer.encode("the")]
    assert model.encode("the<|im_end|>") == [*first, *tokenizer.encode("the"), 2]


def test_log_likelihoods_are_those_of_the_pairs():
    model = subject(batch_size=2)
    requests = [asked("turn the light", " on"), asked("", "the"), asked("the ", "end"), asked(TEXT, " end")]
    pairs = [model.encode_pair(*request.args) for request in requests]
    assert model.loglikelihood(requests) == log_likelihoods(model.model, model.params, pairs, batch_size=2)


def test_rolling_scores_a_whole_text_in_windows():
    whole, windows = subject(max_length=64), subject(max_length=16)
    short = "turn the light on"
    ids = whole.encode(short)
    expected = log_likelihoods(whole.model, whole.params, [([whole.prefix_id], ids)])[0][0]
    assert whole.loglikelihood_rolling([asked(short), asked("")]) == [pytest.approx(expected, abs=1e-4), 0]
    ids, limit = windows.encode(TEXT), 16
    first = log_likelihoods(windows.model, windows.params, [([0], ids[:limit])])[0][0]
    rest = sum(
        log_likelihoods(windows.model, windows.params, [(ids[max(0, stop - limit - 1):start], ids[start:stop])], max_length=limit)[0][0]
        for start in range(limit, len(ids), limit) for stop in [min(start + limit, len(ids))]
    )
    assert windows.loglikelihood_rolling([asked(TEXT)])[0] == pytest.approx(first + rest, abs=1e-3)


def test_generation_is_greedy_and_ends_before_a_stop_string():
    model = subject(batch_size=2)
    model.params = jax.tree.map(lambda leaf: 8 * leaf, model.params)  # so that what it says is not always the same
    contexts = ["turn the light", "the", "the user and", ""]
    prompts = [model.encode(context) or [0] for context in contexts]
    rows = generate_ids(model.model, model.params, prompts, 2, max_new=12, vocab=300)
    free = [model.tokenizer.decode(row) for row in rows]
    assert model.generate_until([asked(context, {"until": [], "max_gen_toks": 12}) for context in contexts]) == free
    stop = next(text for text in free if len(text) > 4)[3:5]
    expected = [text.split(stop)[0] for text in free]
    assert model.generate_until([asked(context, {"until": stop, "max_gen_toks": 12}) for context in contexts]) == expected != free
    assert model.generate_until([asked("the", {"until": [".", stop, ""], "max_gen_toks": 12})]) == [expected[1].split(".")[0]]


def test_a_long_context_is_cut_on_the_left_and_needs_room():
    model = subject(max_length=20)
    ids = model.encode(TEXT)[-12:]
    expected = model.tokenizer.decode(generate_ids(model.model, model.params, [ids], 2, max_new=8, vocab=300)[0])
    assert model.generate_until([asked(TEXT, {"max_gen_toks": 8})]) == [expected]
    with pytest.raises(ValueError, match="max_gen_toks is 256, the model sees 20 tokens"):
        model.generate_until([asked("a", {})])


def test_options_that_would_be_ignored_are_refused():
    model, ask = subject(), {"max_gen_toks": 3, "until": ["x"]}
    plain = model.generate_until([asked("the", ask)])
    assert model.generate_until([asked("the", {**ask, "do_sample": False, "temperature": 0.7, "top_p": 0.9})]) == plain
    drawn = model.generate_until([asked("the", {**ask, "do_sample": True, "temperature": 9.0})])
    assert drawn == model.generate_until([asked("the", {**ask, "do_sample": True, "temperature": 9.0})])
    narrow = {**ask, "do_sample": True, "temperature": 9.0}
    for filters in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert model.generate_until([asked("the", {**narrow, **filters})]) == plain != drawn
    assert model.generate_until([asked("the", {**ask, "repetition_penalty": 50.0})]) != plain
    for strange in ({"do_sample": True, "typical_p": 0.5}, {"num_beams": 4}):
        with pytest.raises(ValueError, match="are not supported"):
            model.generate_until([asked("the", {**ask, **strange})])


def test_answers_are_told_to_the_cache_as_they_come():
    told = []
    model = subject(batch_size=1, cache_hook=SimpleNamespace(add_partial=lambda kind, args, answer: told.append((kind, args, answer))))
    pairs = [asked("the", " end"), asked("the user and the", " assistant")]
    found = model.loglikelihood(pairs)
    assert sorted(told) == sorted(("loglikelihood", request.args, answer) for request, answer in zip(pairs, found, strict=True))


def test_a_conversation_as_text():
    model = subject()
    turns = [{"role": "user", "content": "on"}, {"role": "assistant", "content": "the light "}]
    assert model.apply_chat_template(turns[:1]) == "<|im_start|>user\non<|im_end|>\n<|im_start|>assistant\n"
    assert model.apply_chat_template(turns, add_generation_prompt=False).endswith("assistant\nthe light")
    assert model.chat_template(True) == tiny_tokenizer.CHATML and model.chat_template(False) is None


def write_tasks(folder):
    """A multiple choice, a perplexity and a generation task over one local JSON file."""
    rows = [{"q": "turn the light", "choices": [" on", " in the kitchen"], "answer": 0, "text": TEXT},
            {"q": "the user and the", "choices": [" light", " assistant", " end"], "answer": 1, "text": "the end of the text"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
    tasks = {
        "tiny_choice": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
        "target_delimiter: ''\nmetric_list: [{metric: acc}]\n",
        "tiny_text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n",
        "tiny_say": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[answer]}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n",
    }
    for name, body in tasks.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{body}")
    return list(tasks)


@pytest.mark.slow  # imports the harness, which takes most of seventeen seconds; its conventions are tested above without it
def test_the_harness_runs_its_tasks_on_a_model(tmp_path):
    pytest.importorskip("lm_eval", reason="the harness comes with the extra evals")
    names, model = write_tasks(tmp_path), subject()
    found = evaluate(model, names, tasks_dir=str(tmp_path))
    choice = found["samples"]["tiny_choice"]
    pairs = [(sample["doc"]["q"], text) for sample in choice for text in sample["doc"]["choices"]]
    direct = model.loglikelihood([asked(*pair) for pair in pairs])
    assert [response[0] for sample in choice for response in sample["resps"]] == direct
    right = [max(range(len(s["resps"])), key=lambda i, s=s: s["resps"][i][0][0]) == s["doc"]["answer"] for s in choice]
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(sum(right) / len(right))
    rolling = model.loglikelihood_rolling([asked(sample["doc"]["text"]) for sample in found["samples"]["tiny_text"]])
    assert [sample["resps"][0][0] for sample in found["samples"]["tiny_text"]] == rolling
    with pytest.raises(ValueError, match="did you mean 'tiny_choice'"):
        evaluate(model, ["tiny_choise"], tasks_dir=str(tmp_path))


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'peftjax\[evals\]'"):
        as_lm(subject())
