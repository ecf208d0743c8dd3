"""What a program fills into a text: %(name)s, %s, %d, {name}, {0}, {}. A translation must keep each as it is and as often."""

import collections
import re

_PLACEHOLDER = re.compile(r"%\(\w+\)[#0+-]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa]|%[dioufrs](?!\w)|\{[\w.]*(?:![rsa])?(?::[^{}]*)?\}")


def placeholders(text: str) -> collections.Counter[str]:
    """How often each placeholder stands in the text; "100 % done" and JSON objects have none."""
    return collections.Counter(_PLACEHOLDER.findall(text))
