"""Times a pretraining step beside the same step in PyTorch, eager and compiled, and beside the products of matrices it is made of.

python -m experiments.bench_step [--sizes small base large] [--dtypes float32 bfloat16] [--rows 4] [--rounds 5] [--seconds 6]

All sides train one model (same layers, bias, loss, dropout, clipping and AdamW) on the same random rows, on whatever device JAX and PyTorch
find. Each is a process of its own, in which nothing else has threads or memory; they take turns, and medians are compared. The peak is the
speed of a large product of matrices, the best that either reaches in the same run; the share counts the products that the model needs,
three times for training. One side more trains the model on unmasked steps alone (`objective.decoder_width`, a quarter of the model's):
another network, of which only the speed is compared.
Needs no TensorFlow, and without PyTorch (requirements-bench.txt) times this package alone.
"""

import argparse
import contextlib
import functools
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is shared with PyTorch

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jax_emossl import memory
from jax_emossl.encoders import transformer
from jax_emossl.loop import train_step
from jax_emossl.objectives.masked_timesteps import MaskedTimesteps
from jax_emossl.optimizer import Optimizer, Rates

_FEATURES, _DROPOUT, _RATIO, _SPAN, _NARROWER = 100, 0.1, 0.75, 10, 4
_OPTIMIZER = Optimizer(b2=0.98, weight_decay=0.01, clip_norm=1.0, warmup_steps=100, steps=10_000)
_RATE, _AT_ONCE = 1e-3, 3  # steps that are waited for together
_LEAD_IN = 2.0  # seconds of a turn that are not timed: for about one a system may keep threads that were woken on one core


class Size(NamedTuple):
    """Of a model, and of its batches: rows of so many model steps."""

    width: int
    layers: int
    heads: int
    rows: int
    steps: int

    @property
    def products(self) -> float:
        """Operations in the products of one training step: forward, and twice as many backward."""
        per_step = 2 * 2 * _FEATURES * self.width + self.layers * (2 * 12 * self.width**2 + 4 * self.steps * self.width)
        return 3.0 * self.rows * self.steps * per_step

    @property
    def features(self) -> np.ndarray:
        """Random rows."""
        return np.random.default_rng(0).normal(size=(self.rows, self.steps, _FEATURES)).astype(np.float32)


_Side = tuple[Callable[[], object], int]  # runs `_AT_ONCE` steps to their end; and how many parameters it has
SIZES = {"small": Size(64, 3, 4, 64, 64), "base": Size(256, 4, 4, 64, 128), "large": Size(768, 12, 12, 16, 512)}


def ours(size: Size, dtype: str, unmasked_alone: bool = False) -> _Side:
    """Training steps of this package."""
    encoder = transformer.Transformer(size.width, size.layers, size.heads, dropout=_DROPOUT, dtype=dtype)
    decoder_width = size.width // _NARROWER if unmasked_alone else 0
    objective = MaskedTimesteps(encoder, _FEATURES, _RATIO, _SPAN, "l1", decoder_width=decoder_width)
    rows = np.arange(size.rows, dtype=np.int32)
    batch = {"features": size.features, "num_steps": np.full_like(rows, size.steps), "weight": np.ones(size.rows, np.float32)}
    batch = jax.device_put(batch | {"segment": rows, "num_frames": np.full_like(rows, size.steps)})
    rates, key = Rates(np.float32(_RATE), np.float32(1), np.int32(0)), jax.random.key(0)
    step_of = jax.jit(train_step, static_argnames=("objective", "optimizer"), donate_argnames=("variables", "opt_state"))
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    state = {"params": params, "constants": {}}, _OPTIMIZER.transformation().init(params)
    number = sum(leaf.size for leaf in jax.tree.leaves(params))

    def turn() -> None:
        nonlocal state
        for step in range(_AT_ONCE):
            *state, sums = step_of(objective, _OPTIMIZER, rates, key, *state, jnp.int32(step), batch)
        jax.block_until_ready((state, sums))

    return turn, number


