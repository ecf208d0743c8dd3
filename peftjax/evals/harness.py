"""peftjax models under EleutherAI's lm-evaluation-harness (Gao et al., 2021; extra `evals`).

    lm = as_lm(HarnessModel(model, params, tokenizer))
    lm_eval.simple_evaluate(lm, tasks=["mine"], task_manager=...)               or evaluate(lm, ["mine"], tasks_dir="tasks")

`HarnessModel` answers the harness's three questions by its conventions, as its Hugging Face backend does: white space at the end of a
context belongs to the continuation; context and continuation are cut out of one encoding; the tokens that the tokenizer puts around a
text stand around it, unless it begins with them; an empty context is the token that begins a text; what is too long is cut on the left.
One thing differs: an id that the tokenizer does not know (many bases have more rows in their embedding) is never generated.
It needs no harness; `as_lm` makes it the class that the harness asks for.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from peftjax.evals.likelihood import log_likelihoods, rolling_windows
from peftjax.hints import did_you_mean
from peftjax.models.decoder import Decoder
from peftjax.models.generate import generate_ids
from peftjax.models.sampling import Sampling
from peftjax.models.stop import StopStrings
from peftjax.models.tokenizer import Tokenizer

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one number, the first that is there counts
DRAWS = ("top_k", "top_p", "min_p")  # options that say something only where a request wants draws


@dataclasses.dataclass(eq=False)
class HarnessModel:
    """Answers to requests, objects whose `args` are the harness's.

    Attributes:
        model, params, tokenizer: what is asked; `params` may hold adapters.
        batch_size: rows a batch.
        max_length: tokens that the model may see; by default what it was trained for.
        max_gen_toks: new tokens at most, where a request does not say.
        seed: of draws, where a request wants them.
        cache_hook: of the harness; is told each answer as it comes.
    """

    model: Decoder
    params: Any
    tokenizer: Tokenizer
    batch_size: int = 8
    max_length: int | None = None
    max_gen_toks: int = 256
    seed: int = 0
    cache_hook: Any = None

    def __post_init__(self):
        self.max_length = self.max_length or self.model.config.max_length

    @property
    def prefix_id(self) -> int:
        """What stands where a context is empty: the token that begins a text, or else the one that ends it."""
        return self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` uses, for the harness's records."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without `add_generation_prompt` it ends within the last message, for the model to go on."""
        text = self.tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def encode(self, text: str) -> list[int]:
        """Ids of a text with what the tokenizer puts around it; control texts within are control tokens, as chat templates write them."""
        begins = text.startswith(self.tokenizer.decode([self.prefix_id], skip_special=False))
        return self.tokenizer.encode_rendered(text, special=not begins)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation."""
        if not context:
            ids = self.tokenizer.encode_rendered(continuation, special=False)
            return ([self.prefix_id], ids) if ids[:1] != [self.prefix_id] else (ids[:1], ids[1:])
        kept = context.rstrip()
        whole, context_ids = self.encode(context + continuation), self.encode(kept)
        return context_ids, whole[len(context_ids):]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding would say it) for each request (context, continuation)."""
        pairs = [self.encode_pair(*request.args) for request in requests]

        def tell(found):
            for number, answer in found.items():
                self._remember("loglikelihood", requests[number], answer)

        return self._scored(pairs, tell)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each request's whole text (text,) in nats, in windows of `max_length`."""
        windows = [rolling_windows(self.encode(request.args[0]), self.prefix_id, self.max_length) for request in requests]
        scores = iter(self._scored([window for text in windows for window in text]))
        answers = [sum(next(scores)[0] for _ in text) for text in windows]
        for request, answer in zip(requests, answers, strict=True):
            self._remember("loglikelihood_rolling", request, answer)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows the context of each request (context, options), up to a stop string.

        Options: `until`, a stop string or several; `max_gen_toks`; `do_sample` and what `Sampling` has besides the seed (`temperature`, 1
        where draws are wanted and none is given, `top_k`, `top_p`, `min_p`, `repetition_penalty`). Raises ValueError for others that would
        change what is said.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        answers: dict[int, str] = {}
        for options, numbers in groups.items():
            until, max_new, sampling = self._options(json.loads(options))
            space = self.max_length - max_new
            if space < 1:
                raise ValueError(f"max_gen_toks is {max_new}, the model sees {self.max_length} tokens: there is no room for a context")
            prompts = {i: (self.encode(requests[i].args[0]) or [self.prefix_id])[-space:] for i in numbers}
            order = sorted(numbers, key=lambda i: -len(prompts[i]))
            for start in range(0, len(order), self.batch_size):
                batch = order[start:start + self.batch_size]
                filling = [batch[-1]] * (self.batch_size - len(batch) if len(order) > self.batch_size else 0)  # one compiled shape
                texts = self._generate([prompts[i] for i in batch + filling], until, max_new, sampling, start)
                for i, text in zip(batch, texts, strict=False):
                    answers[i] = text
                    self._remember("generate_until", requests[i], text)
        return [answers[number] for number in range(len(requests))]

    def _scored(self, pairs, on_batch=None) -> list[tuple[float, bool]]:
        return log_likelihoods(
            self.model, self.params, pairs, batch_size=self.batch_size, max_length=self.max_length, pad_id=self.tokenizer.pad_id,
            on_batch=on_batch,
        )

    def _options(self, options: dict) -> tuple[list[str], int, Sampling]:
        """(stop strings, new tokens at most, how to choose) of a request's options."""
        until = options.pop("until", None) or []
        given = [options.pop(name) for name in LIMITS if name in options]
        temperature, sampled = options.pop("temperature", 0.0), options.pop("do_sample", None)
        if sampled and not temperature:
            temperature = 1.0
        chosen = {name: value for name in (*DRAWS, "repetition_penalty") if (value := options.pop(name, None)) is not None}
        if sampled is False or not temperature:
            temperature, chosen = 0.0, {name: value for name, value in chosen.items() if name not in DRAWS}
        strange = {name: value for name, value in options.items() if (name, value) != ("num_beams", 1)}
        if strange:
            raise ValueError(
                f"generation options {strange} are not supported; there are until, max_gen_toks, do_sample, temperature, "
                f"{', '.join(DRAWS)} and repetition_penalty"
            )
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        sampling = Sampling(temperature=float(temperature), seed=self.seed, **chosen)
        return stops, int(given[0]) if given else self.max_gen_toks, sampling

    def _generate(self, prompts, until: list[str], max_new: int, sampling: Sampling, number: int) -> list[str]:
        """Texts that follow prompts of ids, until each row has a stop string, an end token or `max_new` tokens."""
        stops = StopStrings(self.tokenizer, until)
        rows = generate_ids(
            self.model, self.params, prompts, self.tokenizer.eos_id, max_new=max_new, pad_id=self.tokenizer.pad_id,
            sampling=dataclasses.replace(sampling, seed=sampling.seed + number), vocab=self.tokenizer.vocab_size, ends=stops.length,
        )
        return [stops.cut(self.tokenizer.decode(row)) for row in rows]

    def _remember(self, kind: str, request: Any, answer: Any) -> None:
        if self.cache_hook is not None:
            self.cache_hook.add_partial(kind, request.args, answer)


