"""Two data-parallel processes give the numbers of one: losses, metrics, gradients, weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from pathlib import Path
from prefkit.train.leaving import leave_group
from tests.trainer_cases import ROWS, logs_of, tiny_model, trainer

folder, batch, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
trained = trainer(
    folder, tiny_model(scale=3.0), max_steps=3, per_device_train_batch_size=batch,
    gradient_accumulation_steps=2, eval_dataset=ROWS[:5], save_strategy="steps", save_steps=2,
    use_cpu=True, **options,
)
trained.train()
evaluation = trained.evaluate()
if trained.is_world_process_zero():
    total = float(sum(p.detach().double().abs().sum() for p in trained.model.parameters()))
    result = {"logs": logs_of(trained), "eval": evaluation, "weights": total}
    (folder / "result.json").write_text(json.dumps(result))
leave_group()
"""


def run(
    folder: Path, processes: int, options: dict[str, Any], script: str = SCRIPT
) -> dict[str, Any]:
    """What a script of a trainer writes, run by so many processes that share batches of 4."""
    folder.mkdir()
    (folder / "run.py").write_text(script)
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [str(folder / "run.py"), str(folder), str(4 // processes), json.dumps(options)]
    done = subprocess.run(
        start + arguments, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"method": "tdpo2"}, {"precompute_ref_log_probs": True}])
def test_two_processes_equal_one(options: dict[str, Any], tmp_path: Path) -> None:
    one = run(tmp_path / "one", 1, options)
    two = run(tmp_path / "two", 2, options)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-6)
    for got, want in zip([*two["logs"], two["eval"]], [*one["logs"], one["eval"]], strict=True):
        for name, value in want.items():
            if not any(word in name for word in ("second", "runtime", "memory")):
                assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert (tmp_path / "two" / "checkpoint-2" / "prefkit_complete.json").is_file()
