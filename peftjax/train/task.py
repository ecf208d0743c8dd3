"""What a run trains for, and what differs with it: rows of data, the head among the methods, and the evaluation.

| task           | base    | a row of data                          | loss at               | evaluation                            |
|---|---|---|---|---|
| NextToken      | decoder | prompt, response                       | tokens of the response | perplexity, generated answers, forgetting |
| Classification | encoder | text or pair with special tokens, label | the first token       | accuracy, macro F1                    |

The loop, the step and the checkpoints know neither: a batch has positions that carry loss and their targets, whatever these are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from peftjax.data.labelled import label_rows, labels_of
from peftjax.data.packing import Rows
from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.data.tokens import tokenize
from peftjax.models.encoder_config import EncoderConfig
from peftjax.peft.classifier import classifier
from peftjax.peft.spec import from_data
from peftjax.train.classify import ClassEvaluator
from peftjax.train.evaluate import Evaluator
from peftjax.train.held import Held


class Task(Protocol):
    """What the parts of a run ask.

    Attributes:
        general: whether forgetting is measured on general text.
        measures_base: whether the base without adapters can be evaluated.
        causal: whether a token sees earlier ones only, so that rows may share what they begin with.
    """

    general: bool
    measures_base: bool
    causal: bool

    def learn(self, records: Sequence[Record], template: Template) -> "Task":
        """The task with what it takes from the training records."""

    def rows(self, records: Sequence[Record], tokenizer: Any, template: Template, length: int) -> Rows:
        """Tokenised rows of at most `length` tokens."""

    def text(self, record: Record, tokenizer: Any, template: Template) -> str:
        """What a row asks, for people to read."""

    def methods(self, methods: Sequence[Any]) -> list[Any]:
        """The methods of the config, with what the task fills in."""

    def evaluator(self, model: Any, tokenizer: Any, config: Any, held: Mapping[str, Held], say: Callable[[str], None]) -> Any:
        """An object with `run(step, split, trainable, frozen, base_general_loss) -> dict` and `loss(split, trainable, frozen) -> float`."""

    def specification(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as plain data."""


@dataclasses.dataclass(frozen=True)
class NextToken:
    """A decoder learns responses to prompts."""

    general = True
    measures_base = True
    causal = True

    def learn(self, records, template):
        """Nothing is learnt from the records."""
        return self

    def rows(self, records, tokenizer, template, length):
        """See `peftjax.data.tokens`."""
        return tokenize(records, tokenizer, template, length)

    def text(self, record, tokenizer, template):
        """The prompt."""
        return template.prompt_text(record, tokenizer)

    def methods(self, methods):
        """As they are."""
        return list(methods)

    def evaluator(self, model, tokenizer, config, held, say):
        """Losses and generated answers."""
        return Evaluator(model, tokenizer, config.eval, held, config.data.length, say)

    def specification(self):
        """Nothing beside what any run has."""
        return {}


NEXT_TOKEN = NextToken()


@dataclasses.dataclass(frozen=True)
class Classification:
    """An encoder tells labels apart.

    Attributes:
        labels: in the order of the logits; () until they are learnt.
        own: labels of the base's own head, () where it has none.
        second: template whose prompt is the second text of a pair, or None.
        typed: the base tells two texts apart by token types.
        virtual: tokens that the methods put before each text.
    """

    labels: tuple[str, ...]
    own: tuple[str, ...]
    second: Template | None
    typed: bool
    virtual: int = 0

    general = False
    causal = False

    @property
    def measures_base(self) -> bool:
        """Only where the base's own head is for these labels."""
        return self.labels == self.own

    def learn(self, records, template):
        """The labels of the training records, sorted, unless they were given."""
        return self if self.labels else dataclasses.replace(self, labels=labels_of(records, template))

    def rows(self, records, tokenizer, template, length):
        """See `peftjax.data.labelled`."""
        return label_rows(records, tokenizer, template, self.labels, length, self.second, self.typed, self.virtual)

    def text(self, record, tokenizer, template):
        """The text, or both texts on a line each."""
        return "\n".join(form.texts(record)[0] for form in (template, self.second) if form is not None)

    def methods(self, methods):
        """With the labels filled in where a classifier names none."""
        return [dataclasses.replace(m, labels=self.labels) if isinstance(m, classifier) else m for m in methods]

    def evaluator(self, model, tokenizer, config, held, say):
        """Predicted labels."""
        return ClassEvaluator(model, self.labels, config.eval, held, config.data.length, say)

    def specification(self):
        """The labels: their order is what a head means."""
        return {"labels": list(self.labels)}


def task_for(config: Any, architecture: Any) -> Task:
    """The task that the base's architecture makes of a config.

    Raises:
        ValueError: fields that do not belong to it, rows that are longer than the base reads, or labels that disagree.
    """
    data = config.data
    if not isinstance(architecture, EncoderConfig):
        given = [name for name in ("labels", "second") if data[name]]
        if given:
            names = " and ".join(f"config.data.{name}" for name in given)
            raise ValueError(f"{names} belong to classification, for which the base must be an encoder")
        if architecture.learned_positions:
            _require_positions(config, architecture.max_length, "learned positions")
        return NEXT_TOKEN
    if data.share_prefixes == "on":
        raise ValueError('config.data.share_prefixes is "on"; this base is an encoder, in which the beginning of a text sees its end')
    if data.chat:
        raise ValueError("config.data.chat belongs to decoders; this base is an encoder, which classifies texts")
    _require_positions(config, architecture.longest, "positions")
    heads = [method for method in (from_data(m.to_dict()) for m in config.peft) if isinstance(method, classifier)]
    if not heads and not architecture.labels:
        raise ValueError("this base has no classification head; add classifier() to config.peft")
    claims = {
        "config.data.labels": tuple(data.labels),
        "classifier's labels": next((head.labels for head in heads if head.labels), ()),
        "the base's own labels": () if heads else architecture.labels,
    }
    labels = _agreed(claims)
    own = labels if _unnamed(architecture.labels) and len(architecture.labels) == len(labels) else architecture.labels
    second = None if data.second is None else Template(prompt=data.second)
    return Classification(labels, own, second, architecture.types > 1, _asked(config, "virtual"))


def _require_positions(config: Any, most: int, kind: str) -> None:
    """Refuses rows that, behind what methods put before them, reach beyond the positions of the base."""
    ahead = _asked(config, "ahead")
    if config.data.length + ahead > most:
        behind = f", behind {ahead} positions of config.peft" if ahead else ""
        raise ValueError(f"config.data.length is {config.data.length}{behind}; the base has {kind} for {most} tokens")


def _asked(config: Any, what: str) -> int:
    """How many positions ("ahead") or virtual tokens ("virtual") the methods of the config ask for, before a row."""
    return sum(getattr(from_data(method.to_dict()), what, 0) for method in config.peft)


def _agreed(claims: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The labels that all who name any name; names outdo mere numbers, as many. () where nobody names any."""
    claims = {who: labels for who, labels in claims.items() if labels}
    named = {who: labels for who, labels in claims.items() if not _unnamed(labels)} or claims
    labels = next(iter(named.values()), ())
    if set(named.values()) - {labels} or any(len(numbered) != len(labels) for numbered in claims.values()):
        raise ValueError("labels disagree: " + "; ".join(f"{who} are {', '.join(found)}" for who, found in claims.items()))
    return labels


def _unnamed(labels: Sequence[str]) -> bool:
    """Whether labels only have numbers, as those of a checkpoint that does not know their names."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))
