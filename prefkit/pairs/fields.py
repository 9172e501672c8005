"""Every option of a build, with its documentation; nothing heavy is imported here.

The text under a field is its documentation and its `--help` line. Defaults are the papers' where
they give one; `METHOD_DEFAULTS` has those that differ by method.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from prefkit.options.prompt import PromptFields

METHODS = ("dpo", "step-dpo", "scdpo", "cdpo")
EVALUATE = "evaluate"  # asks and grades as a build does, but makes no pairs

# Step-DPO section 3, SCDPO section 3.1 (100 samples at most, here asked for in eights), cDPO
# section 4.1 (64 samples at spread temperatures).
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {"samples": 8, "temperature": [1.0], "top_p": 1.0},
    "step-dpo": {"samples": 2, "temperature": [0.8], "top_p": 0.95},
    "scdpo": {"samples": 8, "temperature": [1.0], "top_p": 1.0},
    "cdpo": {"samples": 64, "temperature": [0.5, 0.7, 0.9, 1.1], "top_p": 0.95},
    EVALUATE: {"samples": 1, "temperature": [0.0], "top_p": 1.0},
}


@dataclass(kw_only=True)
class BuildFields(PromptFields):
    """Options of `prefkit build`."""

    # -- questions ------------------------------------------------------------------------------
    questions: str = ""
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
    shard: str | None = None
    """Only one part of the questions: 2/8 is the second of eight, for as many machines."""
    join: list[str] = field(default_factory=list)
    """Folders of finished shards, to make one build of; nothing of theirs is sampled again."""
    max_questions: int | None = None
    """Only the first so many questions (of the shard)."""

    # -- model ----------------------------------------------------------------------------------
    model: str = ""
    """Folder or Hub name of the model that samples; with a server, its name there (required)."""
    out: str = ""
    """Folder of the result; taken up again where it holds a build of the same options."""
    server: str | None = None
    """URL of an OpenAI-compatible server that samples instead (http://127.0.0.1:8000/v1)."""
    server_model: str | None = None
    """The model's name on the server, where it is not `model`."""
    tokenizer: str | None = None
    """Folder or Hub name of the tokenizer; None = the model's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of a local model's weights; auto = as saved, on a CPU float32."""
    batch_size: int = 32
    """Texts a local model writes at a time."""
    concurrency: int | None = None
    """Requests a server gets at a time; None = 16, and 1 for `transformers serve`, whose seeds hold
    for one at a time only."""
    timeout: float = 600.0
    """Seconds a server may take for one request."""
    retries: int = 8
    """How often a failed request is tried again, with growing pauses (some minutes in all)."""
    extra_body: dict | str | None = None
    """Further fields of every request to the server, as JSON."""
    judge_server: str | None = None
    """URL of the server of the judge; None = the sampling engine."""
    judge_model: str | None = None
    """The judge: its name on judge_server, or a local folder; None = the sampling model."""
    judge_max_tokens: int = 4096
    """Most tokens of an answer of the judge, its thoughts included; one that they cut off is no
    verdict, and is counted. Judges that think long need more."""

    # -- how a solution is written --------------------------------------------------------------
    opening: str = ""
    """What every solution begins with, e.g. "Let's think step by step.\\nStep 1:"."""
    steps: Literal["lines", "numbered", "paragraphs"] = "lines"
    """What a step is: a line, "Step 1: …", or a paragraph."""

    # -- sampling -------------------------------------------------------------------------------
    samples: int | None = None
    """Solutions a question (scdpo: a round); None = 2 for step-dpo, 64 for cdpo, else 8."""
    temperature: float | list[float] | None = None
    """Of the solutions; several are dealt to the samples in turn. None = 0.8 for step-dpo, 0.5 0.7
    0.9 1.1 for cdpo, else 1."""
    top_p: float | None = None
    """Nucleus; None = 0.95 for step-dpo and cdpo, else 1."""
    max_tokens: int = 1024
    """Most tokens of a solution; longer ones count as unfinished."""
    too_long: Literal["error", "skip"] = "error"
    """Questions that the local model cannot read: stop before anything is sampled, or skip them
    (counted)."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a solution beside the end-of-sequence token, e.g. "\\nQuestion:", if examples
    in the prompt make the model go on with another question."""
    seed: int = 0
    """Of everything random; each request has its own, derived from it."""

    # -- grading --------------------------------------------------------------------------------
    answer: str = "auto"
    """Where a solution states its answer: auto, boxed, hash, last_number or regex:PATTERN."""
    grader: str | None = None
    """module:function (answer, right answer) -> bool in place of math-verify's comparison."""
    grading_workers: int = 2
    """Processes that compare answers."""
    grading_seconds: float = 2.0
    """Time limit of one comparison; past it the answer is undecided."""

    process_filter: Literal["auto", "program", "judge", "none"] = "auto"
    """Who removes right answers that were reached by a wrong step. auto = none for dpo and cdpo;
    for step-dpo the localiser, if it is program, judge or a function; else, and for scdpo, the
    program where the steps of an expression can be followed, else the judge if one is given, else
    nobody."""

    # -- the first wrong step (step-dpo) --------------------------------------------------------
    localiser: str = "auto"
    """Who finds it: program, judge, rollouts, or module:function (question, steps, solution) ->
    0-based step or None. auto = for each solution the program where the question is an expression
    and its steps, in any order, can be followed; else the judge if one is given (judge_model,
    judge_server), else rollouts."""
    rollouts: int = 16
    """Continuations from before each step of a wrong solution, for localiser rollouts or auto."""
    mistakes_per_question: int = 2
    """Most wrong solutions a question that are followed up."""
    rectifications: int = 20
    """Continuations sampled from the prefix before the wrong step."""
    pairs_per_mistake: int = 1
    """Most pairs from one wrong step; they have different right steps."""
    # -- pairs of whole solutions (dpo, scdpo) --------------------------------------------------
    pairs_per_question: int = 1
    """Most pairs of a right and a wrong solution a question."""
    max_samples: int = 100
    """scdpo: samples until one is right and one is wrong."""
    wrong_per_question: int = 2
    """scdpo: continuations that go wrong to keep a question (the paper: 2 GSM8K, 3 MATH)."""
    rising: list[float] = field(default_factory=lambda: [1.1, 0.05, 1.4])
    """scdpo: temperature of the continuations, its rise a round, and its cap."""
    interpreter: Literal["none", "python"] = "none"
    """Who runs code steps (```python): nobody, or a Python process with limits (no sandbox)."""

    # -- positive and negative model (cdpo) -----------------------------------------------------
    weigh: bool = True
    """Train both models here and weigh the pairs; false = stop after the selection, with
    positive.jsonl and negative.jsonl for a trainer of your own (`prefkit score` weighs then)."""
    contrast_adapter: Literal["lora", "none"] = "lora"
    """Train them as adapters (the paper's) or in full."""
    contrast_lora_r: int = 8
    """Rank of the adapters."""
    contrast_lora_alpha: int = 16
    """Scale of the adapters (over their rank)."""
    contrast_learning_rate: float = 3e-4
    """Peak learning rate of both."""
    contrast_epochs: float = 1.0
    """Passes over their solutions."""
    contrast_batch_size: int = 8
    """Solutions an optimiser step."""
    contrast_device_batch_size: int | None = None
    """Solutions a forward pass; None = all of a step."""
    contrast_bf16: bool = False
    """Mixed precision in bfloat16 while they train, and weights in bfloat16 while they score."""
    contrast_beta: float = 1.0
    """b of the scores: log s = (1 + b) log p_positive − b log p_negative − log Z."""
