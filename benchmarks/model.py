"""`xsam benchmark model`: parts of the model beside transformers' modules with the same weights."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsam.models.criterion import Counts, Criterion
from xsam.models.language import Spliced, causal_lm, supervised_logits
from xsam.structures import IGNORE_INDEX

from .baselines import SIZES, Sizes, Usual, decoding, dense, made_up, noise, our_loss, same_points, segmentor
from .measure import Run, compare, gradients, machine

TARGETS, PROMPT, ANSWER = 20, 2400, 16  # of an image; tokens
Case = tuple[Any, ...]  # name, and what `compare` gets


def report(device: str = "cpu", sizes: Sizes = SIZES, rounds: int = 3) -> dict[str, Any]:
    """`compare` of every part; the last way of each is transformers' or the plain one."""
    found: dict[str, Any] = {"machine": machine(device)}
    for part in (encoders, pixel_decoder, mask_decoder, text_loss, answers, compiled):
        for name, ways, *same in part(sizes, device):
            found[name] = compare(ways, *same, device=device, rounds=rounds)
    return found


def both(name: str, ways: Mapping[str, tuple[Run, Sequence[Tensor]]]) -> Iterator[Case]:
    """The forward pass of each way, and its training: all gradients with regard to the tensors beside it."""
    yield f"{name}, forward", {way: torch.no_grad()(run) for way, (run, _) in ways.items()}
    yield f"{name}, training", {way: partial(gradients, *run) for way, run in ways.items()}


def encoders(sizes: Sizes, device: str) -> Iterator[Case]:
    """SAM's encoder without its neck: a layer of each kind behind the patch embedding, and all layers."""
    kinds = {"global layer": (1, (0,)), "windowed layer": (1, ()), "encoder": (sizes.depth, sizes.global_blocks)}
    for name, (depth, global_blocks) in kinds.items():
        each = replace(sizes, depth=depth, global_blocks=global_blocks)
        ours, images = segmentor(each).to(device), noise(1, 3, sizes.image, sizes.image, device=device)
        attentions = ("sdpa", "eager") if depth == 1 else ("eager",)  # a minute less
        usual = {attention: Usual(each, ours, attention).to(device) for attention in attentions}
        mine, _ = usual["eager"].pairs(ours, "encoder.")
        ways: dict[str, tuple[Run, Sequence[Tensor]]] = {"ours": (partial(ours.seg_encoder, images, [depth]), mine)}
        for attention, theirs in usual.items():
            run = partial(theirs.encoder, images, return_dict=False)
            ways[f"transformers, {attention}"] = run, theirs.pairs(ours, "encoder.")[1]
        yield from both(f"{name}, {sizes.image} px", ways)


def pixel_decoder(sizes: Sizes, device: str) -> Iterator[Case]:
    """Six layers of deformable attention over three levels."""
    ours, side = segmentor(sizes).to(device), sizes.image // 8
    usual, levels = Usual(sizes, ours).to(device), range(3)
    pyramid = [noise(1, sizes.finest << level, side >> level, side >> level, device=device) for level in levels]
    mine, theirs = usual.pairs(ours, "pixel_decoder.")
    runs = partial(ours.get_submodule("pixel_decoder"), pyramid), partial(usual.pixels, pyramid)
    ways = {"ours": (runs[0], mine + pyramid), "transformers": (runs[1], theirs + pyramid)}
    yield from both(f"pixel decoder, {side}, {side // 2}, {side // 4}", ways)


def mask_decoder(sizes: Sizes, device: str) -> Iterator[Case]:
    """Masked decoder, matching and losses of all outputs: two images with 20 targets each."""
    ours, criterion = segmentor(sizes).to(device), Criterion(sizes.points)
    usual, (batch, features, leaves) = Usual(sizes, ours).to(device), decoding(ours, sizes, device, 2, TARGETS)
    mine, theirs = (own + leaves for own in usual.pairs(ours, "decoder.", "class_predictor."))
    mask_features, *levels = leaves
    masks, labels = dense(batch)

    def usual_loss() -> Tensor:
        return usual.loss(usual.decode(mask_features, levels), masks, labels)

    ways = {
        "ours": partial(gradients, lambda: our_loss(ours, criterion, batch, features), mine),
        "transformers": partial(gradients, usual_loss, theirs),
    }
    yield f"masked decoder, matching, losses, {sizes.queries} queries, training", ways, same_points()


