"""How a turn of the assistant's starts: what is begun of it, and what a template puts before it.

Text that goes on where a turn was begun is taken as it is. So what would make it another text than
sampling shows is looked for here: a thought inside a thought, a header that is still open, the
begun words said again.
"""

import json
import re
from collections.abc import Callable

from prefkit.data.pair import Front, Rendered
from prefkit.data.text.template import PROBE, say_once
from prefkit.data.text.thoughts import closes_nothing, marks_after, marks_of, state_of
from prefkit.errors import RowError

_TOLD = 12  # characters from which a beginning that is said twice is no chance
_CONTROL = re.compile(r"<\|\w+\|>")  # gpt-oss: <|channel|>final<|message|> stands before the words


def check_begun_thought(front: Front, opening: str, said: str) -> None:
    """A begun turn thinks once, and within what the generation prompt leaves it.

    Raises:
        RowError: it opens a second thought, or closes one that is not open.
    """
    marks, given = marks_after(opening, said), state_of(opening)
    if sum(mark.opens for mark in marks) + (given != "none") > 1:
        problem = f"ends in a begun turn that opens another thought than {opening.strip()[-40:]!r}"
    elif closes_nothing(opening, said):
        problem = "ends in a begun turn that closes a thought which is not open"
    else:
        return
    remedy = "Take the mark out, or set the variable of the template that leaves thoughts open "
    remedy += "(chat_template_kwargs)."
    raise RowError(front.source, front.row, "prompt", problem, remedy)


class TurnStarts:
    """What a template puts between its generation prompt and the words of a plain message.

    Args:
        write: (front, messages) -> text, as `Renderer.write`.
    """

    def __init__(self, write: Callable[..., str]) -> None:
        self._write = write
        self._between: dict[str, str] = {}  # by the row's variables
        self._repeated = False

    def check_header(self, front: Front, name: str, rendered: Rendered, text: str) -> None:
        """Raises RowError for words right after a generation prompt that leaves a header open."""
        between = self.between(front, rendered)
        if not _CONTROL.search(between) or text.lstrip().startswith("<|"):
            return
        problem = f"would stand in the turn's header: the chat template writes {between!r} before "
        problem += "the words of a turn"
        remedy = "Write it as a message, or begin it with that."
        raise RowError(front.source, front.row, name, problem, remedy)

    def compare(self, front: Front, name: str, rendered: Rendered, text: str) -> None:
        """A response that is a string and begins the turn: strings are taken as they are, so what
        the template would put before it (Qwen3 an empty thought) is said once.

        Raises:
            RowError: it would stand in the turn's header.
        """
        self.check_header(front, name, rendered, text)
        between = self.between(front, rendered)
        if between.strip() and not marks_of(text) and not text.startswith(between):
            say_once(
                "Responses that are strings follow the generation prompt as they are. Written as "
                f"messages, they would follow {between!r}, which the chat template puts before "
                "them."
            )

    def between(self, front: Front, rendered: Rendered) -> str:
        """ "" also where the template writes such a turn otherwise than it begins one."""
        key = json.dumps([front.variables, bool(front.tools)], sort_keys=True, default=str)
        if key not in self._between:
            said = {"role": "assistant", "content": PROBE}
            try:
                whole = self._write(front, [*rendered.messages, said])
            except RowError:
                whole = ""
            before, found, _ = whole[rendered.generation :].partition(PROBE)
            is_begun = found and whole.startswith(rendered.prompt[: rendered.generation])
            self._between[key] = before if is_begun else ""
        return self._between[key]

    def told_again(self, front: Front, rendered: Rendered, text: str) -> None:
        """Says once if a response says again what the row has begun, as a whole turn would."""
        said = rendered.prompt[rendered.generation :] if rendered.is_chat else ""
        begun = (said + rendered.prefix).strip()
        if self._repeated or len(begun) < _TOLD or not text.lstrip().startswith(begun):
            return
        self._repeated = True
        say_once(
            f"{front.source}: row {front.row}: the response says again what the row has begun, "
            f"{begun[:40]!r}. It goes on where the prompt and the prefix end, so those words are "
            "trained on twice. Take them out of it, if that is not meant."
        )