def as_lm(answering: HarnessModel) -> Any:
    """The same as an `lm_eval.api.model.LM`.

    Raises:
        ImportError: the harness is not installed; names the extra.
    """
    harness = _harness()

    class PeftjaxLM(HarnessModel, harness.api.model.LM):
        pass

    lm = PeftjaxLM(**{field.name: getattr(answering, field.name) for field in dataclasses.fields(HarnessModel)})
    harness.api.model.LM.__init__(lm)
    return lm


def evaluate(
    answering: Any, tasks: Sequence[str], *, tasks_dir: str | None = None, fewshot: int | None = None, limit: int | None = None,
    chat: bool = False, cache: str | None = None,
) -> dict[str, Any]:
    """The harness's results for its tasks, or for those described by YAML files in `tasks_dir`.

    Args:
        answering: a `HarnessModel`, or any `lm_eval.api.model.LM`.
        fewshot: examples before each question; by default what the task says.
        limit: questions of each task; by default all.
        chat: whether questions are put through the chat template.
        cache: a file in which answers are kept, so that an interrupted evaluation goes on.

    Raises:
        ImportError: the harness is not installed; names the extra.
        ValueError: a task that is not there, with the nearest names.
    """
    harness = _harness()
    manager = harness.tasks.TaskManager(include_path=tasks_dir)
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            where = f" with those of {tasks_dir}" if tasks_dir else ""
            raise ValueError(f"no task {task!r} among the harness's {len(known)}{where}{did_you_mean(task, known)}")
    lm = as_lm(answering) if isinstance(answering, HarnessModel) and not isinstance(answering, harness.api.model.LM) else answering
    return harness.simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, num_fewshot=fewshot, limit=limit, apply_chat_template=chat, use_cache=cache,
        bootstrap_iters=0, log_samples=True,
    )


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.api.model
        import lm_eval.tasks
    except ImportError as error:
        raise ImportError("the evaluation harness is not installed: pip install 'peftjax[evals]'") from error
    return lm_eval
