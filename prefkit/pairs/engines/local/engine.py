"""The local engine: a model on this machine, sampled in batches by transformers' `generate`.

A batch's distinct prompts are read once and their keys and values copied to the samples drawn from
them; rows that have ended leave the batch, and `generate` goes on with the others. Both save what
a plain call spends on equal prompts and on finished rows, and change nothing in what is sampled.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from prefkit.data.text.render import Renderer, TokenizeOptions
from prefkit.errors import ConfigError, PrefkitError
from prefkit.model.loading import positions_of
from prefkit.pairs.engines.base import SHORTENED, Completion, Request, cut_at_stop
from prefkit.pairs.engines.local.loading import end_ids_of, load_model, load_tokenizer
from prefkit.pairs.engines.local.sampling import Row, RowEnds, RowSampler, bare, draws_of


class LocalEngine:
    """Samples with transformers on this machine.

    Args:
        model: folder or Hub name, of a model or of a PEFT adapter; or a loaded causal model.
        tokenizer: its tokenizer, or folder or Hub name of it; None = the model's.
        dtype: "auto" = as saved, but float32 on a CPU, where half precision is slower; or a name.
        batch_size: texts written at a time.
        device: "cuda", "cuda:1", "cpu", …; None = the GPU if there is one.
        attn_implementation: as transformers takes it; None = its choice.
        adapter: folder or Hub name of a PEFT adapter to put on the model.
        end_ids: ids that end a text, beside those of the model's generation config, its tokenizer
            and the end of a turn in its chat template.

    The model's own sampling settings (top_k, repetition_penalty, … of its generation config) are
    not used: what is sampled is the model's distribution under the request's settings alone.
    Threads may share an engine: one batch is written at a time, so that there is one cache only.

    Raises:
        ConfigError: the model or adapter cannot be loaded.
    """

    lanes = 1
    fixed_batches = True

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        dtype: str = "auto",
        batch_size: int = 32,
        device: str | None = None,
        attn_implementation: str | None = None,
        adapter: str | None = None,
        end_ids: Collection[int] = (),
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
        named = isinstance(model, str)
        if not named and tokenizer is None:
            raise ConfigError("A loaded model needs its tokenizer: give tokenizer.")
        if tokenizer is None or isinstance(tokenizer, str):
            tokenizer = load_tokenizer(tokenizer or model, adapter)
        renderer = Renderer(tokenizer, TokenizeOptions())  # refuses slow tokenizers
        self.tokenizer, self._bos = tokenizer, renderer.bos
        self.name = f"transformers: {model if named else model.config.name_or_path}"
        if adapter:
            self.name += f" with adapter {adapter}"
        self.batch_size = batch_size
        self.window = 2 * batch_size  # questions whose requests fill batches, stage by stage
        self._model = (
            load_model(model, adapter, dtype, device, attn_implementation) if named else model
        )
        self._ends = {*end_ids_of(self._model, renderer), *end_ids}
        text_config = self._model.config.get_text_config()
        self.positions = positions_of(text_config)
        self.notes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._prompt_ids = lru_cache(maxsize=8192)(self._tokenise)

    def fits(self, request: Request) -> bool:
        """Whether the prompt is shorter than the model's positions.

        Raises:
            ConfigError: messages that the model's chat template does not take.
        """
        return self.positions is None or len(self._ids(request)) < self.positions

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Batches of prompts of like length, longest first, equal prompts beside each other.

        Raises:
            ConfigError: a prompt that the model cannot read; names the request.
        """
        sizes = {request.key: len(self._check(request)) for request in requests}
        order = sorted(requests, key=lambda r: (-sizes[r.key], r.text, r.key))
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def sample(self, batch: Sequence[Request]) -> Iterator[Completion]:
        """Completions of a batch, once all of it is written.

        A thread that asks while another's batch is being written waits for the whole of that.

        Raises:
            ConfigError: a prompt that the model cannot read; names the request.
            PrefkitError: out of memory, or logits that are not numbers.
        """
        rows = [self._row(request) for request in batch]
        with self._lock:  # not while the completions are used, which may be for ever
            if self._model is None:
                raise PrefkitError("The engine is closed.")
            short = sum(row.limit < row.request.max_tokens for row in rows)
            if short:
                self.notes[SHORTENED] += short
            with bare(self._model):
                self._write_all(rows)
        yield from map(self._completion, rows)

    def close(self) -> None:
        """Frees the model."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- requests -----------------------------------------------------------------------------

    def _check(self, request: Request) -> list[int]:
        """A request's prompt ids."""
        if request.max_tokens < 1:
            raise ConfigError(f"Request {request.key}: max_tokens is {request.max_tokens}.")
        if request.temperature < 0 or not 0 < request.top_p <= 1:
            raise ConfigError(
                f"Request {request.key}: temperature {request.temperature} and top_p "
                f"{request.top_p}; give at least 0, and above 0 up to 1."
            )
        ids = self._ids(request)
        if not ids:
            raise ConfigError(f"Request {request.key}: its text is empty. Give a prompt.")
        if self.positions is not None and len(ids) >= self.positions:
            raise ConfigError(
                f"Request {request.key}: its prompt has {len(ids)} tokens, and the model reads at "
                f"most {self.positions}, what it writes included. Leave the question out, or take "
                "a model with a longer context."
            )
        return ids

    def _ids(self, request: Request) -> list[int]:
        return self._prompt_ids(*self._text(request))

    def _text(self, request: Request) -> tuple[str, bool]:
        """The text that the model reads, and whether its special tokens are in it."""
        if not request.messages:
            return request.text, request.is_chat
        try:
            text = self.tokenizer.apply_chat_template(
                list(request.messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like
            raise ConfigError(
                f"Request {request.key} holds messages that the chat template of "
                f"{self.tokenizer.name_or_path} does not take ({error}). Choose an instruction-"
                "tuned model with a chat template."
            ) from error
        return text, True

    def _tokenise(self, text: str, is_chat: bool) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if is_chat else [*self._bos, *ids]

    def _row(self, request: Request) -> Row:
        prompt = self._check(request)
        limit = request.max_tokens
        if self.positions is not None:
            limit = min(limit, self.positions - len(prompt))
        draws = draws_of(request.seed, limit if request.temperature > 0 else 0)
        return Row(request, prompt, limit, draws)

    def _completion(self, row: Row) -> Completion:
        ended = row.ended
        ids = row.written[:-1] if ended == "end" else row.written
        text, stopped = cut_at_stop(self._text_of(row.prompt, ids), row.request.stop)
        finish: Any = "stop" if stopped else ended
        return Completion(key=row.request.key, text=text, finish=finish, tokens=len(row.written))

    def _text_of(self, prompt: list[int], ids: list[int]) -> str:
        """What ids add to the prompt's text: read behind it, since a tokenizer may drop the space
        that a text begins with."""
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        before = self.tokenizer.decode(prompt, **how)
        both = self.tokenizer.decode([*prompt, *ids], **how)
        return both[len(before) :] if both.startswith(before) else self.tokenizer.decode(ids, **how)

    # -- the model ----------------------------------------------------------------------------

    def _write_all(self, rows: list[Row]) -> None:
        """Writes every row to its end; those that have ended leave the batch."""
        cache = self._read_prompts(rows)
        while rows:
            cache = self._write(rows, cache)
            keep = [place for place, row in enumerate(rows) if not row.ended]
            if keep and len(keep) < len(rows):
                cache.batch_select_indices(torch.tensor(keep, device=self._model.device))
            rows = [rows[place] for place in keep]

    def _read_prompts(self, rows: list[Row]) -> Any:
        """Keys and values of all prompts but for their last token; None where that saves nothing.

        Each distinct prompt is read once and its part of the cache copied to its rows.
        """
        places: dict[tuple[int, ...], int] = {}
        index = [places.setdefault(tuple(row.prompt), len(places)) for row in rows]
        if len(places) == len(rows) or min(map(len, places)) < 2:
            return None
        ids, mask = self._padded([list(prompt) for prompt in places])
        cache = self._generate(ids[:, :-1], mask[:, :-1], 1).past_key_values
        if not _selectable(cache):
            return None
        cache.batch_select_indices(torch.tensor(index, device=self._model.device))
        return cache

    def _write(self, rows: list[Row], cache: Any) -> Any:
        """Continues the rows until some have ended; returns their keys and values."""
        width = 0 if cache is None else cache.get_seq_length() + 1
        ids, mask = self._padded([row.prompt + row.written for row in rows], width)
        most = max(row.limit - len(row.written) for row in rows)
        if self.positions is not None:  # no row, ended or not, is fed past the model's positions
            lengths = [len(row.prompt) + len(row.written) for row in rows]
            most = min(most, *(self.positions - length for length in lengths))
        sampler = RowSampler(rows, ids.shape[1], ids.device)
        ends = RowEnds(rows, self._ends, self.tokenizer, leave_early=_selectable(cache))
        done = self._generate(
            ids,
            mask,
            most,
            past_key_values=cache,
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([ends]),
        )
        return done.past_key_values

    def _padded(self, rows: list[list[int]], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, (rows, width), padded on the left; width 0 = the longest row's."""
        width = width or max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :] = torch.tensor(row)
            mask[place, width - len(row) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, most: int, **more: Any) -> Any:
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            pad_token_id=0,  # `RowEnds` ends rows, so nothing is ever padded with it
            use_cache=True,
            return_dict_in_generate=True,
        )
        try:
            return self._model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, **more
            )
        except torch.OutOfMemoryError as error:
            raise PrefkitError(
                f"Out of memory with {len(ids)} texts of up to {ids.shape[1] + most} tokens at a "
                "time. Lower batch_size or max_tokens."
            ) from error


def _selectable(cache: Any) -> bool:
    """Whether rows can be taken out of a cache (not those of recurrent layers)."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)
