"""A whole build: from questions to a file of pairs and a manifest.

    from prefkit.pairs.run.build import build

    build("step-dpo", "questions.jsonl", model="MODEL", out="pairs")    # → pairs/pairs.jsonl

`prefkit build` calls the same. A folder that holds the same build, killed at whatever moment, is
taken up where it stands. The last stage of cdpo, which trains two models and weighs the pairs, is
handed in: `build("cdpo", …, last_stage=prefkit.critical_tokens.weigh)`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefkit.errors import ConfigError, ModelError, PrefkitError
from prefkit.files.atomic import check_writable, write_text
from prefkit.files.journal import read_lines
from prefkit.pairs.fields import EVALUATE, BuildFields
from prefkit.pairs.localise.judge import CUT
from prefkit.pairs.pipelines.cdpo import NEGATIVE, POSITIVE
from prefkit.pairs.pipelines.choosing import chosen
from prefkit.pairs.pipelines.outcome import LOCALISED, REMOVED
from prefkit.pairs.questions import Questions, read_questions
from prefkit.pairs.run.manifest import Manifest
from prefkit.pairs.run.options import check_method, resolved
from prefkit.pairs.run.shards import join, missing
from prefkit.pairs.run.verdicts import FILE as VERDICTS
from prefkit.pairs.run.verdicts import Drawn, as_text, drawn

PAIRS, SOLUTIONS, TRAIN = "pairs.jsonl", "solutions.jsonl", "train.yaml"
Row = dict[str, Any]
# (pairs, solutions for both models by name, options, folder of the build) → (pairs, with their
# weights; what the manifest says of the stage)
LastStage = Callable[
    [list[Row], Mapping[str, list[Row]], BuildFields, Path], tuple[list[Row], dict[str, Any]]
]


@dataclass(frozen=True)
class BuildResult:
    """What a build left.

    Attributes:
        rows: the file of rows: pairs, or an evaluation's solutions.
        count: how many pairs or solutions it holds.
        manifest: the manifest's content.
        verdicts: up to ten verdicts on steps, to be looked at, of one kind.
    """

    rows: Path
    count: int
    manifest: dict[str, Any]
    verdicts: Drawn | None = None


def build(
    method: str,
    questions: str,
    *,
    model: str,
    out: str,
    last_stage: LastStage | None = None,
    **options: Any,
) -> BuildResult:
    """Builds preference pairs from questions and a model's own mistakes.

    Args:
        method: "dpo", "step-dpo", "scdpo" or "cdpo".
        questions: file, folder or dataset (`questions.read_questions`).
        model: folder or name of the model that samples.
        out: folder of the result.
        last_stage: of cdpo: `prefkit.critical_tokens.weigh`; needed unless `weigh` is False or
            only a shard is built.
        options: any other field of `BuildFields`.

    Returns:
        The file of pairs and the manifest.

    Raises:
        ConfigError: an option that is wrong, or belongs to another method.
        RowError: a question that cannot be read.
        PrefkitError: the model or the server gave up, or not one pair came out.
    """
    check_method(method)
    given = {"questions": questions, "model": model, "out": out, **options}
    return run(method, resolved(method, given), last_stage)


def evaluate(questions: str, *, model: str, out: str, **options: Any) -> dict[str, Any]:
    """Lets a model solve questions and grades what it writes; greedy unless told otherwise.

    Args:
        questions, model, out, options: as `build` takes them.

    Returns:
        {"accuracy", "interval", "wrong", "undecided", "solved"}, see
        `prefkit.pairs.pipelines.evaluate.summary`.

    Raises:
        PrefkitError: as `build` does.
    """
    given = {"questions": questions, "model": model, "out": out, **options}
    return dict(run(EVALUATE, resolved(EVALUATE, given)).manifest["evaluation"])


def run(method: str, options: BuildFields, last_stage: LastStage | None = None) -> BuildResult:
    """Builds with resolved options; see `build`."""
    check_models(options, method)
    if is_weighed(options, method) and last_stage is None:
        raise ConfigError(
            "cdpo trains two models at its end. Give last_stage=prefkit.critical_tokens.weigh, or "
            "say weigh=False to stop after the selection."
        )
    questions = _read(options)
    folder = Path(options.out)
    check_writable(folder, "out")
    with ExitStack() as stack:
        manifest = stack.enter_context(closing(Manifest(folder, method, options, questions)))
        if not manifest.is_done:
            names = [question.id for question in questions]
            if options.join:
                join(folder, manifest, options.join, names)
            elif missing(folder, names):
                from prefkit.pairs.run.sampling import sample  # torch and transformers

                sample(method, options, questions, manifest, stack)
            else:
                manifest.begin("none: nothing was left to sample")
            _finish(method, options, folder, manifest, questions, last_stage)
    name = SOLUTIONS if method == EVALUATE else PAIRS
    verdicts = None
    if set(chosen(vars(options), method)) != {"none"}:
        kind = LOCALISED if method == "step-dpo" else REMOVED
        verdicts = drawn(_outcomes(folder, questions), kind, options.seed)
    count = manifest.content.get("pairs", manifest.content["rows"])
    return BuildResult(folder / name, count, manifest.content, verdicts)


def is_weighed(options: BuildFields, method: str) -> bool:
    """Whether a build ends with the weights of its tokens: cdpo's, of all questions."""
    return method == "cdpo" and options.weigh and options.shard is None


