"""--dev: what a run is like on other data, at each of its checkpoints.

script is the module train.py, judge the module evaluate.py, which are handed in: plumbing imports
none of the five.
"""

from types import ModuleType

import torch

from plumbing.base import flags as cli
from plumbing.base import processes as distributed
from plumbing.corpus.corpus import Corpus
from plumbing.base.processes import RANK, WORLD, progress_bar
from plumbing.score.identify import make_identifiers
from plumbing.score.systems import CANDIDATES, MAX_NEW_TOKENS


class Dev:
    """The data of --dev, made ready before the first step: what is wrong with it is said then, a
    language that langid lacks or too few positions. Raises InputError."""

    def __init__(
        self, script: ModuleType, judge: ModuleType, model, corpus: Corpus, prompter, s: object
    ):
        self.script, self.judge, self.s = script, judge, s
        self.tuning_set = script.TuningSet(corpus, prompter, s.max_length)
        samples = [encoded.sample for encoded in self.tuning_set.samples]
        self.directions = [sample.direction for sample in samples]
        (self.identify,) = make_identifiers(["langid"], CANDIDATES, self.directions)
        positions = model.config.max_position_embeddings
        self.prompts, _ = judge.encode_prompts(prompter, samples, positions, MAX_NEW_TOKENS)

    @torch.no_grad()
    def measure(self, model) -> dict[str, float]:
        """{"dev_mle": nats per response token, "dev_otr": % of greedy translations}."""
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.s.device)
        pairs = self.tuning_set.with_twins(self.tuning_set.samples)
        shares = self.script.micro_batches(pairs, self.s.micro_batch_tokens, world=WORLD)
        for batch in shares[RANK]:
            mle_sum, _ = self.script.loss_sums(model, batch, self.s)
            sums += torch.stack([mle_sum, batch.weight.sum().to(self.s.device)]).double()
        mle_sum, mle_weight = distributed.sum_over_processes(sums).tolist()

        bar = progress_bar(total=len(self.prompts), desc="dev", unit="sentence", leave=False)
        with cli.autocast(self.s.device, self.s.dtype), bar:  # by all: weights may be sharded
            decoder = self.judge.Decoder(model)
            texts = self.judge.translate(decoder, self.tuning_set.prompter, self.prompts, bar)
        texts = [" ".join(text.split()) for text in texts]
        kinds = self.judge.off_target(texts, self.directions, self.identify)
        model.train()
        otr = 100 * sum(map(bool, kinds)) / len(kinds)
        return {"dev_mle": mle_sum / mle_weight, "dev_otr": otr}
