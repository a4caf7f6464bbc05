"""Where a student starts: the teacher with layers dropped, or another model's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import InputError
from limbeck.files import whole_folder
from limbeck.models.head import Head
from limbeck.models.local import LocalModel, device, load_network
from limbeck.models.protocol import Asked
from limbeck.models.tokenizer import ChatTokenizer, load_tokenizer, tokenizer_hash
from limbeck.models.weights import Weights, ordinary_folder
from limbeck.progress import stage_bar
from limbeck.records import Example
from limbeck.run import Fact
from limbeck.sections import StudentSection
from limbeck.train.batch import Batch, check_packing, pack
from limbeck.train.examples import render

SHORTLIST = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """Which layers stay, and the mean KL in nats a token that dropping the others cost."""

    kept: tuple[int, ...]
    kl: float


def choose_layers(
    head: Head,
    examples: Sequence[Example],
    layers: int,
    on_drop: Callable[[float], None] = lambda _: None,
) -> Choice:
    """Drop layers one at a time, each the one whose loss the teacher's answers feel least.

    For every drop the network that is left is run once over `examples`, and each layer's block
    influence is measured, 1 − cosine between what enters and what leaves it (ShortGPT, arXiv
    2403.03853). The few least influential are then tried, and the one goes without which the
    forward KL from the whole teacher on its own answer tokens is smallest. The network is left as
    it was.
    """
    body = head.body
    whole = _Whole(body.layers, getattr(body.config, "layer_types", None))
    check_packing(body, examples)
    batch = pack(examples, max(len(e.token_ids) for e in examples)).to(device())
    kept = list(range(len(whole.layers)))
    kl = 0.0
    try:
        with torch.inference_mode():
            teacher = head(_states(body, batch)).float().log_softmax(-1)
            while len(kept) > layers:
                influence = _influence(body, whole, kept, batch)
                shortlist = sorted(kept, key=lambda i: influence[i])[:SHORTLIST]
                costs = {
                    i: _kl_without(body, head, whole, [k for k in kept if k != i], batch, teacher)
                    for i in shortlist
                }
                gone = min(costs, key=lambda i: (costs[i], i))
                kept.remove(gone)
                kl = costs[gone]
                on_drop(kl)
    finally:
        _use(body, whole, range(len(whole.layers)))
    return Choice(tuple(kept), kl)


def drop_layers(network: Any, kept: Sequence[int]) -> None:
    """Keep only these decoder layers, in place, and make the configuration say so."""
    config, body = network.config, network.base_model
    if list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < len(body.layers):
        raise InputError(f"Layers {list(kept)} cannot be kept of {len(body.layers)}")
    for number, old in enumerate(kept):
        for module in body.layers[old].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # the cache is filed under it
    body.layers = torch.nn.ModuleList(body.layers[i] for i in kept)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[i] for i in kept]
    config.num_hidden_layers = len(kept)


def start_from_layers(
    teacher: LocalModel, section: StudentSection, asked: Sequence[Asked], start: Path
) -> dict[str, Fact]:
    """Write to `start` the teacher with its least needed layers dropped, in float32.

    `asked` are answers to measure on. Returns how many stayed, which, and what dropping cost.
    """
    wanted = layers_wanted(section, teacher.network)
    examples = render(asked, teacher.tokenizer)
    drops = teacher.layers - wanted
    with stage_bar("student", max(drops, 1), "layers dropped") as meter:
        choice = choose_layers(
            teacher.head,
            examples,
            wanted,
            lambda kl: meter.advance(rows=1, note=f"KL {kl:.2f}"),
        )
    network: Any = load_network(teacher.folder, torch.float32)
    drop_layers(network, choice.kept)
    with whole_folder(start) as part:
        network.save_pretrained(part)
        teacher.tokenizer.inner.save_pretrained(part)
    return {
        "layers": wanted,
        "of": teacher.layers,
        "parameters": sum(p.numel() for p in network.parameters()),
        "kl_at_start": round(choice.kl, 4),
        "layers_kept": ",".join(map(str, choice.kept)),
        "method": f"dropped one at a time by forward KL, among the {SHORTLIST} of least influence",
    }


def start_from_model(base: Weights, teacher: Weights, start: Path) -> dict[str, Fact]:
    """Write to `start` another model's weights, in float32, with the teacher's chat template.

    Raises InputError where its tokenizer cuts text otherwise than the teacher's.
    """
    folder = ordinary_folder(base)
    ours, theirs = ChatTokenizer(ordinary_folder(teacher)), load_tokenizer(folder)
    if tokenizer_hash(theirs) != ours.hash:
        raise InputError(
            f"student.base {base.name} has another tokenizer than the teacher {teacher.name} "
            f"({len(theirs)} and {len(ours.inner)} tokens), so the teacher's distribution says "
            "nothing about its tokens. Choose a base of the teacher's family."
        )
    network: Any = load_network(folder, torch.float32)
    return _written(base, network, ours, start)


def start_as_it_is(
    base: Weights, tokenizer: ChatTokenizer, asked: Sequence[Asked], start: Path
) -> dict[str, Fact]:
    """Write to `start` a model's weights, in float32, with its own tokenizer and chat template.

    `asked` are all answers in its tokens. Raises InputError naming a prompt that with its answer
    is longer than the model's context.
    """
    network: Any = load_network(ordinary_folder(base), torch.float32)
    context = getattr(network.config, "max_position_embeddings", None) or 1 << 30
    for prompt, answer in asked:
        length = len(tokenizer.prompt_ids(prompt)) + len(answer.token_ids)
        if length > context:
            raise InputError(
                f"{prompt.source}: prompt and answer have {length} of the student's tokens, and "
                f"{base.name} reads {context}. Take the prompt out (limbeck collect RUN "
                "--drop-source FILE:ROW), lower teacher.max_tokens, or choose another student.base."
            )
    return _written(base, network, tokenizer, start)


def _written(base: Weights, network: Any, tokenizer: ChatTokenizer, start: Path) -> dict[str, Fact]:
    """Write where a student starts from a model of its own; what the manifest keeps of it."""
    with whole_folder(start) as part:
        network.save_pretrained(part)
        tokenizer.inner.save_pretrained(part)
    return {
        "base": base.name,
        "fingerprint": base.fingerprint,
        "parameters": sum(p.numel() for p in network.parameters()),
        "layers": int(network.config.num_hidden_layers),
    }


def layers_wanted(section: StudentSection, network: Any) -> int:
    """How many of this network's layers the recipe leaves."""
    there = len(network.base_model.layers)
    layer = sum(p.numel() for p in network.base_model.layers[0].parameters())
    rest = sum(p.numel() for p in network.parameters()) - there * layer
    return section.layers_left(there, layer, rest)


