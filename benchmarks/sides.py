"""The two sides of a benchmark: our step, and transformers' with PEFT in three forms.

Both take the same pairs, on weights that are the same to the bit.
"""

import os
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import peft
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers import LlamaForCausalLM as TheirLlama

from benchmarks import common
from data import EncodedSample, TwinPair, micro_batches
from model import LlamaForCausalLM, save_model
from plumbing.base.flags import DTYPES, autocast
from plumbing.checkpoint.config import Config
from plumbing.compute.optimizer import Optimizer
from train import CLIP, Settings, prepare_model, train_step

RATE = 1e-4
transformers.logging.set_verbosity_error()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
transformers.logging.disable_progress_bar()


def make_model(folder: str, shape: dict) -> None:
    """A folder with a random model of a shape, far from uniform, and the demo's tokenizer."""
    torch.manual_seed(1)
    config = Config(**shape, tie_word_embeddings=True, rope_theta=1e5, rms_norm_eps=1e-5)
    model = LlamaForCausalLM(config)
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=config.hidden_size**-0.5)
    save_model(model, folder, common.DEMO)


def make_folders(parent: str, shapes: dict[str, dict], ranks: dict[str, int]) -> dict:
    """{model: (its folder, that of an adapter of this rank)}: those with a shape are made, the
    others are there. All by children, see in_child."""
    folders = {}
    for name, rank in ranks.items():
        base, adapter = f"{parent}/{name}", f"{parent}/{name} adapter"
        if name in shapes:
            common.in_child(make_model, base, shapes[name])
        else:
            base = {"demo": common.DEMO, "SmolLM2": str(common.SMOLLM)}[name]
        common.in_child(make_adapter, base, adapter, rank)
        folders[name] = base, adapter
    return folders


def there(rows: list, shapes: dict[str, dict]) -> list:
    """The rows whose model is made or at hand."""
    if "SmolLM2" not in shapes and not common.SMOLLM.exists():
        print("runs/smollm2 is not there (make smollm2): no comparison with SmolLM2-135M")
        return [row for row in rows if row.model != "SmolLM2"]
    return rows


def make_adapter(base: str, folder: str, rank: int) -> None:
    """A LoRA adapter of a base on all linears, in PEFT's format. B is at random too: with zeros a
    wrong LoRA would not show."""
    s = Settings(model=base, lora_rank=rank, lora_alpha=2.0 * rank)
    s.device, s.dtype = "cpu", "fp32"
    model, _ = prepare_model(s, None)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.01)
    save_model(model, folder, base)


def peer_of(base: str, adapter: str, dtype: str) -> peft.PeftModel:
    """A base and its adapter in transformers + PEFT, to be trained."""
    model = TheirLlama.from_pretrained(base, dtype=DTYPES[dtype])
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).train()


class Ours:
    """A step as train.py takes it."""

    def __init__(self, model: LlamaForCausalLM, s: Settings):
        self.model, self.s = model.train(), s
        self.optimizer = Optimizer(model.named_parameters(), s.dtype, s.device)
        self.optimizer.set_rate(RATE)

    def step(self, pairs: list[TwinPair]) -> None:
        """One update; `found` is then its {"loss", "grad_norm"}."""
        shares = micro_batches(pairs, self.s.micro_batch_tokens)
        figures = train_step(self.model, shares, self.optimizer, self.s).figures
        self.found = {name: figures[name] for name in ("loss", "grad_norm")}


