"""Whether other programs answer as this one does, with an adapter of a real model.

    python tests/real_model.py --ckpt runs/real-stage2

20 sentences of the demo's test split, in directions that no tuning data has, are translated by
evaluate.py's greedy decoding, by PeftModel on the adapter, and by transformers' pipeline on the
merged folder. The packages are those of tests/requirements.txt.
"""

import argparse
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from data import Sample, write_prompt  # noqa: E402
from evaluate import (  # noqa: E402
    Settings,
    System,
    encode_prompts,
    load_for_decoding,
    prepare_prompter,
    translate,
)
from plumbing.compute.decoder import Decoder  # noqa: E402
from plumbing.corpus.corpus import read_corpus  # noqa: E402
from tools.merge import Settings as MergeSettings  # noqa: E402
from tools.merge import main as merge  # noqa: E402

SENTENCES, NEW = 20, 64


def main(ckpt: str) -> int:
    """Print how many agree; 0 where all do."""
    corpus, _ = read_corpus([os.path.join(ROOT, "demo/data/test.tsv")], "all")
    chosen = [d for d in corpus if "en" not in d]
    samples = [
        Sample(chosen[n % len(chosen)], *corpus[chosen[n % len(chosen)]][n])
        for n in range(SENTENCES)
    ]
    system = System("run", ckpt, Settings(dtype="fp32", device="cpu"))
    prompter, model = prepare_prompter(system, {}), load_for_decoding(system)
    prompts, _ = encode_prompts(prompter, samples, model.config.max_position_embeddings, NEW)
    ours, _ = translate(Decoder(model), prompter, prompts, None, NEW)

    tokenizer = transformers.AutoTokenizer.from_pretrained(ckpt)
    base = transformers.AutoModelForCausalLM.from_pretrained(model.source, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, ckpt)
    greedy = {"max_new_tokens": NEW, "do_sample": False}
    theirs = []
    for prompt in prompts:
        out = adapted.generate(input_ids=torch.tensor([prompt]), **greedy)[0][len(prompt) :]
        theirs.append(tokenizer.decode(out, skip_special_tokens=True).strip())
    by_peft = sum(a == b for a, b in zip(ours, theirs, strict=True))

    with tempfile.TemporaryDirectory() as folder:
        merged = os.path.join(folder, "merged")
        merge(MergeSettings(ckpt=ckpt, out=merged))
        pipe = transformers.pipeline("text-generation", merged, dtype=torch.float32)
        texts = [write_prompt(prompter.template, sample) for sample in samples]
        answers = [pipe(x, return_full_text=False, **greedy)[0]["generated_text"] for x in texts]
    by_pipeline = sum(a == b.strip() for a, b in zip(ours, answers, strict=True))
    print(f"{by_peft} of {SENTENCES} as PeftModel, {by_pipeline} of {SENTENCES} as the pipeline")
    return 0 if by_peft == by_pipeline == SENTENCES else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="a LoRA run")
    sys.exit(main(parser.parse_args().ckpt))
