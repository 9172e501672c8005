"""What this machine cannot run: asked when a run starts, not when it is described."""

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError


def check_machine(config: Any) -> None:
    """Refuses what is not installed here, or out of reach.

    Raises:
        ConfigError: a logger, Triton or Liger that is not installed, Triton without a GPU, a folder
            of the reference's cache that is a file, a Hub out of reach.
    """
    from transformers.integrations import integration_utils as integrations

    for name in config.report_to:
        installed = getattr(integrations, f"is_{name}_available", None)
        if installed is not None and not installed():
            raise ConfigError(
                f"report_to asks for {name}, which is not installed. Install it with pip, or leave "
                "report_to out."
            )
    if cache := getattr(config, "ref_cache_dir", None):
        folder = Path(cache).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise ConfigError(f"ref_cache_dir: {there} is a file. Name a folder.")
    if config.head_backend == "triton":
        need_package("triton", "head_backend triton")
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if config.use_cpu and not interpreted:
            raise ConfigError(
                "head_backend is triton, which needs a GPU, and this run is on the CPU. Use auto or"
                " torch."
            )
    if config.use_liger_kernel:
        need_package("liger_kernel", "use_liger_kernel")
    if config.push_to_hub:
        _check_hub(config.hub_token)


def need_package(package: str, option: str, extra: str = "") -> None:
    """Refuses an option whose package is not installed.

    Args:
        package: that is imported.
        option: that needs it.
        extra: what pip installs it by, such as "prefkit[qlora]"; "" = its own name.

    Raises:
        ConfigError: see above.
    """
    if importlib.util.find_spec(package) is None:
        how = f"pip install '{extra}'" if extra else "pip"
        raise ConfigError(
            f"{option} needs the package {package.replace('_', '-')}, which is not installed. "
            f"Install it with {how}, or leave {option} out."
        )


@functools.cache  # a run asks twice: before it loads anything, and in its trainer
def _check_hub(token: str | None) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi(token=token).whoami()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"push_to_hub: the Hub cannot be used ({reason}). Log in with `hf auth login`, "
            "check the network, or leave push_to_hub out."
        ) from error
