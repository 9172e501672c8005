"""What a pipeline needs beside its question: how to ask, how to grade, how to cut into steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from prefkit.data.pair import Front, Message
from prefkit.data.text.render import TokenizeOptions
from prefkit.data.text.thoughts import is_thinking, opening_tag
from prefkit.errors import PrefkitError
from prefkit.pairs.asking import Asking
from prefkit.pairs.code.blocks import split_code_steps
from prefkit.pairs.engines.base import Request, seed_of
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.questions import Question
from prefkit.pairs.steps import split_steps

if TYPE_CHECKING:
    from prefkit.data.text.render import Renderer
    from prefkit.pairs.code.interpreter import Interpreter
    from prefkit.pairs.grading.grader import Grader
    from prefkit.pairs.grading.verdicts import Grade


class StepReader(Protocol):
    """Judges the steps of solutions: `prefkit.pairs.pipelines.finding.Finder`."""

    filter: str

    def first_wrong(
        self, question: Question, context: "Context", outcome: Outcome, attempt: Attempt
    ) -> Asking[int | None]:
        """The 0-based first wrong step of a wrong solution, or None."""
        ...

    def fault(
        self,
        question: Question,
        context: "Context",
        outcome: Outcome,
        steps: Sequence[str],
        name: str,
    ) -> Asking[str | None]:
        """Why a solution with a right answer is left out; None = it is not."""
        ...


class Context:
    """How a build asks and grades.

    Args:
        options: resolved options.
        grader: compares final answers.
        renderer: writes prompts in chat form; None where raw text is sent to a server.
        finder: judges steps.
        interpreter: runs code steps; None = nobody does.
    """

    def __init__(
        self,
        options: BuildFields,
        grader: "Grader",
        renderer: "Renderer | None",
        finder: StepReader,
        interpreter: "Interpreter | None" = None,
    ) -> None:
        self.options, self.grader, self.renderer = options, grader, renderer
        self.finder, self.interpreter = finder, interpreter

    def request(
        self,
        question: Question,
        stage: str,
        prefix: str,
        *,
        temperature: float,
        top_p: float | None = None,
        max_tokens: int | None = None,
    ) -> Request:
        """One continuation of `prefix` of a solution to the question.

        Args:
            stage: what it is for, with a number: unique for this question ("solution/3").
            top_p, max_tokens: None = the build's.
        """
        text, is_chat = self._render(question, prefix)
        key = f"{question.id}/{stage}"
        options = self.options
        return Request(
            key=key,
            text=text,
            is_chat=is_chat,
            temperature=temperature,
            top_p=options.top_p or 1.0 if top_p is None else top_p,
            max_tokens=max_tokens or options.max_tokens,
            stop=tuple(options.stop),
            seed=seed_of(options.seed, key),
        )

    def judge_request(self, question: Question, stage: str, text: str) -> Request:
        """One greedy answer of the judge, which sees `text` as a user's message."""
        key = f"{question.id}/{stage}/judge"
        return Request(
            key=key,
            messages=({"role": "user", "content": text},),
            role="judge",
            temperature=0.0,
            max_tokens=self.options.judge_max_tokens,
            seed=seed_of(self.options.seed, key),
        )

    def _render(self, question: Question, prefix: str) -> tuple[str, bool]:
        """Exactly the text that training puts before a response."""
        if self.renderer is None:
            assert isinstance(question.prompt, str)
            text = self.options.prompt_template.replace("{prompt}", question.prompt)
            return text + self.options.joiner + prefix, False
        front = Front(
            prompt=question.prompt,
            prefix=prefix,
            append_eos=True,
            source=question.source,
            row=question.row,
        )
        rendered = self.renderer.render(front)
        return rendered.prompt + rendered.prefix, rendered.is_chat

    def _open_thought(self, question: Question) -> str:
        """The tag of a thought that the prompt leaves open, "" where there is none."""
        begun = question.prompt[-1] if not isinstance(question.prompt, str) else {"role": "user"}
        if begun["role"] == "assistant" and is_thinking(str(begun.get("content") or "")):
            return "<think>"
        return opening_tag(self._render(question, "")[0])

    def messages(self, question: Question) -> list[Message]:
        """The question as the messages that the chat template was given."""
        if not isinstance(question.prompt, str):
            return list(question.prompt)
        text = self.options.prompt_template.replace("{prompt}", question.prompt)
        system = self.options.system_prompt
        said: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        return [*said, {"role": "user", "content": text}]

    def split(self, text: str) -> tuple[str, ...]:
        """A solution's steps, in the build's style; a code block and its output are one step."""
        if self.interpreter is not None:
            return tuple(split_code_steps(text, self.options.steps))
        return tuple(split_steps(text, self.options.steps))

    def grade(self, question: Question, texts: Sequence[str], outcome: Outcome) -> "list[Grade]":
        """The verdicts on solutions; those that could not be had are counted in the outcome, by
        their reasons. Where the prompt opens a thought, the solutions begin in it.

        Raises:
            PrefkitError: the user's grading function failed on an answer.
        """
        from prefkit.pairs.grading.verdicts import UNDECIDED

        opened = self._open_thought(question)
        grades = self.grader.grade_many([(opened + text, question.answer) for text in texts])
        for grade in grades:
            if grade.how == "error" and self.options.grader is not None:
                raise PrefkitError(
                    f"grader {self.options.grader} failed on the answer "
                    f"{(grade.answer or '')[:80]!r} to {question.source}, row {question.row}: "
                    f"{grade.note}. Repair it and give the same command again: what was sampled is "
                    "kept."
                )
            if not grade.decided:
                outcome.drops[f"answers: {UNDECIDED[grade.how]}"] += 1
        return grades


def tokenize_options(options: BuildFields) -> TokenizeOptions:
    """How prompts are written, as training reads it."""
    return TokenizeOptions(**options.prompt_options())
