"""Step time of `semiseg fit` over a bare PyTorch loop, waiting for data, and a whole run over its bare steps.

- `make bench`: synthetic images, 400 steps
- `SEMISEG_DATA=DIR make bench STEPS=1600`: GlaS in DIR/GlaS, batch 2, 128 x 128, validation every 100 steps
"""

import os
import sys
import tempfile
import time

start = time.perf_counter()  # before the imports: they are part of a run


def main() -> None:
    from semiseg.cli import main as semiseg
    from tests.benchmarks.bare_loop import BareLoop

    steps = sys.argv[1] if len(sys.argv) > 1 else "400"
    if root := os.environ.get("SEMISEG_DATA"):
        data = ["--config", "configs/data/glas.yaml", "--data.root", f"{root}/GlaS", "--data.split", "official"]
    else:
        data = ["--data", "Synthetic", "--data.size", "[128,128]", "--data.num_cases", "60", "--data.batch_size", "2"]
    with tempfile.TemporaryDirectory() as runs:
        code = semiseg(
            ["fit", *data, "--config", "configs/protocol/published.yaml", "--runs_dir", runs]
            + ["--trainer.max_steps", steps, "--trainer.val_check_interval", "100", "--data.labeled_fraction", "0.2"]
            + ["--trainer.callbacks+", "tests.benchmarks.bare_loop.BareLoop"]
        )
    if code:
        sys.exit(code)
    away, pure = BareLoop.result
    whole = time.perf_counter() - start - away
    print(f"whole run {whole:.1f} s (imports included) over {pure:.1f} s of bare steps: {whole / pure:.3f}")


if __name__ == "__main__":
    main()
