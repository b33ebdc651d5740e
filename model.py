"""LLaMA by hand: the decoder, its KV cache, LoRA, and weights in and out of Hugging Face folders.

Module and attribute names are the checkpoint's tensor names (model.layers.0.self_attn.q_proj.weight), so loading is a strict
copy without a rename table. A batch is not padded: its sequences lie end to end in one row of tokens, and a Layout says which
token belongs to which sequence. Symbols in shape comments: B sequences, T tokens of all of them together, n tokens of the
longest, S cache slots, R response tokens, D width, H heads, K key/value heads, d head width, V vocabulary, r LoRA rank."""
import functools, json, math, os, pathlib, re, shutil, zlib
from dataclasses import asdict, dataclass, field, fields
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
progress = functools.partial(tqdm, disable=RANK > 0, dynamic_ncols=True)

class InputError(ValueError):
    """The user's input is at fault: one sentence says what was found, where, and what to do."""
def require(good, sentence):
    if not good:
        raise InputError(sentence)

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}  # if the file is silent
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

def check(name, value, kind):
    """Raise InputError unless `value` is of the type `kind`; numbers must be positive and below 2^31."""
    number = kind in (int, float)
    require(type(value) in (int, kind) and 0 < value < 2 ** 31 if number else type(value) is kind,
            f"{name} = {value!r}; expected {'a positive ' * number}{kind.__name__}")
def supported(path, name, value, values):
    require(value in values, f"{path}: {name} {value!r} is not supported; expected {' or '.join(map(repr, values))}")

