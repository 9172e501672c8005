"""Every option of a build, with its documentation; nothing heavy is imported here.

The text under a field is its documentation and its `--help` line; its rules (`option`) are checked,
and say which methods read it. Defaults are the papers' where they give one: Step-DPO section 3,
SCDPO section 3.1 (100 samples at most, here asked for in eights), cDPO section 4.1 (64 samples at
spread temperatures). What is `free` may differ from one run of a build to the next: the result
stays the same (with another batch_size up to the rounding of what is still to be sampled).
"""

from dataclasses import dataclass
from typing import Literal

from prefkit.options.option import option
from prefkit.options.prompt import PromptFields

METHODS = ("dpo", "step-dpo", "scdpo", "cdpo")
EVALUATE = "evaluate"  # asks and grades as a build does, but makes no pairs
_STEP_DPO, _CDPO = ("step-dpo",), ("cdpo",)
_QUESTIONS = "Name a file or folder of questions, as the first word (of build after the method)."


@dataclass(kw_only=True)
class BuildFields(PromptFields):
    """Options of `prefkit build`."""

    # -- questions ------------------------------------------------------------------------------
    questions: str = option("", missing=_QUESTIONS, free=True)
    """File (.json, .jsonl, .parquet), folder of such files, or Hub dataset (required)."""
    prompt_field: str | None = None
    """Field of the question; None = question, prompt or problem."""
    answer_field: str = "answer"
    """Field of the right answer ("extra.answer" goes one level down); GSM8K's "… #### 72" is read
    as solution and answer."""
    solution_field: str = "solution"
    """Field of a right solution; rows may lack it."""
    columns: dict | str | None = None
    """The same three, as {"prompt": "ask", "answer": "extra.answer"}, and "system"; null leaves a
    column out: {"context": null}."""
    split: str = "train"
    """Split of a Hub dataset."""
    shard: str | None = option(None, only_for=METHODS)
    """Only one part of the questions: 2/8 is the second of eight, for as many machines."""
    join: list[str] = option(default_factory=list, only_for=METHODS, free=True)
    """Folders of finished shards, to make one build of; nothing of theirs is sampled again."""
    max_questions: int | None = option(None, at_least=1)
    """Only the first so many questions (of the shard)."""

    # -- model ----------------------------------------------------------------------------------
    model: str = option("", missing="Name the model that samples: --model FOLDER.", free=True)
    """Folder or Hub name of the model that samples; with a server, its name there (required)."""
    out: str = option("", missing="Name the folder of the result: --out FOLDER.", free=True)
    """Folder of the result (required); a build of the same options in it is taken up again."""
    server: str | None = option(None, free=True)
    """URL of an OpenAI-compatible server that samples instead (http://127.0.0.1:8000/v1)."""
    server_model: str | None = None
    """The model's name on the server, where it is not `model`."""
    tokenizer: str | None = None
    """Folder or Hub name of the tokenizer; None = the model's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of a local model's weights; auto = as saved, on a CPU float32."""
    batch_size: int = option(32, at_least=1, free=True)
    """Texts a local model writes at a time."""
    concurrency: int | None = option(None, at_least=1, free=True)
    """Requests a server gets at a time; None = 16, and 1 for `transformers serve`, whose seeds hold
    for one at a time only."""
    timeout: float = option(600.0, above=0, free=True)
    """Seconds a server may take for one request."""
    retries: int = option(8, at_least=0, free=True)
    """How often a failed request is tried again, with growing pauses (some minutes in all)."""
    extra_body: dict | str | None = None
    """Further fields of every request to the server, as JSON."""
    judge_server: str | None = option(None, only_for=METHODS, free=True)
    """URL of the server of the judge; None = the sampling engine."""
    judge_model: str | None = option(None, only_for=METHODS)
    """The judge: its name on judge_server, or a local folder; None = the sampling model."""
    judge_max_tokens: int = option(4096, at_least=1, only_for=METHODS)
    """Most tokens of an answer of the judge, its thoughts included; one that they cut off is no
    verdict, and is counted. Judges that think long need more."""

    # -- solution ---------------------------------------------------------------------------------
    opening: str = option("", around_prompt=True)
    """What every solution begins with, e.g. "Let's think step by step.\\nStep 1:"."""
    steps: Literal["lines", "numbered", "paragraphs"] = "lines"
    """What a step is: a line, "Step 1: …", or a paragraph."""

    # -- sampling -------------------------------------------------------------------------------
    samples: int | None = option(
        None, at_least=1, by_method={"dpo": 8, "step-dpo": 2, "scdpo": 8, "cdpo": 64, EVALUATE: 1}
    )
    """Solutions a question (scdpo: a round)."""
    temperature: float | list[float] | None = option(
        None,
        at_least=0,
        at_most=5,
        by_method={
            "dpo": [1.0],
            "step-dpo": [0.8],
            "scdpo": [1.0],
            "cdpo": [0.5, 0.7, 0.9, 1.1],
            EVALUATE: [0.0],
        },
    )
    """Of the solutions; several are dealt to the samples in turn."""
    top_p: float | None = option(
        None,
        above=0,
        at_most=1,
        by_method={"dpo": 1.0, "step-dpo": 0.95, "scdpo": 1.0, "cdpo": 0.95, EVALUATE: 1.0},
    )
    """Nucleus: the most likely tokens that together have this probability."""
    max_tokens: int = option(1024, at_least=1)
    """Most tokens of a solution; longer ones count as unfinished."""
    too_long: Literal["error", "skip"] = "error"
    """Questions that the local model cannot read: stop before anything is sampled, or skip them
    (counted)."""
    stop: list[str] = option(default_factory=list, around_prompt=True)
    """Texts that end a solution beside the end-of-sequence token, e.g. "\\nQuestion:", if examples
    in the prompt make the model go on with another question."""
    seed: int = option(0, at_least=0)
    """Of everything random; each request has its own, derived from it."""

    # -- grading --------------------------------------------------------------------------------
    answer: str = "auto"
    """Where a solution states its answer: auto, boxed, hash, last_number or regex:PATTERN."""
    grader: str | None = None
    """module:function (answer, right answer) -> bool in place of math-verify's comparison."""
    grading_workers: int = option(2, at_least=1, free=True)
    """Processes that compare answers."""
    grading_seconds: float = option(2.0, above=0)
    """Time limit of one comparison; past it the answer is undecided."""

    process_filter: Literal["auto", "program", "judge", "none"] = option("auto", only_for=METHODS)
    """Who removes right answers that were reached by a wrong step. auto = none for dpo and cdpo;
    for step-dpo the localiser, if it is program, judge or a function; else, and for scdpo, the
    program where the steps of an expression can be followed, else the judge if one is given, else
    nobody."""

    # -- pairs ------------------------------------------------------------------------------------
    pairs: Literal["one", "all", "several"] = option("one", only_for=("dpo", "step-dpo", "scdpo"))
    """Which pairs are made of what was sampled: one = each solution in one pair (step-dpo: one a
    mistake); all = every right with every wrong one that follow the same text; several (dpo) = one
    row a right solution, with all wrong ones as its rejected responses (link plackett_luce)."""

    # -- step-dpo ---------------------------------------------------------------------------------
    localiser: str = option("auto", only_for=_STEP_DPO)
    """Who finds it: program, judge, rollouts, or module:function (question, steps, solution) ->
    0-based step or None. auto = for each solution the program where the question is an expression
    and its steps, in any order, can be followed; else the judge if one is given (judge_model,
    judge_server), else rollouts."""
    rollouts: int = option(16, at_least=1, only_for=_STEP_DPO)
    """Continuations from before each step of a wrong solution, for localiser rollouts or auto."""
    mistakes_per_question: int | None = option(None, at_least=1, only_for=_STEP_DPO)
    """Most wrong solutions a question that are followed up; with pairs all, continuations that
    came out wrong count, too. None = 2, with pairs all 8."""
    rectifications: int = option(20, at_least=1, only_for=_STEP_DPO)
    """Continuations sampled from the prefix before the wrong step."""
    pairs_per_mistake: int | None = option(None, at_least=1, only_for=_STEP_DPO)
    """Most pairs from one wrong step; they have different right steps. None = 1, with pairs all no
    limit."""
    # -- dpo and scdpo ----------------------------------------------------------------------------
    pairs_per_question: int | None = option(None, at_least=1, only_for=("dpo", "scdpo"))
    """Most pairs of a right and a wrong solution a question. None = 1, with pairs all no limit."""
    max_samples: int = option(100, at_least=1, only_for=("scdpo",))
    """scdpo: samples until one is right and one is wrong."""
    wrong_per_question: int = option(2, at_least=1, only_for=("scdpo",))
    """scdpo: continuations that go wrong to keep a question (the paper: 2 GSM8K, 3 MATH); with
    pairs all, how many are enough to stop sampling: none is left out."""
    rising: list[float] = option(default_factory=lambda: [1.1, 0.05, 1.4], only_for=("scdpo",))
    """scdpo: temperature of the continuations, its rise a round, and its cap."""
    interpreter: Literal["none", "python"] = option("none", only_for=("dpo", "scdpo", EVALUATE))
    """Who runs code steps (```python): nobody, or a Python process with limits (no sandbox)."""

    # -- cdpo -------------------------------------------------------------------------------------
    weigh: bool = option(True, only_for=_CDPO)
    """Train both models here and weigh the pairs; false = stop after the selection, with
    positive.jsonl and negative.jsonl for a trainer of your own (`prefkit score` weighs then)."""
    contrast_adapter: Literal["lora", "none"] = option("lora", only_for=_CDPO)
    """Train them as adapters (the paper's) or in full."""
    contrast_lora_r: int = option(8, at_least=1, only_for=_CDPO)
    """Rank of the adapters."""
    contrast_lora_alpha: int = option(16, at_least=1, only_for=_CDPO)
    """Scale of the adapters (over their rank)."""
    contrast_learning_rate: float = option(3e-4, above=0, only_for=_CDPO)
    """Peak learning rate of both."""
    contrast_epochs: float = option(1.0, above=0, only_for=_CDPO)
    """How often their solutions are read."""
    contrast_batch_size: int = option(8, at_least=1, only_for=_CDPO)
    """Solutions an optimiser step."""
    contrast_device_batch_size: int | None = option(None, at_least=1, only_for=_CDPO)
    """Solutions a forward pass; None = all of a step."""
    contrast_bf16: bool = option(False, only_for=_CDPO)
    """Mixed precision in bfloat16 while they train, and weights in bfloat16 while they score."""
    contrast_beta: float = option(1.0, at_least=0, only_for=_CDPO)
    """b of the scores: log s = (1 + b) log p_positive − b log p_negative − log Z."""
