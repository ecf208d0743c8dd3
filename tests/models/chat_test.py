"""Chat templates: the surroundings that Hugging Face gives them, and errors that say what is wrong."""

import datetime

import pytest

from peftjax.models.chat import render

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


def test_chatml():
    assert render(CHATML, HI) == "<|im_start|>user\nHi<|im_end|>\n"
    assert render(CHATML, HI, add_generation_prompt=True).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_blocks_are_trimmed_as_hugging_face_does():
    assert render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n", HI) == "Hi\n"


def test_tojson_leaves_html_and_unicode_alone():
    messages = [{"role": "user", "content": "<b>'é'</b>"}]
    assert render("{{ messages[0].content | tojson }}", messages) == "\"<b>'é'</b>\""
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}", HI) == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'


def test_loop_controls_generation_blocks_tokens_tools_and_time():
    template = "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    assert render(template, HI * 3) == "Hi"
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b", HI) == "aHib"
    assert render("{{ bos_token }}", HI, special_tokens={"bos_token": "<s>"}) == "<s>"
    assert render("{% if tools %}{{ tools[0].name }}{% endif %}", HI) == ""
    assert render("{% if tools %}{{ tools[0].name }}{% endif %}", HI, tools=[{"name": "f"}]) == "f"
    assert render("{{ strftime_now('%Y') }}", HI) in {str(datetime.date.today().year + n) for n in (-1, 0, 1)}


def test_the_template_cannot_change_messages_or_reach_python():
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="fails on messages with roles"):
        render("{{ messages.append(1) }}", messages)
    assert messages == HI
    with pytest.raises(ValueError, match="fails"):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}", messages)


def test_a_refusal_is_told_in_the_templates_words():
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", HI)


def test_a_template_that_does_not_parse_names_the_line():
    with pytest.raises(ValueError, match="does not parse: line 2"):
        render("{% for m in messages %}\n{% endif %}", HI)


def test_a_failing_template_names_the_roles():
    with pytest.raises(ValueError, match=r"roles \[user, tool\]"):
        render(CHATML, [*HI, {"role": "tool", "call": 1}])


@pytest.mark.parametrize(
    "messages, words",
    [
        ("Hi", "must be a list like"),
        ({"role": "user", "content": "Hi"}, "must be a list like"),
        ([], "empty"),
        (["Hi"], r"messages\[0\] must be a mapping"),
        ([*HI, {"content": "Hi"}], r"messages\[1\] has no 'role'; its keys are content"),
        ([{"role": "user"}], r"messages\[0\] \(role 'user'\) has no 'content'"),
    ],
)
def test_malformed_messages(messages, words):
    with pytest.raises(ValueError, match=words):
        render(CHATML, messages)
