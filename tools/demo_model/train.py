"""Train a demo model with quantisation-aware training, then write its weights and goldens.

The model is a small Qwen3. Every matrix is quantised in the forward pass and trained through a
straight-through estimator. ``OUT.npz`` holds, for a matrix NAME, ``NAME.q`` (int8, groups of 128
values -1, 0, +1) and ``NAME.d`` (one half scale a group), and the norms as float32.
``OUT-golden.npz`` holds what Hugging Face transformers computes from them in float64.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 512, 1536, 6, 4, 2, 128, 4096
THETA, EPS, GROUP, CONTEXT = 1e6, 1e-6, 128, 256
MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}
NORMS = {
    "attn_norm": HIDDEN,
    "ffn_norm": HIDDEN,
    "attn_q_norm": HEAD_DIM,
    "attn_k_norm": HEAD_DIM,
}
TRANSFORMERS_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PROMPTS = (
    "Alice was beginning to get very tired of sitting by her sister",
    "The Queen of Hearts",
    "Of Man's first disobedience, and the fruit",
)
Weights = dict[str, Any]


def quantise(kind: str, w: Any) -> tuple[Any, Any]:
    """Return values -1, 0, +1 [rows, groups, 128] and scales [rows, groups, 1] of `w`.

    q1: the signs, scaled by the mean magnitude. tq2: zero below half of the mean magnitude, scaled
    by the mean of the magnitudes that are kept.
    """
    groups = w.float().view(w.shape[0], -1, GROUP)
    mean = groups.abs().mean(-1, keepdim=True)
    if kind == "q1":
        return torch.where(groups >= 0, 1.0, -1.0), mean.half().float()
    q = (groups / (mean + 1e-8)).round().clamp(-1, 1)
    kept = q.abs()
    d = (groups.abs() * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
    return q, d.half().float()


def straight_through(kind: str, w: Any) -> Any:
    """Return `w` quantised, with the gradient of `w` itself."""
    q, d = quantise(kind, w)
    return (q * d).view_as(w).detach() + (w - w.detach())


def initial_weights(device: str) -> Weights:
    """Return the trainable tensors by their GGUF names."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in MATRICES.items()}
        shapes |= {f"blk.{i}.{name}.weight": (n,) for name, n in NORMS.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    return {
        name: (torch.randn(shape) * 0.02 if len(shape) == 2 else torch.ones(shape))
        .to(device)
        .requires_grad_()
        for name, shape in shapes.items()
    }


def rms_norm(x: Any, weight: Any) -> Any:
    """Return `x` over its root mean square, times `weight`, computed in float32."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return (wide * scale * weight).to(x.dtype)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Apply rotary position embedding on halves."""
    a, b = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(kind: str, weights: Weights, tokens: Any, cos: Any, sin: Any) -> Any:
    """Return the logits [batch, time, vocab] of `tokens` [batch, time]."""
    batch, length = tokens.shape
    embedding = straight_through(kind, weights["token_embd.weight"]).to(torch.bfloat16)
    x = F.embedding(tokens, embedding)
    for i in range(LAYERS):

        def matrix(name: str, h: Any, i: int = i) -> Any:
            w = straight_through(kind, weights[f"blk.{i}.{name}.weight"])
            return F.linear(h, w.to(h.dtype))

        def norm(name: str, h: Any, i: int = i) -> Any:
            return rms_norm(h, weights[f"blk.{i}.{name}.weight"])

        h = norm("attn_norm", x)
        q, k, v = (
            matrix(name, h).view(batch, length, heads, HEAD_DIM)
            for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS))
        )
        q = rotate(norm("attn_q_norm", q).transpose(1, 2), cos, sin)
        k = rotate(norm("attn_k_norm", k).transpose(1, 2), cos, sin)
        a = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        x = x + matrix("attn_output", a.transpose(1, 2).reshape(batch, length, -1))
        h = norm("ffn_norm", x)
        x = x + matrix("ffn_down", F.silu(matrix("ffn_gate", h)) * matrix("ffn_up", h))
    return F.linear(rms_norm(x, weights["output_norm.weight"]), embedding)


