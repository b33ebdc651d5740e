"""What `train.py --plan` says of LLaMAs from 1B to 70B on 1 to 64 H100s, for docs/training.md.

python benchmarks/plan_table.py  # some minutes; needs config.json's fields alone, which stand below
"""

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import table
from plumbing.base.errors import require

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
FIELDS += ("num_key_value_heads", "vocab_size", "tie_word_embeddings")
SHAPES = {
    "LLaMA-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
    "LLaMA-2-7B": (4096, 11008, 32, 32, 32, 32000, False),
    "LLaMA-2-13B": (5120, 13824, 40, 40, 40, 32000, False),
    "LLaMA-3-70B": (8192, 28672, 80, 64, 8, 128256, False),
}
TUNING = {"LoRA 16": ["--lora-rank", "16"], "full": ["--full"]}
GPUS = (1, 8, 64)


def cell(folder: str, flags: list[str], gpus: int) -> str:
    """GiB of a GPU and tokens a second of all of them."""
    command = [sys.executable, str(ROOT / "train.py"), "--plan", "--stage", "2", "--recompute"]
    command += ["--init", folder, "--batch-size", "1024", "--gpu", "H100", "--gpus", str(gpus)]
    data = ["--data", str(ROOT / "demo/data/train.tsv"), "--pairs", "1200"]
    done = subprocess.run([*command, *data, *flags], capture_output=True, text=True)
    require(done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    memory = float(re.search(r"activations \S+: (\S+) on each", done.stdout)[1])
    speed = re.search(r"([\d,]+) tokens/s", done.stdout)[1]
    mark = "" if "fits         yes" in done.stdout else " (too much)"
    return f"{memory:.3g} GiB{mark}, {speed}"


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, shape in SHAPES.items():
            folder = Path(temporary, name)
            folder.mkdir()
            config = {"model_type": "llama"} | dict(zip(FIELDS, shape, strict=True))
            (folder / "config.json").write_text(json.dumps(config))
            for tuning, flags in TUNING.items():
                with ThreadPoolExecutor(2) as pool:
                    cells = pool.map(partial(cell, str(folder), flags), GPUS)
                    cells = zip([f"{n} x H100" for n in GPUS], cells, strict=True)
                    rows.append({"model": name, "tuning": tuning} | dict(cells))
    print(table(rows))


if __name__ == "__main__":
    main()