class Padded:
    """A loop over transformers + PEFT by hand: micro-batches of `size` samples, each padded to its
    longest, gradients accumulated. With twins the authors' way: two forward passes, a softmax over
    the whole vocabulary, log(1 - p) clamped."""

    def __init__(self, model: peft.PeftModel, s: Settings, size: int):
        self.model, self.s, self.size = model, s, size
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, RATE, weight_decay=0.0, fused=True)

    def step(self, pairs: list[TwinPair]) -> None:
        """One update; `found` is then its {"loss", "grad_norm"}."""
        responses = sum(len(pair.positive.response) for pair in pairs)
        of_twins = sum(len(pair.twin.response) for pair in pairs if pair.twin)
        loss = 0.0
        for start in range(0, len(pairs), self.size):
            group = pairs[start : start + self.size]
            twins = [pair.twin for pair in group if pair.twin]
            with autocast(self.s.device, self.s.dtype):
                part = self.mle([pair.positive for pair in group], responses)
                part = part + self.s.alpha * self.unlikelihood(twins, of_twins) if twins else part
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, CLIP).item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.found = {"loss": loss, "grad_norm": norm}

    def mle(self, encoded: list[EncodedSample], count: int) -> Tensor:
        batch = pad(encoded, self.s.device)
        return self.model(**batch, num_items_in_batch=count, use_cache=False).loss

    def unlikelihood(self, encoded: list[EncodedSample], count: int) -> Tensor:
        batch = pad(encoded, self.s.device)
        labels = batch.pop("labels")[:, 1:]  # [B, n - 1]
        p = F.softmax(self.model(**batch, use_cache=False).logits[:, :-1].float(), -1)
        losses = -torch.log(torch.clamp(1 - p, min=1e-9))  # [B, n - 1, V]
        chosen = losses.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (chosen * (labels >= 0)).sum() / count


def pad(encoded: list[EncodedSample], device: str) -> dict[str, Tensor]:
    """What a model of transformers takes, [B, n] each, padded on the right; of the labels -100 does
    not count."""
    shape = len(encoded), max(x.tokens for x in encoded)
    ids, mask = torch.zeros(2, *shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, (_, prompt, response) in enumerate(encoded):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def compute_padded(pairs: list[TwinPair], size: int) -> int:
    """Tokens that Padded computes, with padding."""
    total = 0
    for start in range(0, len(pairs), size):
        group = pairs[start : start + size]
        for side in ([x.positive for x in group], [x.twin for x in group if x.twin]):
            total += len(side) * max((x.tokens for x in side), default=0)
    return total


class ByLength(Trainer):
    """transformers.Trainer itself, which groups samples by length. Its clock runs from the
    callback on_step_begin to on_step_end: collation, which is before, counts for ours alone."""

    def __init__(self, model: peft.PeftModel, samples: list[EncodedSample], size: int, steps: int):
        """One epoch of the samples, whole batches of `size`; steps: at most so many, -1: all."""
        self.samples, self.visited, self.size = samples, deque(), size
        tokenizer = AutoTokenizer.from_pretrained(common.DEMO, pad_token="</s>")
        self.collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
        dataset = [
            {"number": n, "input_ids": x.prompt + x.response}
            | {"labels": [-100] * len(x.prompt) + x.response}
            for n, x in enumerate(samples)
        ]
        self.folder = tempfile.TemporaryDirectory()
        arguments = TrainingArguments(
            self.folder.name, per_device_train_batch_size=size, num_train_epochs=1, use_cpu=True,
            max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1.0,
            train_sampling_strategy="group_by_length", dataloader_drop_last=True, seed=1,
            logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        super().__init__(model, arguments, train_dataset=dataset, data_collator=self.collate)
        self.remove_callback(transformers.PrinterCallback)

    def collate(self, features: list[dict]) -> dict[str, Tensor]:
        self.visited.append([self.samples[feature["number"]] for feature in features])
        names = "input_ids", "labels"
        return self.collator([{name: feature[name] for name in names} for feature in features])

    def training_step(self, *args, **kwargs) -> Tensor:
        self.loss = super().training_step(*args, **kwargs)
        return self.loss

    def run(self, after: Callable[[list[EncodedSample], float], None]) -> list[float]:
        """Train; after each step after(its samples, its loss) is called. Seconds of each step."""
        clock = Clock(lambda: after(self.visited.popleft(), self.loss.item()))
        self.add_callback(clock)
        self.train()
        self.folder.cleanup()
        return clock.seconds


class Clock(transformers.TrainerCallback):
    """Times the steps of a Trainer, and calls a function after each."""

    def __init__(self, after: Callable[[], None]):
        self.seconds, self.after = [], after

    def on_step_begin(self, *args, **kwargs) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        self.after()