def check_models(options: BuildFields, method: str) -> None:
    """Refuses models that are not there, before anything else is done.

    Raises:
        ModelError: a folder that is missing or holds no model.
        ConfigError: cdpo by a server, with a `model` that cannot be trained here.
    """
    from prefkit.model.loading import check_model_folder, load_config

    if options.server is None:
        check_model_folder("model", options.model, adapters=True)
    if options.judge_model and options.judge_server is None:
        check_model_folder("judge_model", options.judge_model, adapters=True)
    if is_weighed(options, method) and options.server:
        try:
            load_config(options.model)
        except ModelError as error:
            raise ConfigError(
                f"cdpo trains two models from `model`, which cannot be loaded here ({error}) Name "
                "its folder or Hub name as model, its name on the server as server_model; or say "
                "weigh: false to stop after the selection."
            ) from error


def _read(options: BuildFields) -> Questions:
    return read_questions(
        options.questions,
        prompt_field=options.prompt_field,
        answer_field=options.answer_field,
        solution_field=options.solution_field,
        columns=options.columns,  # type: ignore[arg-type]
        split=options.split,
        shard=options.shard,
        max_questions=options.max_questions,
    )


def _finish(
    method: str,
    options: BuildFields,
    folder: Path,
    manifest: Manifest,
    questions: Questions,
    last_stage: LastStage | None,
) -> None:
    """The rows in the order of the questions, written at once; for cdpo with their weights."""
    ordered = _outcomes(folder, questions)
    rows = [row for outcome in ordered for row in outcome["rows"]]
    more: dict[str, Any] = {}
    if not rows:
        raise PrefkitError(
            f"{folder}: not one pair came out of {len(questions)} questions. Why: "
            f"{_why(ordered)}. Take other questions, more samples, or another temperature"
            f"{_more_tokens(ordered, options)}{_more_for_the_judge(ordered)}."
        )
    if method == EVALUATE:
        from prefkit.pairs.pipelines.evaluate import summary

        more = {"evaluation": summary(rows)}
    if options.pairs == "several":
        more = {"pairs": sum(len(row["rejected"]) for row in rows)}
    if method == "cdpo":
        selected = {name: _selected(ordered, name) for name in (POSITIVE, NEGATIVE)}
        for name, solutions in selected.items():
            write_text(folder / f"{name}.jsonl", _as_lines(solutions))
        more = {"weighted": False}
        if is_weighed(options, method):
            assert last_stage is not None
            rows, more = last_stage(rows, selected, options, folder)
    write_text(folder / (SOLUTIONS if method == EVALUATE else PAIRS), _as_lines(rows))
    if method != EVALUATE and more.get("weighted") is not False:
        write_text(folder / TRAIN, training_options(method, options, folder))
    if text := as_text(ordered, options.seed):
        write_text(folder / VERDICTS, text)
    manifest.end(ordered, len(rows), further_drops=more.pop("drops", {}), **more)


def _selected(outcomes: list[dict[str, Any]], name: str) -> list[Row]:
    return [row for outcome in outcomes for row in outcome["extra"].get(name, ())]


def _as_lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def training_options(method: str, options: BuildFields, folder: Path) -> str:
    """A config of `prefkit train` and `prefkit inspect`: the pairs, put as the build put them."""
    found = {"model": options.model, "train_data": str(folder / PAIRS), "method": method}
    for name, value in {"tokenizer": options.tokenizer, **options.prompt_options()}.items():
        if value != getattr(BuildFields, name):
            found[name] = value
    if options.pairs == "several":
        found["link"] = "plackett_luce"
    head = "# Written by prefkit build; add what else the run needs (output_dir, learning_rate).\n"
    return head + yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def outcome_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """What became of each finished question of a build, in the order they finished."""
    from prefkit.pairs.run.driver import QUESTIONS

    return read_lines(folder / QUESTIONS)


def _outcomes(folder: Path, questions: Questions) -> list[dict[str, Any]]:
    """What became of each question, in their order."""
    found = {line["id"]: line for line in outcome_lines(folder)}
    return [found[question.id] for question in questions]


def _more_tokens(outcomes: list[dict[str, Any]], options: BuildFields) -> str:
    """The remedy where most solutions were cut off."""
    counts = sum((Counter(o["counts"]) for o in outcomes), Counter[str]())
    cut, whole = (
        counts["solutions unfinished"],
        counts["solutions right"] + counts["solutions wrong"],
    )
    return f", or raise max_tokens ({options.max_tokens})" if cut > whole else ""


def _more_for_the_judge(outcomes: list[dict[str, Any]]) -> str:
    """The remedy where the judge's answers were cut off."""
    cut = any(f"judge answers: {why}" in o["drops"] for o in outcomes for why in CUT)
    return ", or raise judge_max_tokens" if cut else ""


def _why(outcomes: list[dict[str, Any]]) -> str:
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        for name, count in outcome["drops"].items():
            reasons[name] = reasons.get(name, 0) + count
    told = sorted(((n, name) for name, n in reasons.items() if n), reverse=True)
    return "; ".join(f"{name} ({count})" for count, name in told[:4]) or "no solution was sampled"