def peer(size: Size, dtype: str, compiled: bool) -> _Side:
    """The same of PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    distance = np.arange(size.steps)
    bias = transformer.locality(distance[None, :] - distance[:, None], transformer.slopes(size.heads, 2.0, 8.0))
    half = size.width // size.heads // 2
    angle = np.arange(size.steps)[:, None] * transformer._ROTARY_BASE ** (-np.arange(half) / half)
    cosine, sine = (np.tile(own(angle), 2) * sign for own, sign in ((np.cos, 1), (np.sin, np.repeat([-1, 1], half))))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            width = size.width
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x, bias, cosine, sine):
            qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, size.heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = (part * cosine + part.roll(half, -1) * sine for part in qkv[:2])
            mixed = F.scaled_dot_product_attention(query.to(bias.dtype), key.to(bias.dtype), qkv[2].to(bias.dtype), bias)
            x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), _DROPOUT)
            hidden = F.gelu(self.up(self.norms[1](x)), approximate="tanh")
            return x + F.dropout(self.down(hidden), _DROPOUT)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.projection, self.mask = nn.Linear(_FEATURES, size.width), nn.Parameter(torch.zeros(size.width))
            self.layers = nn.ModuleList(Layer() for _ in range(size.layers))
            self.norm, self.reconstruction = nn.LayerNorm(size.width), nn.Linear(size.width, _FEATURES)
            for name, value, own in (("bias", bias, kind), ("cosine", cosine, torch.float32), ("sine", sine, torch.float32)):
                self.register_buffer(name, torch.tensor(np.asarray(value)).to(own))

        def forward(self, features, masked):
            x = torch.where(masked[..., None], self.mask, self.projection(features).float())
            for layer in self.layers:
                x = layer(x, self.bias, self.cosine, self.sine)
            return self.reconstruction(self.norm(x))

    model = Model().to(device)
    run = torch.compile(model) if compiled else model
    adam = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, _OPTIMIZER.b2), weight_decay=_OPTIMIZER.weight_decay)
    inputs = torch.tensor(size.features, device=device)

    def turn() -> None:
        for _ in range(_AT_ONCE):
            masked = torch.rand(inputs.shape[0], size.steps // 8, device=device).repeat_interleave(8, 1) < _RATIO
            with torch.autocast(device, kind, enabled=dtype != "float32"):
                error = (run(inputs, masked).float() - inputs).abs().mean(-1)
            loss = (error * masked).sum() / masked.sum()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _OPTIMIZER.clip_norm)
            adam.step()
        loss.item()

    return turn, sum(parameter.numel() for parameter in model.parameters())


def products(side: int, dtype: str, of_pytorch: bool) -> _Side:
    """Products of two square matrices instead of steps."""
    if not of_pytorch:
        x = jnp.ones((side, side), dtype)
        product = jax.jit(jnp.matmul)
        return lambda: jax.block_until_ready([product(x, x) for _ in range(_AT_ONCE)]), 0
    import torch

    y = torch.ones((side, side), dtype=getattr(torch, dtype), device="cuda" if torch.cuda.is_available() else "cpu")
    return lambda: [y @ y for _ in range(_AT_ONCE)][-1][0, 0].item(), 0


def _serve(make: Callable[[], _Side], pipe: Connection) -> None:
    """Times a side's steps for as many seconds as it is told, again and again; says first how many parameters it has."""
    run, number = make()
    run()
    pipe.send(number)
    while True:
        seconds, begun, took = pipe.recv(), time.perf_counter(), []
        while (now := time.perf_counter()) - begun < _LEAD_IN + seconds or not took:
            run()
            if now - begun >= _LEAD_IN:
                took.append((time.perf_counter() - now) / _AT_ONCE)
        pipe.send(took)


@contextlib.contextmanager
def _process(make: Callable[[], _Side]) -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(make, other), daemon=True)
    process.start()
    other.close()  # so that a process that fails is not waited for
    try:
        yield pipe
    finally:
        process.kill()
        process.join()


def _said(name: str, pipe: Connection) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"error: {name} has ended by itself, perhaps for want of memory: give fewer --rows.") from None


def medians(sides: dict[str, Callable[[], _Side]], rounds: int, seconds: float) -> dict[str, tuple[float, int]]:
    """Median seconds of one step of each side, in turns of so many seconds, and its number of parameters."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        pipes, numbers = {}, {}
        for name, make in sides.items():  # one compiles, then the next
            pipes[name] = stack.enter_context(_process(make))
            numbers[name] = _said(name, pipes[name])
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(seconds)
                took[name] += _said(name, pipe)
    return {name: (statistics.median(own), numbers[name]) for name, own in took.items()}


def measure(name: str, size: Size, dtype: str, rounds: int, seconds: float) -> list[str]:
    """What is said of one size and dtype, in lines."""
    plain, visible = "jax_emossl", "jax_emossl, unmasked steps alone"
    sides = {plain: functools.partial(ours, size, dtype), visible: functools.partial(ours, size, dtype, unmasked_alone=True)}
    side = 1024 if jax.devices()[0].platform == "cpu" else 8192
    limits = {"JAX": functools.partial(products, side, dtype, of_pytorch=False)}
    if importlib.util.find_spec("torch"):
        sides |= {f"PyTorch {how}": functools.partial(peer, size, dtype, how == "compiled") for how in ("eager", "compiled")}
        limits["PyTorch"] = functools.partial(products, side, dtype, of_pytorch=True)
    peak = 2 * side**3 / min(took for took, _ in medians(limits, 2, 1).values())
    found = medians(sides, rounds, seconds)
    lines = [f"{name}, {dtype}: {size.rows} x {size.steps} steps; peak {peak / 1e12:.2f} TFLOP/s in products of {side} x {side}"]
    for own, (took, number) in found.items():
        said = [f"{1e3 * took:.1f} ms a step", f"{size.rows / took:,.0f} utterances a second"]
        if own == visible:
            said.append(f"{found[plain][0] / took:.2f} times as many")
        else:
            said.append(f"{size.products / took / peak:.0%} of the peak")
            said += [f"{took / found[plain][0]:.2f} times ours"] if own != plain else []
        lines.append(f"  {own} ({number / 1e6:.2f} M parameters): {', '.join(said)}")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, help="of a batch, where as many as the size has take too much memory")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=6, help="of a turn, after two that are not timed")
    arguments = parser.parse_args()
    print(f"on {jax.devices()[0].device_kind}; medians of {arguments.rounds} alternated turns")
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed: this package alone")
    for name, dtype in tqdm([(name, dtype) for name in arguments.sizes for dtype in arguments.dtypes], leave=False, disable=None):
        size = SIZES[name]._replace(rows=arguments.rows or SIZES[name].rows)
        tqdm.write("\n".join(measure(name, size, dtype, arguments.rounds, arguments.seconds)))


if __name__ == "__main__":
    memory.keep_freed()
    main()
