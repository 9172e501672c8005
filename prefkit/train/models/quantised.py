"""Weights that bitsandbytes packed: what of them trains, and that they compute one thing only."""

from typing import Any

from prefkit.errors import ModelError
from prefkit.model.head.fused import is_peft

_CPU_KERNEL = "support_avx512bf16_for_cpu"


def keep_gradients(model: Any) -> None:
    """Lets 4-bit layers on a CPU compute in evaluation as they do in training.

    On CPUs with AVX512-BF16 a forward in evaluation mode repacks them for a kernel that has no
    gradient and rounds their scales to bfloat16, for good: policy and reference would differ, and
    no layer before the last would learn.

    Raises:
        ModelError: such a forward has been made.
    """
    for name, part in model.named_modules():
        if not hasattr(part, _CPU_KERNEL):
            continue
        state = getattr(getattr(part, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"{name} has been run in evaluation mode, for which bitsandbytes repacked its 4-bit"
                " weights on this CPU: they have no gradient any more. Load the model again, or "
                "pass its name or folder."
            )
        setattr(part, _CPU_KERNEL, False)


def refuse_purely_quantised(model: Any) -> None:
    """Quantised weights do not train; what is left of the model beside them would.

    Raises:
        ModelError: a quantised model without an adapter.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None and not (is_peft(model) or quantiser.is_qat_trainable):
        raise ModelError(
            "The model is quantised, and nothing but an adapter can train on such weights. Give a "
            "peft_config (adapter: lora), or load the model unquantised."
        )