def train(kind: str, tokens: Any, steps: int, batch: int, device: str) -> Weights:
    """Return weights trained for `steps` on random windows of `tokens`."""
    weights = initial_weights(device)
    frequencies = THETA ** (-torch.arange(HEAD_DIM // 2).float() / (HEAD_DIM // 2))
    angles = torch.outer(torch.arange(CONTEXT).float(), frequencies).to(device)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    optimiser = torch.optim.AdamW(
        list(weights.values()), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0
    )
    step_forward = torch.compile(forward) if device == "cuda" else forward
    start = time.monotonic()
    for step in range(steps):
        warm_up = min(1.0, (step + 1) / 150)
        decay = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimiser.param_groups[0]["lr"] = 3e-3 * warm_up * decay + 2e-5
        first = torch.randint(0, len(tokens) - CONTEXT - 1, (batch, 1)).to(device)
        window = tokens[first + torch.arange(CONTEXT + 1, device=device)]
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = step_forward(kind, weights, window[:, :-1], cos, sin)
        loss = F.cross_entropy(logits.float().view(-1, VOCAB), window[:, 1:].reshape(-1))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"{kind} {step} {loss.item():.3f} {time.monotonic() - start:.1f} s", flush=True)
    return weights


def to_arrays(kind: str, weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of ``OUT.npz``."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, w in weights.items():
        if w.dim() == 1:
            arrays[name] = w.detach().cpu().numpy().astype(np.float32)
            continue
        q, d = quantise(kind, w.detach())
        arrays[name + ".q"] = q.cpu().numpy().astype(np.int8)
        arrays[name + ".d"] = d.squeeze(-1).cpu().numpy().astype(np.float16)
    return arrays


def goldens(
    arrays: dict[str, np.ndarray[Any, Any]], tokenizer: Tokenizer
) -> dict[str, np.ndarray[Any, Any]]:
    """Return ids, logits and 64 greedy tokens of each prompt, from transformers in float64."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def dense(name: str) -> Any:
        if name in arrays:
            return torch.from_numpy(arrays[name]).double()
        q, d = arrays[name + ".q"], arrays[name + ".d"]
        w = q.astype(np.float64) * d.astype(np.float64)[..., None]
        return torch.from_numpy(w.reshape(len(q), -1))

    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        attention_bias=False,
        attn_implementation="eager",
    )
    model = Qwen3ForCausalLM(config).double().eval()
    state = {
        "model.embed_tokens.weight": dense("token_embd.weight"),
        "model.norm.weight": dense("output_norm.weight"),
    }
    for i in range(LAYERS):
        for ours, theirs in TRANSFORMERS_NAMES.items():
            state[f"model.layers.{i}.{theirs}.weight"] = dense(f"blk.{i}.{ours}.weight")
    result = model.load_state_dict(state, strict=False)
    if result.unexpected_keys or set(result.missing_keys) - {"lm_head.weight"}:
        raise SystemExit(f"transformers names its weights otherwise: {result}")

    golden: dict[str, np.ndarray[Any, Any]] = {}
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS):
            ids = tokenizer.encode(prompt).ids
            tokens = torch.tensor([ids])
            golden[f"p{i}.ids"] = np.array(ids, np.int32)
            golden[f"p{i}.logits"] = model(tokens).logits[0].float().numpy()
            out = model.generate(
                tokens, max_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None
            )
            greedy = out[0, len(ids) :].tolist()
            golden[f"p{i}.greedy"] = np.array(greedy, np.int32)
            print(f"{prompt!r} -> {tokenizer.decode(greedy)!r}")
    return golden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("q1", "tq2"), help="1-bit or ternary weights")
    parser.add_argument("out", type=Path, help="the .npz of the weights")
    parser.add_argument("--corpus", type=Path, default=Path("."), help="corpus.py's output folder")
    parser.add_argument("--steps", type=int, help="default: 7000 for q1, 6000 for tq2")
    parser.add_argument("--batch", type=int, default=96, help="windows of 256 tokens a step")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    raw = np.fromfile(args.corpus / "tokens.bin", dtype=np.uint16).astype(np.int64)
    tokens = torch.from_numpy(raw).to(args.device)
    steps = args.steps or {"q1": 7000, "tq2": 6000}[args.kind]
    arrays = to_arrays(args.kind, train(args.kind, tokens, steps, args.batch, args.device))
    np.savez_compressed(args.out, **arrays)  # type: ignore[arg-type]
    golden = goldens(arrays, Tokenizer.from_file(str(args.corpus / "tokenizer.json")))
    np.savez_compressed(args.out.with_name(args.out.stem + "-golden.npz"), **golden)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
