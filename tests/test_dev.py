"""--dev: loss and off-target ratio on other data; in a whole run: test_train.py."""

import pytest
import torch
from conftest import BASE, TSV, tiny

import evaluate
import train
from data import Prompter, TuningSet, collate
from evaluate import Decoder, off_target, translate
from plumbing.corpus.corpus import read_corpus
from plumbing.run.dev import Dev
from plumbing.base.errors import InputError
from plumbing.checkpoint.tokenizer import Tokenizer


def make_dev(tmp_path, rows=4, **changes):
    lines = TSV.split("\n")[: rows + 1]
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus, _ = read_corpus([str(tmp_path / "dev.tsv")], "en-it,it-nl")
    model = tiny(**changes)
    prompter = Prompter(Tokenizer([BASE], model.config), "alpaca")
    s = train.Settings(device="cpu", dtype="fp32", micro_batch_tokens=300)
    return model, corpus, prompter, Dev(train, evaluate, model, corpus, prompter, s)


def test_it_measures_eq_1_and_the_greedy_off_target_ratio_and_leaves_the_model_training(tmp_path):
    model, corpus, prompter, dev = make_dev(tmp_path)
    model.train()
    found = dev.measure(model)
    assert model.training and all(p.grad is None for p in model.parameters())
    tuning_set = TuningSet(corpus, prompter, 512)
    batch = collate(tuning_set.with_twins(tuning_set.samples))
    with torch.no_grad():
        mle_sum, _ = train.loss_sums(model.eval(), batch, dev.s)
    assert found["dev_mle"] == pytest.approx(mle_sum.item() / len(batch.y), rel=1e-5)
    samples = [encoded.sample for encoded in tuning_set.samples]
    prompts, _ = evaluate.encode_prompts(prompter, samples, 512, 128)
    texts = translate(Decoder(model), prompter, prompts, None)
    kinds = off_target(texts, [x.direction for x in samples], dev.identify)
    assert found["dev_otr"] == 100 * sum(map(bool, kinds)) / len(kinds)


def test_too_few_positions_are_said_before_the_first_step(tmp_path):
    with pytest.raises(InputError, match="leaves no room for the prompt in 128"):
        make_dev(tmp_path, max_position_embeddings=128)
