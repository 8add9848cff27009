"""The language model's side: build it, put image and region features into its input, take states and text out.

The model itself is transformers' (Phi-3, Qwen3, any causal LM). Its last hidden state is taken after the final norm."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from ..structures import IGNORE_INDEX, IMAGE_TOKEN, REGION_TOKEN, UserError


def causal_lm(*, model_type: str, sliding_window: int | None = None, **sizes: Any) -> PreTrainedModel:
    """A causal language model of a transformers architecture ("phi3", "qwen3", ..) with random weights, from `sizes`
    alone (`hidden_size`, `num_hidden_layers`, ..).

    sliding_window: how far back a token sees beyond itself: key j is visible iff i - sliding_window <= j <= i, as
    X-SAM's weights were trained (window 2047 of flash-attention). transformers counts the token itself, hence + 1."""
    window = {} if sliding_window is None else {"sliding_window": sliding_window + 1}
    config = AutoConfig.for_model(model_type, **window, **sizes)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def quantize(llm: PreTrainedModel, bits: int) -> None:
    """Keep the weights of all linear layers but the head in 8 bits (LLM.int8, arXiv 2208.07339) or 4 (NF4, arXiv
    2305.14314), by bitsandbytes. It converts them when the model moves to its device. UserError where it is missing."""
    try:
        from bitsandbytes import nn as bnb
    except ModuleNotFoundError:
        raise UserError(f"bits={bits} needs bitsandbytes; pip install bitsandbytes") from None
    if bits not in (4, 8):
        raise UserError(f"bits={bits} is not possible; give 4, 8 or 0 (as the weights are)")
    for name, layer in [*llm.model.named_modules()]:
        if isinstance(layer, nn.Linear) and "lora_" not in name:
            sizes, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
            if bits == 8:
                small = bnb.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0, device="meta")
                small.weight = bnb.Int8Params(weight, requires_grad=False)
            else:
                small = bnb.Linear4bit(*sizes, quant_type="nf4", device="meta")
                small.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4")
            small.bias = layer.bias
            llm.model.set_submodule(name, small)


@dataclass(frozen=True, slots=True)
class Spliced:
    """A batch of text with its image and region features in place."""

    embeds: Tensor  # float[B, T', C]
    positions: Tensor  # int64[B, T], where each original token went (an image placeholder: its first feature)
    lengths: Tensor  # int64[B], length of each row without padding


def splice(
    embed_tokens: nn.Module, input_ids: Tensor, lengths: Tensor, image_tokens: Tensor, image_index: Tensor,
    regions: Tensor,
) -> Spliced:  # fmt: skip
    """Replace every image placeholder by all tokens of the row's image, every region placeholder by its feature.

    input_ids, lengths, image_index: as in `Batch`. image_tokens: float[I, n, C]. regions: float[R, C], in reading order
    of the placeholders."""
    is_image, is_region = input_ids == IMAGE_TOKEN, input_ids == REGION_TOKEN
    n = image_tokens.shape[1]
    widths = torch.where(is_image, n, 1)
    ends = widths.cumsum(1)
    positions = ends - widths
    spliced_lengths = (widths * (torch.arange(widths.shape[1], device=widths.device) < lengths[:, None])).sum(1)
    text = embed_tokens(torch.where(is_image | is_region, 0, input_ids))
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
    # One gather from [text | image tokens | regions] builds the sequence; its index is scattered token by token.
    B, T = input_ids.shape
    features = [part.to(text.dtype) for part in (image_tokens.flatten(0, 1), regions) if len(part)]
    source = torch.cat([text.flatten(0, 1), *features])
    index = torch.zeros((B, int(ends[:, -1].max()) if T else 0), dtype=torch.long, device=input_ids.device)
    index[rows[~is_image], positions[~is_image]] = torch.arange(B * T, device=index.device).view(B, T)[~is_image]
    number, inside = (torch.arange(count, device=index.device) for count in (len(regions), n))
    index[rows[is_region], positions[is_region]] = B * T + len(image_tokens) * n + number
    row = rows[is_image][:, None]
    index[row, positions[is_image][:, None] + inside] = B * T + image_index[row] * n + inside
    return Spliced(source[index], positions, spliced_lengths)


def supervised_logits(llm: PreTrainedModel, hidden: Tensor, spliced: Spliced, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits only where a supervised token is predicted: float[T', V], and those tokens int64[T'].
    hidden: float[B, T', C]. labels: int64[B, T] of the original tokens; the first token of a row is never predicted."""
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return llm.lm_head(hidden[rows, spliced.positions[rows, columns + 1] - 1]), labels[rows, columns + 1]


def decode(
    llm: PreTrainedModel, spliced: Spliced, max_new_tokens: int, stop_ids: tuple[int, ...],
    tag_ids: tuple[int, int, int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Greedy decoding with a key-value cache; yields step by step the next token of every row, int64[B], and the last
    states that came with it, float[B, t, C], at first of the prompt, then of the token before. A row that has produced
    a stop token goes on producing that token, and the loop ends when all rows have. Rows may differ in length: their
    padding is moved to the left, since a sliding window counts places, and masked out.

    tag_ids: of `<SEG>`, `<p>` and `</p>`, to keep answers well-formed: a phrase is closed before there is another, a
    `<SEG>` or the end, and what was not opened is not closed."""
    (B, T, _), device = spliced.embeds.shape, spliced.embeds.device
    positions = torch.arange(T, device=device) - (T - spliced.lengths)[:, None]  # negative: padding
    mask, places = positions >= 0, positions.clamp(min=0)
    embeds = spliced.embeds[torch.arange(B, device=device)[:, None], positions % T]
    cache, stops = DynamicCache(config=llm.config), torch.tensor(stop_ids, device=device)
    token = torch.zeros(B, dtype=torch.long, device=device)
    done, inside = token.bool(), token.bool()
    for step in range(max_new_tokens):
        states = llm.model(
            inputs_embeds=embeds, attention_mask=None if bool(mask.all()) else mask.long(), position_ids=places,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        logits = llm.lm_head(states[:, -1])
        if tag_ids:
            seg, opening, closing = tag_ids
            inside = (inside | (token == opening)) & (token != closing)  # after the token before
            logits[:, closing].masked_fill_(~inside, -torch.inf)
            for barred in (seg, opening, *stop_ids):
                logits[:, barred].masked_fill_(inside, -torch.inf)
        token = torch.where(done, token, logits.argmax(-1))
        yield token, states
        done |= torch.isin(token, stops)
        if bool(done.all()):
            return
        mask = torch.cat([mask, mask.new_ones(B, 1)], dim=1)
        embeds, places = llm.get_input_embeddings()(token)[:, None], (spliced.lengths + step)[:, None]
