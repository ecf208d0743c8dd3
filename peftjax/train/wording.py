"""Words in a config's methods, as ids of the base's tokenizer.

    config.peft = methods(prompt_tuning(length=8, init="text", text="Turn the command into JSON:"))
"""

from typing import Any

from ml_collections import ConfigDict

from peftjax.models.tokenizer import Tokenizer


def with_ids(config: Any, tokenizer: Tokenizer) -> Any:
    """The config with `ids` beside each `text` of its methods; the config itself where there is none.

    Raises:
        ValueError: a text of which the tokenizer makes no token.
    """
    if not any(_asks(method) for method in config.peft):
        return config
    config = ConfigDict(config.to_dict())
    config.peft = [_worded(ConfigDict(method), tokenizer) if _asks(method) else ConfigDict(method) for method in config.peft]
    return config


def _asks(method: Any) -> bool:
    return bool(method.get("text")) and not method.get("ids")


def _worded(method: ConfigDict, tokenizer: Tokenizer) -> ConfigDict:
    ids = tuple(tokenizer.encode(method.text))
    if not ids:
        raise ValueError(f"{method.method} text={method.text!r}: the tokenizer makes no token of it")
    method.ids = ids
    return method
