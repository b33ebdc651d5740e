"""Fold a run's LoRA adapter into its base: a whole Hugging Face folder for transformers and vLLM.

python -m tools.merge --ckpt runs/stage2 --out runs/stage2-merged
"""

import os
from dataclasses import dataclass

from model import load_model, merge_lora, save_model
from plumbing.base.errors import require
from plumbing.base.files import read_json, require_folder, to_text, write_json
from plumbing.base.flags import DeviceSettings, option, ours, refuse_given, run_script
from plumbing.base.folders import SETTINGS
from plumbing.base.processes import WORLD
from plumbing.checkpoint.peft import read_adapter
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.run.folder import Run, publish


@dataclass
class Settings(DeviceSettings):
    ckpt: str = option("", "run or PEFT adapter; left out: runs/stage2", "data")
    out: str = option("", "folder to make; left out: CKPT-merged", "data")
    model: str = option("", "base of the adapter; left out: the one that it names", "data")


def main(s: Settings) -> None:
    """Write the merged model, in the dtype of its base. Raises InputError."""
    require(WORLD == 1, "tools.merge is the work of one process; start it without torchrun")
    s.ckpt = os.path.normpath(s.ckpt or ours("runs/stage2"))
    require_folder(s.ckpt, "a run or an adapter")
    refuse_given(s, ["dtype"], "a merged model has its base's")
    s.out = os.path.normpath(s.out or f"{s.ckpt}-merged")
    lora, base = read_adapter(s.ckpt, s.model)
    require(lora, f"{s.ckpt} is a whole model; expected a LoRA adapter to merge")
    run = Run(s.out, save_every=0)
    path = os.path.join(s.ckpt, SETTINGS)
    tuned = read_json(path) if os.path.exists(path) else {}
    to_text(path, tuned)  # refused now if it is nested too deeply to be written later
    with run.held([s.ckpt, base], resume=False):
        model = load_model(s.ckpt, base=s.model)
        tokenizer = Tokenizer([s.ckpt, model.source], model.config)
        merge_lora(model)
        write_json(os.path.join(run.partial, SETTINGS), tuned | {"merged": True})
        save_model(model, run.partial, tokenizer.folder)
        publish(run.partial, run.out)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