@dataclass(frozen=True, slots=True)
class _Whole:
    """All layers of a body, and the kind of attention in each where there are several."""

    layers: Any
    kinds: list[str] | None


def _states(body: Any, batch: Batch) -> Tensor:
    """Final states (N, hidden) that predict learnt tokens."""
    out = body(
        input_ids=batch.token_ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    )
    return out.last_hidden_state.flatten(0, 1)[batch.predicts]


def _influence(body: Any, whole: _Whole, kept: Sequence[int], batch: Batch) -> dict[int, float]:
    """Block influence of each kept layer, in the network that is left."""
    _use(body, whole, kept)
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, args, out: inputs.append(_cosine(args[0], out)))
        for layer in body.layers
    ]
    try:
        _states(body, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {i: 1 - cosine.item() for i, cosine in zip(kept, inputs, strict=True)}


def _cosine(entering: Tensor, leaving: Any) -> Tensor:
    leaving = leaving[0] if isinstance(leaving, tuple) else leaving
    return torch.cosine_similarity(entering.float(), leaving.float(), dim=-1).mean()


def _kl_without(
    body: Any, head: Head, whole: _Whole, kept: Sequence[int], batch: Batch, teacher: Tensor
) -> float:
    """Mean forward KL (nats a token) from the whole teacher to the network of the kept layers."""
    _use(body, whole, kept)
    student = head(_states(body, batch)).float().log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean().item()


def _use(body: Any, whole: _Whole, kept: Sequence[int]) -> None:
    body.layers = torch.nn.ModuleList(whole.layers[i] for i in kept)
    if whole.kinds:
        body.config.layer_types = [whole.kinds[i] for i in kept]
    body.config.num_hidden_layers = len(body.layers)