def text_loss(sizes: Sizes, device: str) -> Iterator[Case]:
    """Head and cross-entropy of the language model, where one token of twenty is supervised."""
    (count, tokens), (width, vocabulary), criterion = sizes.supervised, sizes.head, Criterion()
    head, hidden = nn.Linear(width, vocabulary, bias=False).to(device), noise(1, tokens, width, device=device)
    labels = torch.full((1, tokens), IGNORE_INDEX, device=device)
    labels[:, -count:] = torch.arange(count, device=device) % vocabulary

    def ours() -> Tensor:
        logits, wanted = supervised_logits(SimpleNamespace(lm_head=head), hidden, in_place(hidden), labels)
        said: Any = SimpleNamespace(text_logits=logits, text_targets=wanted)
        return criterion.text_loss(said, Counts(tokens=count, masks=0, class_weight=0))

    def plain() -> Tensor:
        return F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    for kind, inputs in (("frozen", [hidden]), ("trained", [hidden, head.weight])):
        head.weight.requires_grad_(kind == "trained")
        ways = {"ours": partial(gradients, ours, inputs), "all logits": partial(gradients, plain, inputs)}
        yield f"loss of {count} of {tokens} tokens, {kind} head", ways


def answers(sizes: Sizes, device: str) -> Iterator[Case]:
    """A known answer in one pass beside `generate`, which finds it; a second question about an image."""
    llm = causal_lm(
        model_type="phi3", vocab_size=sizes.head[1], hidden_size=sizes.llm, intermediate_size=3 * sizes.llm,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, eos_token_id=2, pad_token_id=0,
    ).to(device).eval()  # fmt: skip
    prompt = noise(1, PROMPT, sizes.llm, device=device).detach()
    generate = partial(
        llm.generate, inputs_embeds=prompt, attention_mask=torch.ones_like(prompt[..., 0]), max_new_tokens=ANSWER,
        min_new_tokens=ANSWER, do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    answer = generate().sequences
    labels = F.pad(answer, (PROMPT, 0), value=IGNORE_INDEX)

    def one_pass() -> Tensor:
        embeds = torch.cat([prompt, llm.get_input_embeddings()(answer)], 1)
        hidden = llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return supervised_logits(llm, hidden, in_place(embeds), labels)[0]

    ways = {"ours": torch.no_grad()(one_pass), "transformers' generate": lambda: torch.cat(generate().logits)}
    yield f"answer of {ANSWER} tokens after {PROMPT}", ways
    model = segmentor(replace(sizes, depth=1)).to(device).eval()
    batch, ask = made_up(model, sizes, samples=1, targets=TARGETS).to(device), torch.no_grad()(model.forward)
    features = torch.no_grad()(lambda: model.decode_pixels(model.encode(batch)))()
    ways = {"ours, kept": lambda: ask(batch, features).class_logits, "ours, anew": lambda: ask(batch).class_logits}
    yield "second question about an image", ways


def compiled(sizes: Sizes, device: str) -> Iterator[Case]:
    """What `stage.compile` does for a layer of SAM's encoder and for the language model."""
    model = segmentor(replace(sizes, depth=1)).to(device)
    llm = causal_lm(
        model_type="phi3", vocab_size=32, hidden_size=sizes.llm, intermediate_size=3 * sizes.llm, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8, eos_token_id=2, pad_token_id=0,
    ).to(device)  # fmt: skip
    images, embeds = noise(1, 3, sizes.image, sizes.image, device=device), noise(1, 1024, sizes.llm, device=device)
    runs = {
        "global layer": (model.seg_encoder, lambda part: part(images, [1])),
        "language model, 2 layers": (llm.model, lambda part: part(inputs_embeds=embeds, use_cache=False)[0]),
    }
    for name, (part, call) in runs.items():
        faster = deepcopy(part)
        faster.compile()
        each = {"compiled": faster, "as it is": part}
        ways = {
            way: (partial(call, module), [p for n, p in module.named_parameters() if "embed_tokens" not in n])
            for way, module in each.items()
        }
        yield from both(f"torch.compile, {name}", ways)


def in_place(embeds: Tensor) -> Spliced:
    """One text without images as it is."""
    tokens = torch.arange(embeds.shape[1], device=embeds.device)
    return Spliced(embeds, tokens[None], tokens[-1:] + 1)
