"""How far a run is, and what a checkpoint says of it."""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

from plumbing.checkpoint.peft import LoraSettings
from plumbing.base.errors import require


class Best(NamedTuple):
    """The best checkpoint so far by a figure of --dev; in tuples, so that the least is the best."""

    otr: float = 1e30  # in %; 0 where the loss alone decides
    mle: float = 1e30
    step: int = 0  # 0: none yet


class Checkpoint(NamedTuple):
    """A checkpoint on the disk: its folder and what its state.json says."""

    folder: str
    state: dict


@dataclass
class Progress:
    """How far a run is: with the seed, all that its random choices depend on."""

    lora: dict | None  # the settings of its LoRA layers
    base_crc32: int | None = None  # of the weights below LoRA
    samples_crc32: int | None = None  # of the tuning set as ids
    step: int = 0
    updates: int = 0  # steps that changed the weights: fp16 may skip some
    seen: int = 0  # tokens
    best: Best = Best()

    @classmethod
    def resume(
        cls,
        checkpoint: Checkpoint | None,
        settings: LoraSettings | None,
        base_crc32: int | None = None,
        samples_crc32: int | None = None,
        best_by: str = "",
    ) -> "Progress":
        """That of a checkpoint, or of the beginning. best_by: "otr", "mle", or "" for no best one.
        Raises InputError where the run was begun with another adapter, base or tokenizer."""
        begun = cls(asdict(settings) if settings else None, base_crc32, samples_crc32)
        if checkpoint is None:
            return begun
        folder, state = checkpoint
        sentence = f"{folder}/adapter_config.json: damaged; delete {folder}"
        require(state["lora"] == begun.lora, sentence)
        other = "the run in it was begun with; bring those back, or choose another --out"
        sentence = f"{folder}: the base model's weights are not those that {other}"
        require(state["base_crc32"] == base_crc32, sentence)
        sentence = f"{folder}: tokenizer and prompts.json do not give the ids that {other}"
        require(state["samples_crc32"] == samples_crc32, sentence)
        begun.step, begun.updates, begun.seen = (state[n] for n in ("step", "updates", "seen"))
        begun.best = Best(*state["best"]) if best_by else Best()
        return begun

    def advance(self, tokens: int, updated: bool) -> None:
        """One more step is done."""
        self.step += 1
        self.seen += tokens
        self.updates += int(updated)

    def compare(self, figures: dict[str, float], best_by: str) -> None:
        """Note this step where its figures of --dev are the best so far."""
        if best_by and math.isfinite(figures["dev_mle"]):
            otr = figures["dev_otr"] if best_by == "otr" else 0
            self.best = min(self.best, Best(otr, figures["dev_mle"], self.step))

    def to_state(self) -> dict:
        """For state.json."""
        return asdict(self) | {"best": list(self.best)}
