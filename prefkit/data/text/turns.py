"""A response that is chat messages, as the chat template writes it.

The template is trusted with the form of thoughts, channels and calls, and with nothing else. Each
turn of the assistant's has to be written just as the template begins one, or it would be text that
sampling never shows; every word of the messages has to be in it; and a thought is opened once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from prefkit.data.pair import Front, Message, Rendered, Side
from prefkit.data.text.render import Renderer
from prefkit.data.text.template import PROBE, common_end, common_start, extra_fields
from prefkit.data.text.thoughts import closes_nothing, marks_after, state_of, texts_of
from prefkit.errors import RowError

# Variables by which templates switch thoughts on and off.
SWITCHES = (
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": False},
    {"thinking": True},
)


@dataclass(frozen=True)
class Written:
    """A response as text.

    Attributes:
        side: text, spans and masked characters; no messages are left.
        end: the id that ends it, or None.
        begins: characters of the text at which sampling would go on, after a tool's result.
    """

    side: Side
    end: int | None
    begins: tuple[int, ...] = ()


def by_template(
    front: Front, name: str, side: Side, rendered: Rendered, renderer: Renderer
) -> Written | None:
    """What the template writes; None where the one message's content says more than that.

    The template has to write the turn as it begins one, all of it, and its thought once. Where it
    does not (R1's writes no thoughts, although it opens one), what the model would write is the
    content itself.

    Raises:
        RowError: it does not, and the response is more than the content of one message.
    """
    turns = _Turns(front, name, rendered, list(side.messages), renderer)
    last = side.messages[-1]
    is_plain = len(side.messages) == 1 and not extra_fields(last)
    if is_plain and isinstance(last.get("content"), str) and not turns.is_faithful():
        return None
    turns.check()
    start = len(rendered.prompt)
    stop, end = turns.end()
    gaps = [(a - start, b - start) for (_, a), (b, _) in pairwise(turns.bounds)]
    masked = [
        gap
        for gap, roles in zip(gaps, turns.speakers_between(), strict=True)
        if side.masks_tools or roles != {"tool"}
    ]
    text = turns.whole[start:stop]
    side = replace(side, text=text, masked=tuple(masked), messages=())
    return Written(side, end, tuple(begun for _, begun in gaps))


class _Turns:
    """The assistant's turns of one response within the conversation as the template writes it.

    Attributes:
        whole: the conversation as text.
        bounds: where in it each turn of the assistant's begins and ends.
    """

    def __init__(
        self,
        front: Front,
        name: str,
        rendered: Rendered,
        answer: list[Message],
        renderer: Renderer,
    ) -> None:
        self.front, self.name, self.renderer = front, name, renderer
        self.opening, self.begins = rendered.opening, rendered.prompt
        self.before, self.answer = list(rendered.messages), answer
        self.whole = self._write([*self.before, *answer])
        self._bounds: list[tuple[int, int]] | None = None

    @property
    def bounds(self) -> list[tuple[int, int]]:
        if self._bounds is None:
            self._bounds = [
                self._bound(place)
                for place, message in enumerate(self.answer)
                if message["role"] == "assistant"
            ]
        return self._bounds

    def is_faithful(self) -> bool:
        """Whether a lone plain message is written as sampling would begin it, whole, and with one
        thought at most, that of the generation prompt included, which is closed."""
        if not self.whole.startswith(self.begins):
            return False
        text = self.whole[len(self.begins) :]
        if not all(piece in text for piece in texts_of(self.answer[0].get("content"))):
            return False
        return self._thought_problem(self.opening, text, is_last=True) is None

    def check(self) -> None:
        """Raises RowError for a turn that begins otherwise, lost words, a thought opened twice."""
        kept, conversation = self.renderer.kept, [*self.before, *self.answer]
        if not self.whole.startswith(self.begins):
            raise self._other_beginning(self.begins)
        places = [i for i, message in enumerate(self.answer) if message["role"] == "assistant"]
        ends = [*(begun for begun, _ in self.bounds[1:]), len(self.whole)]
        for place, (begun, ended), until in zip(places, self.bounds, ends, strict=True):
            own, rest = self.whole[begun:ended], self.whole[ended:until]
            at = len(self.before) + place
            kept.check_message(self.front, conversation, at, self.name, own, self.whole)
            for i, message in enumerate(self.answer[place + 1 :], start=at + 1):
                if message["role"] == "assistant":
                    break
                kept.check_message(self.front, conversation, i, self.name, rest, self.whole)
            problem = self._thought_problem(self.opening, own, is_last=place == places[-1])
            if problem is not None:
                remedy = "Write the thought in one place, the content or its own field, and close "
                remedy += "it; or set chat_template."
                raise RowError(self.front.source, self.front.row, self.name, problem, remedy)

    def speakers_between(self) -> list[set[str]]:
        """Who speaks between each two of the assistant's messages."""
        places = [i for i, message in enumerate(self.answer) if message["role"] == "assistant"]
        return [{m["role"] for m in self.answer[a + 1 : b]} for a, b in pairwise(places)]

    def end(self) -> tuple[int, int | None]:
        """Where the last turn's text stops, and the id that ends it (None where nothing shall)."""
        template, whole = self.renderer.template, self.whole
        tail, stripped = template.tail(), whole.rstrip()
        found = next((token for token in template.special if stripped.endswith(token)), None)
        if not self.answer[-1].get("tool_calls") and tail and whole.endswith(tail):
            mark = next((t for t, i in template.special.items() if i == template.end_of_turn()), "")
            stop = len(whole) - len(tail) + max(tail.find(mark), 0)
            end = template.end_of_turn()
        elif found is not None and len(stripped) - len(found) > self.bounds[-1][0]:
            stop, end = len(stripped) - len(found), template.special[found]
        else:
            stop, end = len(whole), template.end_of_turn()
        if not self.front.append_eos:
            return stop, None
        return stop, end if end is not None else self.renderer.end_id(self.front, is_chat=True)

    def _write(self, messages: Sequence[Message], **how: Any) -> str:
        return self.renderer.write(self.front, messages, self.name, **how)

    def _bound(self, place: int) -> tuple[int, int]:
        earlier = [*self.before, *self.answer[:place]]
        begins = self._write(earlier, begin=True) if place else self.begins
        if not self.whole.startswith(begins):
            raise self._other_beginning(begins)
        is_last = place + 1 == len(self.answer)
        return len(begins), len(self.whole) if is_last else self._turn_end(place, len(begins))

    def _turn_end(self, place: int, begun: int) -> int:
        """Where a turn ends that others follow: after what the template also writes where it is
        last. What follows the message's own words is what does not change when these do."""
        key = (bool(self.answer[place].get("tool_calls")), self.answer[place + 1]["role"])
        following = next(iter(texts_of(self.answer[place + 1].get("content"))), "")
        known = self.renderer.template.between.get(key)
        if known and following and (at := self.whole.find(known + following, begun)) >= 0:
            return at
        other, earlier = _changed(self.answer[place]), [*self.before, *self.answer[:place]]
        last = self._write([*earlier, self.answer[place]])
        tail = _unchanged(last, self._write([*earlier, other]))
        rest = self.answer[place + 1 :]
        here = _unchanged(self.whole, self._write([*earlier, other, *rest]))
        tail = here[: common_start(here, tail)]
        end = len(self.whole) - len(here) + len(self._with_mark(tail, here))
        if following and (at := self.whole.find(following, end)) >= 0:
            self.renderer.template.between[key] = self.whole[end:at]
        return end

    def _with_mark(self, tail: str, here: str) -> str:
        """What a turn ends with: up to its mark, or with the mark of the next one, which is what
        ends GLM's turns."""
        special, stripped = self.renderer.template.special, tail.rstrip()
        if any(stripped.endswith(token) for token in special):
            return stripped
        if any(token in tail for token in special):
            return tail
        rest = here[len(tail) :]
        return tail + next((token for token in special if rest.startswith(token)), "")

    def _thought_problem(self, opening: str, text: str, is_last: bool) -> str | None:
        """What is wrong with the thoughts of a turn, in words."""
        given, opened = state_of(opening), sum(m.opens for m in marks_after(opening, text))
        if opened + (given == "open") > 1 or (opened and given == "closed"):
            return "is written by the chat template with a thought that is opened twice"
        if closes_nothing(opening, text):
            return "is written by the chat template with a thought that is closed and not opened"
        ends = self.front.append_eos or not is_last
        if ends and given == "open" and state_of(opening + text) != "closed":
            return f"is an answer inside the thought that {opening.strip()[-40:]!r} opens"
        return None

    def _other_beginning(self, begins: str) -> RowError:
        """The template writes a turn otherwise than it begins one: what to change, tried out.

        Raises:
            RowError: a field that it does not read, the likely cause.
        """
        conversation = [*self.before, *self.answer]
        for place in range(len(self.before), len(conversation)):
            check = self.renderer.kept.check_fields
            check(self.front, conversation, place, self.name, "", self.whole)
        at, whole = common_start(self.whole, begins), self.whole
        problem = "is written by the chat template otherwise than sampling would begin it: "
        problem += f"{whole[max(at - 20, 0) : at + 30]!r} instead of {begins[max(at - 20, 0) :]!r}"
        remedy = "Write it as one message with all of it in the content, or set chat_template."
        if len(self.answer) > 1 and self.answer[0]["role"] == "assistant":
            remedy = "Move the turns before the last one into the prompt, or set chat_template."
        for switch in SWITCHES:
            if self._agrees(switch):
                remedy = f"Say chat_template_kwargs: {words_of(switch)}, with which the two agree."
                break
        return RowError(self.front.source, self.front.row, self.name, problem, remedy)

    def _agrees(self, switch: dict[str, Any]) -> bool:
        """Whether every turn is written as it is begun, with another variable."""
        how: dict[str, Any] = {"variables": {**self.front.variables, **switch}}
        try:
            whole = self._write([*self.before, *self.answer], **how)
            return all(
                whole.startswith(self._write([*self.before, *self.answer[:i]], begin=True, **how))
                for i, message in enumerate(self.answer)
                if message["role"] == "assistant"
            )
        except RowError:
            return False


def _unchanged(text: str, changed: str) -> str:
    return text[len(text) - common_end(text, changed) :]


def _changed(message: Message) -> Message:
    """The message with other words at its end; a call's name stays, as its result repeats it."""
    if not message.get("tool_calls"):
        return {**message, "content": f"{message.get('content') or ''} {PROBE}"}
    calls = [dict(call) for call in message["tool_calls"]]
    function = calls[-1].get("function", calls[-1])
    is_text = isinstance(function.get("arguments"), str)
    probe: Any = '{"p": "' + PROBE + '"}' if is_text else {"p": PROBE}
    changed = {**function, "arguments": probe}
    calls[-1] = {**calls[-1], "function": changed} if "function" in calls[-1] else changed
    return {**message, "tool_calls": calls}


def words_of(variables: dict[str, Any]) -> str:
    """Variables as a config writes them."""
    return json.dumps(variables)
