"""A template fills fields, and nothing but fields that are there."""

import pytest
from char_tokenizer import CharTokenizer

from peftjax.data.records import Record
from peftjax.data.template import Template

RECORD = Record(prompt="Lamp on", response='{"intent":"On"}', lang="en", extra={"area": "kitchen", "aliases": ["a"]})
CHAT = Record(messages=({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}))


def test_fills_fields_and_extras():
    template = Template(prompt="[{lang}] {prompt} in {area} {{x}}:", response="{response}")
    assert template.texts(RECORD) == ("[en] Lamp on in kitchen {x}:", '{"intent":"On"}')


def test_braces_in_values_are_left_alone():
    assert Template().texts(Record(prompt="{lang}", response="{}")) == ("{lang}", " {}")


def test_unknown_fields_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no field 'promt'.*did you mean {prompt}"):
        Template(prompt="{promt}").texts(RECORD)
    with pytest.raises(ValueError, match="'aliases' .* is list, not text"):
        Template(prompt="{aliases}").texts(RECORD)


@pytest.mark.parametrize("text", ["{prompt", "prompt}", "{}", "{0}", "{prompt.upper}", "{prompt[0]}", "{prompt!r}", "{prompt:>9}"])
def test_only_plain_fields_are_formats(text):
    with pytest.raises(ValueError, match="template"):
        Template(prompt=text)


def test_a_chat_goes_through_the_chat_template_up_to_the_answer():
    tokenizer, template = CharTokenizer(), Template(chat=True)
    assert template.texts(CHAT) == ("", "Hi")
    assert template.prompt_text(CHAT, tokenizer) == "<user>Hello</><assistant>"
    assert template.prompt_ids(CHAT, tokenizer) == tokenizer.encode_chat([{"role": "user", "content": "Hello"}], True)
    with_prompt = Template(prompt="Do: {prompt}", chat=True)
    assert with_prompt.prompt_text(RECORD, tokenizer) == "<user>Do: Lamp on</><assistant>"
    assert with_prompt.texts(RECORD)[1] == '{"intent":"On"}'


def test_a_plain_template_refuses_a_chat():
    with pytest.raises(ValueError, match="needs chat=True"):
        Template().texts(CHAT)


def test_a_plain_prompt_is_encoded_as_its_text():
    tokenizer = CharTokenizer()
    assert tokenizer.decode(Template().prompt_ids(RECORD, tokenizer)) == Template().prompt_text(RECORD) == "Lamp on"
