"""What prefkit computes for one trainer of TRL's, or why it leaves the loss to TRL."""

import inspect
import logging
from collections.abc import Mapping
from types import CodeType
from typing import Any

import torch.distributed as dist
import trl
from torch import nn

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.integrations.trl.batch import OURS, ROW, WEIGHTS
from prefkit.integrations.trl.config import Settings
from prefkit.integrations.trl.layout import layout_of, say_padded
from prefkit.integrations.trl.objective import Unsupported, objective_of, options_of
from prefkit.integrations.trl.reference import TrlReference, is_shared
from prefkit.loop.references import causal_head
from prefkit.loss.objective import Objective
from prefkit.model.head.fused import Head, install
from prefkit.model.reference.policy import check_transforms, check_vocabularies
from prefkit.model.router import Router, find_router

logger = logging.getLogger(__name__)

_LOSSES = {"compute_loss", "_compute_loss"}


class Acceleration:
    """The fused heads, the objective and the routers of one trainer.

    Attributes:
        settings: what prefkit adds to TRL's options.
        head: of the policy; None where its model cannot be fused.
        reason: why TRL computes the loss, in words; None where prefkit does.
        layout: of what the models read.
        router: of a mixture of experts whose balance is trained.
    """

    head: Head | None = None
    router: Router | None = None

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.settings = trainer, Settings.of(trainer.args)
        self._heads: dict[int, Head] = {}  # by the model that is called
        self._references: dict[int, TrlReference] = {}
        self._objective: tuple[Any, Objective] | None = None
        self._said: str | None = None
        self._of_models = _of_any_process(self._try_models())
        self.reason = self._of_models
        if self.reason is None and not trainer._is_vision_dataset:
            self._check_causal()
        self.layout: Layout = "padded"
        if self.objective() is not None:
            self.layout = layout_of(trainer, self.settings.layout)

    # -- what can be fused ----------------------------------------------------------------------

    def _try_models(self) -> str | None:
        """Puts the heads in; or why that cannot be."""
        trainer = self.trainer
        if has_own_loss(type(trainer)):
            name = type(trainer).__name__
            return f"the loss of its class ({name}) does not name the one that it replaces"
        if trainer.get_cp_size() > 1 or trainer.get_sp_size() > 1:
            return "its processes share the tokens of a row (context or sequence parallelism)"
        if getattr(trainer, "use_liger_kernel", False):  # TRL up to 1.14
            return "use_liger_kernel asks for TRL's own fused loss"
        try:
            self.head = self._install(trainer.model)
            if trainer.ref_model is not None:
                self._install(trainer.ref_model)
            return self._find_router()
        except ModelError as error:
            return str(error).rstrip(".")

    def _install(self, model: nn.Module) -> Head:
        if id(model) not in self._heads:
            try:
                self._heads[id(model)] = install(model)
            except ModelError:
                raise
            except Exception as error:  # a forward of any class, which TRL calls with more
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                name = type(model).__name__
                raise ModelError(f"{name} could not be tried on two tokens ({first})") from error
        return self._heads[id(model)]

    def _check_causal(self) -> None:
        """Refuses what TRL would train no better: a model that has read what it is to predict.

        Beside images a model may rightly look ahead within the prompt (PaliGemma), and its
        processor says where: such rows are TRL's affair.

        Raises:
            ModelError: the policy or the reference is not causal.
        """
        for model in (self.trainer.model, self.trainer.ref_model):
            if model is not None:
                causal_head(model)

    def _find_router(self) -> str | None:
        trainer = self.trainer
        if not trainer.aux_loss_enabled:
            return None
        self.router, reason = find_router(trainer.model, trainer.router_aux_loss_coef)
        return None if self.router else f"its routers' auxiliary loss cannot be made: {reason}"

    # -- what a batch is computed with ----------------------------------------------------------

    def objective(self) -> Objective | None:
        """The objective of the trainer's options as they are now; None = TRL computes the loss.

        Raises:
            ConfigError: options that exclude each other; TRL cannot compute what was asked for.
        """
        now = options_of(self.trainer)
        if self._objective is None or self._objective[0] != now:
            try:
                self._objective, self.reason = (now, self._checked(now)), self._of_models
            except Unsupported as why:
                self._objective, self.reason = None, str(why)
        if self.reason is not None:
            self._leave()
            return None
        assert self._objective is not None
        return self._objective[1]

    def _checked(self, options: dict[str, Any]) -> Objective:
        objective, trainer = objective_of(options, self.settings), self.trainer
        if not objective.needs_kl:
            return objective
        if trainer.precompute_ref_logps:
            raise ConfigError(
                f"prefkit_method is {self.settings.method}, whose KL needs the reference's whole "
                "distribution: precompute_ref_log_probs cannot be had with it. Leave one out."
            )
        if self._of_models is None:
            assert self.head is not None, "nothing stood against it"
            model = trainer.model if is_shared(trainer) else trainer.ref_model
            theirs = self._install(model)
            check_transforms(self.head, theirs)
            check_vocabularies(self.head, theirs, len(trainer._tokenizer))
        return objective

    def reference(self, model: nn.Module | None = None) -> TrlReference:
        """The trainer's reference; `model`: an engine around it, before training."""
        trainer = self.trainer
        called = model or (trainer.model if is_shared(trainer) else trainer.ref_model)
        if id(called) not in self._references:
            head = self._install(called)
            self._references[id(called)] = TrlReference.of(trainer, called, head)
        return self._references[id(called)]

    # -- TRL's way ------------------------------------------------------------------------------

    def leave_to_trl(self, reason: str) -> None:
        """From now on TRL computes the loss.

        Raises:
            ConfigError: it cannot.
        """
        self._of_models = self.reason = reason
        self._leave()

    def forget_others(self) -> None:
        """Lets models go that only took part in the constructor, as TRL does."""
        kept = id(self.trainer.model), id(self.trainer.ref_model)
        self._heads = {key: head for key, head in self._heads.items() if key in kept}
        self._references.clear()

    def _leave(self) -> None:
        """Says once why TRL computes the loss.

        Raises:
            ConfigError: it cannot.
        """
        method = self.settings.method
        if method != "dpo":
            raise ConfigError(
                f"prefkit_method is {method}, which TRL cannot compute, and prefkit cannot "
                f"here: {self.reason}."
            )
        if self._said != self.reason:
            self._said = self.reason
            logger.warning("TRL computes the loss in its own way, because %s.", self.reason)

    def pad(self, reason: str) -> None:
        """From now on rows are padded as TRL pads them, and one line says why.

        Raises:
            ConfigError: prefkit_layout is shared.
        """
        if self.layout == "padded":
            return
        if self.settings.layout == "shared":
            raise ConfigError(
                f"prefkit_layout: shared cannot be had: {reason}. Leave it at auto, or set "
                "dispatch_batches of accelerator_config to False: each process then reads the "
                "stream itself."
            )
        self.layout = "padded"
        say_padded(self.trainer, reason)

    def note_layout(self, inputs: Mapping[str, Any]) -> None:
        """Says once that batches are padded after all: the collator was exchanged."""
        if self.layout != "padded" and ROW not in inputs:
            self.layout = "padded"
            name = type(self.trainer.data_collator).__name__
            say_padded(self.trainer, f"a batch came without {ROW} (the data_collator is a {name})")

    def refuse_weights(self) -> None:
        """Refuses rows with weights, which TRL would leave out.

        Raises:
            ConfigError: see above.
        """
        raise ConfigError(
            "The rows bring token weights, which TRL cannot read, and prefkit cannot here: "
            f"{self.reason}. Remove the columns chosen_weights and rejected_weights."
        )

    def for_trl(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as TRL makes it.

        Raises:
            ConfigError: it has weights, which TRL would leave out.
        """
        if WEIGHTS in inputs:
            self.refuse_weights()
        return {key: value for key, value in inputs.items() if key not in OURS}


def has_own_loss(kind: type) -> bool:
    """Whether a class of trainers has another loss than TRL's DPO trainer, which prefkit makes.

    A method that names the one that it replaces has none: that one is prefkit's. It may name it in
    a function within it, or in a method of its class that it names.
    """
    bases = kind.__mro__
    if trl.DPOTrainer not in bases:
        return True
    added: dict[str, list[Any]] = {}  # what the classes beyond TRL's have under each name
    for base in bases[: bases.index(trl.DPOTrainer)]:
        for name, method in vars(base).items():
            added.setdefault(name, []).append(method)
    for method in (method for name in _LOSSES for method in added.get(name, [])):
        names = _names_in(method)
        helpers = [helper for name in names - _LOSSES for helper in added.get(name, [])]
        if not _LOSSES & names.union(*map(_names_in, helpers)):
            return True
    return False


def _names_in(method: Any) -> set[str]:
    """Attributes and globals that a function reads, with those of the functions within it."""
    waiting, names = [getattr(inspect.unwrap(method), "__code__", None)], set[str]()
    while waiting:
        if isinstance(code := waiting.pop(), CodeType):
            names.update(code.co_names)
            waiting += code.co_consts
    return names


def _of_any_process(reason: str | None) -> str | None:
    """The first reason of any process, which all must follow: one may hold no weights to try."""
    if not dist.is_initialized():
        return reason
    everywhere: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, reason)
    return next((one for one in everywhere if one is not None), None)