@dataclass
class Config:
    """The fields of config.json that shape the network; names as in the file. Raises InputError for a bad value."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = None  # null: as many as heads
    head_dim: int = None             # null: width / heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict = None        # of LLaMA-3.1, the fields LLAMA3_ROPE
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int = None       # Mistral-7B v0.1: a token sees so many tokens, itself included
    eos_token_id: list = field(default_factory=lambda: [2])  # every id that ends a text
    model_type: str = "llama"
    rest: dict = field(default_factory=dict)  # whatever else the file says, written back as it came
    def __post_init__(self):
        for f in fields(self):
            if f.default is not None or getattr(self, f.name) is not None:
                check(f.name, getattr(self, f.name), f.type)
        for name in LLAMA3_ROPE if self.rope_scaling else ():
            check(f"RoPE's {name}", self.rope_scaling[name], float)
        require(all(type(i) is int for i in self.eos_token_id), f"eos_token_id = {self.eos_token_id!r}; expected id(s)")
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        good = self.num_attention_heads % self.num_key_value_heads == self.head_dim % 2 == 0
        require(good and self.num_hidden_layers < 1000, f"{self.num_hidden_layers} layers, {self.num_attention_heads} heads "
                f"{self.head_dim} wide, {self.num_key_value_heads} for keys; expected under 1,000, an even width, whole groups")
    @classmethod
    def load(cls, folder):
        """Read folder/config.json. Raises InputError for what this model would silently compute wrongly."""
        path = os.path.join(folder, "config.json")
        raw = read_json(path)
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # newer and older schema
        rope = rope if isinstance(rope, dict) else {"type": rope}
        kind, eos = rope.get("rope_type", rope.get("type", "default")), raw.get("eos_token_id", 2)
        supported(path, "model_type", raw.get("model_type"), list(ARCHITECTURES))
        supported(path, "hidden_act", raw.get("hidden_act", "silu"), ["silu"])
        supported(path, "quantization_config", raw.get("quantization_config"), [None])
        supported(path, "RoPE type", kind, ["default", "llama3"])
        supported(path, "partial_rotary_factor", (raw | rope).get("partial_rotary_factor"), [None, 1])
        said = MISTRAL | raw if raw["model_type"] == "mistral" else raw | {"sliding_window": None}  # LLaMA has none
        known = {f.name: said[f.name] for f in fields(cls) if f.name in said}
        known |= {"rope_theta": (raw | rope).get("rope_theta", 10000.0), "rest": raw,
                  "rope_scaling": {k: rope.get(k) for k in LLAMA3_ROPE} if kind == "llama3" else None,
                  "eos_token_id": eos if isinstance(eos, list) else [] if eos is None else [eos]}
        try:
            return cls(**known)
        except (InputError, TypeError) as error:  # TypeError: a required field is missing
            raise InputError(f"{path}: {error}; expected the config.json of a LLaMA or Mistral") from None
    def save(self, folder, dtype):
        """Write config.json so that transformers reads the same network, RoPE in both schemas."""
        raw, dtype, eos = asdict(self), str(dtype).removeprefix("torch."), self.eos_token_id
        scaling = self.rope_scaling and {"rope_type": "llama3"} | self.rope_scaling
        write_json(os.path.join(folder, "config.json"), raw.pop("rest") | raw | {
            "architectures": [ARCHITECTURES[self.model_type]], "dtype": dtype, "torch_dtype": dtype,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None, "hidden_act": "silu", "rope_scaling": scaling,
            "rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": self.rope_theta}})

class Layout:
    """Where each of T tokens belongs when B sequences of the given lengths lie end to end, without padding. `start` [B]
    counts the tokens that a KV cache already holds. Only attention needs rectangles, so pad() and unpad() are used there
    alone; padding is on the right, where causal order hides it. `visible` [B, 1, n, s]: the slots that a query sees,
    where there is a cache or a sequence exceeds the sliding window; else None."""
    def __init__(self, lengths, device=None, start=None, window=None):
        sizes = torch.as_tensor(lengths, device=device)
        self.B, self.n, self.T = len(lengths), int(max(lengths)), int(sum(lengths))
        self.row = torch.repeat_interleave(torch.arange(self.B, device=device), sizes, output_size=self.T)  # [T]
        self.col = torch.arange(self.T, device=device) - (sizes.cumsum(0) - sizes)[self.row]  # [T]
        self.start = torch.zeros_like(sizes) if start is None else start                      # [B]
        self.position = self.col + self.start[self.row]                                       # [T]
        self.even = self.B * self.n == self.T
        self.visible = None
        if start is not None or window and window < self.n:
            slots = torch.arange(int((self.start + sizes).max()), device=device)                    # [s]
            query = self.start[:, None, None] + torch.arange(self.n, device=device)[None, :, None]  # [B, n, 1]
            self.visible = ((slots <= query) & (slots > query - (window or len(slots))))[:, None]   # [B, 1, n, s]
    def pad(self, x):
        """[T, H, d] -> [B, H, n, d]"""
        if self.even:
            return x.view(self.B, self.n, *x.shape[1:]).transpose(1, 2)
        return x.new_zeros(self.B, self.n, *x.shape[1:]).index_put((self.row, self.col), x).transpose(1, 2)
    def unpad(self, x):
        """[B, H, n, d] -> [T, H, d]"""
        x = x.transpose(1, 2)  # [B, n, H, d]
        return x.reshape(self.T, *x.shape[2:]) if self.even else x[self.row, self.col]

class KVCache:
    """Keys and values of B growing sequences; a row's slot s holds its token s, whatever the other rows' lengths."""
    def __init__(self, config, B, slots, device=None, dtype=torch.float32):
        shape = (config.num_hidden_layers, B, config.num_key_value_heads, slots, config.head_dim)
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))  # [L, B, K, S, d]
        self.used = torch.zeros(B, dtype=torch.long, device=device)                        # [B]
    def append(self, layer, k, v, layout):
        """Write k, v [T, K, d] into their slots; returns all that the queries may need, [B, K, s, d]."""
        for store, new in ((self.k[layer], k), (self.v[layer], v)):
            store[layout.row, :, layout.position] = new.to(store.dtype)
        return self.k[layer, :, :, :layout.visible.shape[-1]], self.v[layer, :, :, :layout.visible.shape[-1]]
    def keep(self, rows):
        """Drop every row but `rows` (an index tensor): finished sequences cost nothing further."""
        self.k, self.v, self.used = self.k[:, rows], self.v[:, rows], self.used[rows]

class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps
    def forward(self, x):  # [T, D]; in fp32, since bf16 squares lose the small components
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

def rope_table(config, position):
    """cos, sin [T, 1, d] for positions [T]: feature i and i + d/2 share the frequency theta^(-2i/d)."""
    i = torch.arange(0, config.head_dim, 2, device=position.device).float()  # [d/2]
    frequency = 1.0 / config.rope_theta ** (i / config.head_dim)
    if config.rope_scaling:  # LLaMA-3.1: long waves are stretched by the factor, short ones kept, a ramp between them
        factor, low, high, trained = (config.rope_scaling[k] for k in LLAMA3_ROPE)
        ramp = ((trained * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequency = (1 - ramp) * frequency / factor + ramp * frequency
    angle = (position[:, None].float() * frequency).repeat(1, 2)[:, None]  # [T, d/2] -> [T, 1, d]
    return angle.cos(), angle.sin()

def rotate(x, rope):
    """Rotate x [T, H, d] by its position; pairs are (first half, second half), not (even, odd)."""
    (cos, sin), (a, b) = rope, x.float().chunk(2, -1)  # [T, 1, d] twice, [T, H, d/2] twice
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)

class Linear(nn.Linear):
    """W x, and with LoRA (arXiv 2106.09685) W x + scale * B A x, where B starts at zero: at first nothing changes."""
    scale = None  # without LoRA
    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y + self.lora_B(self.lora_A(self.dropout(x))) * self.scale if self.scale else y

class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, bias, self.d = config.hidden_size, config.attention_bias, config.head_dim
        queries, keys = config.num_attention_heads * self.d, config.num_key_value_heads * self.d
        self.q_proj, self.k_proj, self.v_proj = (Linear(D, width, bias) for width in (queries, keys, keys))
        self.o_proj = Linear(queries, D, bias)
    def forward(self, x, rope, layout, cache, layer):  # x [T, D]
        q, k, v = (p(x).view(x.shape[0], -1, self.d) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rope), rotate(k, rope)  # [T, H, d], [T, K, d]
        if cache is None:
            k, v = layout.pad(k), layout.pad(v)  # [B, K, n, d]
        else:
            k, v = cache.append(layer, k, v, layout)  # [B, K, s, d]
        order = {"is_causal": True} if layout.visible is None else {"attn_mask": layout.visible}
        out = F.scaled_dot_product_attention(layout.pad(q), k.to(q.dtype), v.to(q.dtype), enable_gqa=True, **order)
        return self.o_proj(layout.unpad(out).flatten(1))  # [B, H, n, d] -> [T, H, d] -> [T, D]

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.mlp = nn.ModuleDict({"gate_proj": Linear(D, width, bias), "up_proj": Linear(D, width, bias),
                                  "down_proj": Linear(width, D, bias)})
    def forward(self, x, *where):  # [T, D]
        x = x + self.self_attn(self.input_layernorm(x), *where)
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))

class LlamaForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.source = self.lora = None  # the folder it was loaded from; the settings of its LoRA layers
        self.recompute = False          # activation checkpointing: only the input of each block is kept for the backward
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                                    "layers": nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
                                    "norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()
    def tie(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
    def forward(self, ids, lengths, cache=None, at=None):
        """Logits [R, V] of the next token. ids [T]: sequences end to end. lengths: B ints that sum to T. cache: a KVCache
        of B rows, which these tokens continue and are added to. at [R]: the positions in 0..T-1 whose logits are wanted
        (default: all); the vocabulary projection, the largest tensor of a step, is computed there alone."""
        layout = Layout(lengths, ids.device, None if cache is None else cache.used, self.config.sliding_window)
        if cache is not None:
            cache.used = cache.used + torch.as_tensor(lengths, device=ids.device)
        x = self.model.embed_tokens(ids)  # [T, D]
        rope = rope_table(self.config, layout.position)
        for i, block in enumerate(self.model.layers):
            where, again = (rope, layout, cache, i), self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, *where, use_reentrant=False) if again else block(x, *where)
        x = self.model.norm(x if at is None else x[at])  # [R, D]
        return self.lm_head(x)                           # [R, V]

def add_lora(model, r, lora_alpha, target_modules, lora_dropout=0.0, rank_pattern=None, alpha_pattern=None, use_rslora=False):
    """Freeze the model and attach LoRA, on torch's default device, to every linear layer that `target_modules` names. The rules
    are those of PEFT's adapter_config.json: target_modules is a list of last names (q_proj) or a regular expression of whole
    names; the patterns, {regular expression: value}, set r and alpha of the layers whose names end so; the scale is alpha / r,
    with use_rslora alpha / sqrt(r). Raises InputError."""
    linears, targets = {n: m for n, m in model.named_modules() if isinstance(m, Linear)}, target_modules
    found = {targets: [n for n in linears if re.fullmatch(targets, n)]} if isinstance(targets, str) else {
        t: [n for n in linears if f".{n}".endswith(f".{t}")] for t in targets}
    names = ", ".join(sorted({n.split(".")[-1] for n in linears}))
    require(found and all(found.values()), f"LoRA targets {targets!r}: expected some of {names}")
    require(0 <= lora_dropout <= 1, f"LoRA dropout {lora_dropout!r}: expected 0 to 1")
    model.requires_grad_(False)
    for name in [n for n in linears if any(n in names for names in found.values())]:
        rank, alpha = (next((v for k, v in (values or {}).items() if re.match(rf"(.*\.)?({k})$", name)), default)
                       for values, default in ((rank_pattern, r), (alpha_pattern, lora_alpha)))
        check(f"rank of {name}", rank, int)
        check(f"lora_alpha of {name}", alpha, float)
        m = linears[name]
        m.lora_A, m.lora_B = nn.Linear(m.in_features, rank, bias=False), nn.Linear(rank, m.out_features, bias=False)
        nn.init.kaiming_uniform_(m.lora_A.weight, a=math.sqrt(5))  # [r, in]
        nn.init.zeros_(m.lora_B.weight)                            # [out, r]
        m.dropout, m.scale = nn.Dropout(lora_dropout), alpha / (rank ** 0.5 if use_rslora else rank)
    model.lora = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "target_modules": targets,
                  "rank_pattern": rank_pattern or {}, "alpha_pattern": alpha_pattern or {}, "use_rslora": use_rslora}

@torch.no_grad()
def merge_lora(model):
    """Fold every adapter into its weight, in place: the same function, a plain LLaMA again."""
    for m in [m for m in model.modules() if isinstance(m, Linear) and m.scale]:
        delta = m.lora_B.weight.float() @ m.lora_A.weight.float() * m.scale  # summed in fp32
        m.weight = nn.Parameter((m.weight.float() + delta).to(m.weight.dtype))
        del m.lora_A, m.lora_B, m.dropout, m.scale
    model.config.tie_word_embeddings &= model.lm_head.weight is model.model.embed_tokens.weight  # else lm_head had LoRA
    model.lora = None

PEFT = "base_model.model."  # the prefix of every tensor name in PEFT's adapter files
LORA = {"r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora"}
INERT = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
         "megatron_core", "qalora_group_size"}  # fields of adapter_config.json that do not change what is computed
PLAIN = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, False, "gaussian"]}
BESIDE = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
          "chat_template.jinja", "generation_config.json")  # files that go with the weights

def read_json(path):
    try:
        return dict(json.loads(pathlib.Path(path).read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        said = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"{path}: {said}; expected a JSON object of a model folder in Hugging Face format") from None
def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
def checksum(tensor):
    return str(zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy()))

def read_tensors(folder, stem, expected, dtype=None, device="cpu", spare=()):
    """Yield (name, tensor) of folder/stem.safetensors, or of the files in its index, which must together hold exactly
    `expected`, {name: parameter}; each as sharded as its parameter. dtype None: as stored. spare: names that may be absent.
    Every header is checked first, then tensors are converted one by one: host memory holds one copy and a tensor more."""
    files, places = [os.path.join(folder, f"{stem}.safetensors")], {}
    index = files[0] + ".index.json"
    if not os.path.exists(files[0]) and os.path.exists(index):
        names = read_json(index).get("weight_map")
        good = isinstance(names, dict) and names and all(isinstance(v, str) for v in names.values())
        require(good, f"{index}: no weight_map from tensors to files; copy it again")
        files = [os.path.join(folder, name) for name in sorted(set(names.values()))]
    for path in files:
        try:
            f = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            size = f"{os.path.getsize(path):,} bytes" if os.path.exists(path) else "no such file"
            raise InputError(f"{path}: {size}; expected a whole safetensors file ({error}); copy it again") from None
        stated = {k: v for k, v in (f.metadata() or {}).items() if "crc32" in k}  # where write_tensors wrote the file
        for name in f.keys():
            if name.endswith("rotary_emb.inv_freq"):  # a constant that older conversions store
                continue
            shape, kind = tuple(f.get_slice(name).get_shape()), f.get_slice(name).get_dtype()
            wanted = tuple(expected[name].shape) if name in expected and name not in places else "no such tensor"
            require(shape == wanted and kind in ("F64", "F32", "F16", "BF16"), f"{path}: tensor {name} has shape {shape}, "
                    f"expected {wanted}, of floats, not {kind}; config and weights do not belong together")
            places[name] = path, stated and stated.get(f"crc32 {name}", "none")
    for name in [n for n in expected if n not in places and n not in spare]:
        raise InputError(f"{files[0]}: tensor {name} of shape {tuple(expected[name].shape)} is missing in {len(files)} files")
    for name, (path, crc) in progress(places.items(), desc="loading", unit="tensor", leave=False, delay=3):
        with safe_open(path, framework="pt") as f:  # anew for each tensor, or every page of the file stays mapped
            tensor, like = f.get_tensor(name), expected[name]
        good = (not crc or crc == checksum(tensor)) and all(map(torch.isfinite, tensor.aminmax()))
        require(good, f"{path}: tensor {name} is damaged (wrong checksum, or NaN); copy it again")
        tensor = tensor.to(device, dtype, copy=True)
        if isinstance(like, DTensor):  # every process reads the file and keeps its part
            tensor = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
        yield name, tensor

def load_model(folder, dtype=None, device="cpu", base=None, prepare=lambda model: None):
    """The model of a Hugging Face folder, or of a LoRA folder on `base` (default: the base that it names), in `dtype`
    (None: as stored; LoRA is fp32). Every tensor must be there, in the right shape, and no other; else InputError.
    prepare(model) may attach LoRA and shard() before there are weights, so that no process ever holds them all."""
    path, source, lora = os.path.join(folder, "adapter_config.json"), folder, {}
    if os.path.exists(path):
        lora = {"peft_type": None} | read_json(path)
        for name in sorted(lora.keys() - LORA - INERT):  # what would change the computation is refused by name
            supported(path, name, lora[name], PLAIN.get(name, [None, False, "", [], {}]))
        source = base or lora.get("base_model_name_or_path")
        require(os.path.isdir(str(source)), f"{path}: base model {source!r} is no folder here; name the folder with --model")
    config = Config.load(source)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.source = os.path.abspath(source)
    with torch.device(device):  # LoRA is made there, the rest is still without memory
        try:
            if lora:
                add_lora(model, **{name: lora[name] for name in LORA & lora.keys()})
        except (InputError, TypeError, ValueError, AttributeError, re.error) as error:
            raise InputError(f"{path}: {error}; expected the settings of a LoRA adapter in PEFT's format") from None
        prepare(model)
    head, table, named = "lm_head.weight", "model.embed_tokens.weight", dict(model.named_parameters(remove_duplicate=False))
    tensors, spare = {n: p for n, p in named.items() if "lora_" not in n}, [head] * config.tie_word_embeddings
    tensors = dict(read_tensors(source, "model", tensors, dtype, device, spare))
    require(not spare or torch.equal(tensors.setdefault(head, tensors[table]), tensors[table]),
            f"{source}: config.json ties the word embeddings, but {head} differs from {table}")
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie()
    if lora:
        tensors = {PEFT + n: p for n, p in named.items() if "lora_" in n}
        tensors = read_tensors(folder, "adapter_model", tensors, torch.float32, device)
        model.load_state_dict({n.removeprefix(PEFT): t for n, t in tensors}, strict=False, assign=True)
    return model

def shard(model, device):
    """Split every parameter over the processes of torchrun (FSDP2): a block's weights are whole only while it computes."""
    mesh = init_device_mesh(torch.device(device).type, (WORLD,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)  # gradients are sums over processes
        part.set_force_sum_reduction_for_comms(True)

def whole(tensor):
    """A parameter, its gradient or a norm of them, gathered from all processes; each of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def write_tensors(folder, stem, tensors, limit=5e9):
    """Write {name: tensor} as safetensors with checksums, in files of about `limit` bytes, with an index if there are several.
    All processes gather, the first one writes; memory holds one file's tensors."""
    os.makedirs(folder, exist_ok=True)
    total, parts, index = 0, {}, {}
    for name, p in tensors.items():
        parts.setdefault(total // limit, {})[name] = p
        total += p.nbytes
    for i, part in enumerate(parts.values(), start=1):
        file = stem + f"-{i:05}-of-{len(parts):05}" * (len(parts) > 1) + ".safetensors"
        for name in part:
            p = whole(part[name].detach())
            part[name] = p.cpu().contiguous() if RANK == 0 else p.new_empty(0)
        if RANK == 0:
            save_file(part, os.path.join(folder, file), {"format": "pt"} | {f"crc32 {n}": checksum(p) for n, p in part.items()})
        index |= dict.fromkeys(part, file)
    if RANK == 0 and len(parts) > 1:
        write_json(f"{folder}/{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})

def save_model(model, folder, tokenizer_from=None, limit=5e9):
    """Write the adapter alone (PEFT's format) if the model has LoRA layers, else a full Hugging Face folder; beside it
    the tokenizer's files. All processes take part."""
    tensors, lora = dict(model.named_parameters()), model.lora
    if lora:
        tensors, limit = {PEFT + n: p for n, p in tensors.items() if "lora_" in n}, math.inf
    write_tensors(folder, "adapter_model" if lora else "model", tensors, limit)
    if RANK == 0 and lora:
        write_json(os.path.join(folder, "adapter_config.json"), lora | {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model.source, "bias": "none",
            "fan_in_fan_out": False, "inference_mode": True})
    elif RANK == 0:
        model.config.save(folder, model.lm_head.weight.dtype)
    for path in [os.path.join(d, file) for d in (not lora and model.source, tokenizer_from) if d for file in BESIDE]:
        if RANK == 0 and os.path.exists(path) and os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
            shutil.copy(path, folder)
