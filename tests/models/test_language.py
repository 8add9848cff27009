import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from xsam.models.language import Spliced, causal_lm, decode

WINDOW, LENGTH = 8, 20


def windowed(model_type: str = "phi3", layers: int = 1) -> PreTrainedModel:
    torch.manual_seed(0)
    return causal_lm(
        model_type=model_type, sliding_window=WINDOW, vocab_size=50, hidden_size=32, intermediate_size=48,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ).eval()  # fmt: skip


def prompt(llm: PreTrainedModel, lengths: list[int]) -> Spliced:
    ids = torch.randint(3, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(max(lengths)).expand_as(ids)
    return Spliced(llm.get_input_embeddings()(ids), positions, torch.tensor(lengths))


def states(llm: PreTrainedModel, embeds: Tensor) -> Tensor:
    return llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state


@torch.no_grad()
def test_a_token_sees_itself_and_the_window_before_it() -> None:
    llm = windowed()
    embeds = prompt(llm, [LENGTH]).embeds
    before = states(llm, embeds)[0]
    for j in range(LENGTH):
        changed = embeds.clone()
        changed[0, j] += 1
        differs = (states(llm, changed)[0] - before).abs().amax(1) > 1e-6
        assert differs.nonzero()[:, 0].tolist() == [i for i in range(LENGTH) if i - WINDOW <= j <= i]


@torch.no_grad()
def test_without_a_window_a_token_sees_all_before_it() -> None:
    llm = causal_lm(
        model_type="phi3", vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3,
    ).eval()  # fmt: skip
    embeds = prompt(llm, [LENGTH]).embeds
    changed = embeds.clone()
    changed[0, 0] += 1
    assert bool(((states(llm, changed) - states(llm, embeds)).abs().amax(-1) > 1e-6).all())


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[5], [LENGTH], [LENGTH, 6, 13]], ids=str)
def test_decoding_past_the_window_equals_the_full_forward(lengths: list[int]) -> None:
    llm = windowed(layers=2)
    steps = 12
    tokens = torch.stack([token for token, _ in decode(llm, prompt(llm, lengths), steps, stop_ids=())], 1)
    for row, (length, answer) in enumerate(zip(lengths, tokens, strict=True)):
        embeds = prompt(llm, lengths).embeds[row : row + 1, :length]
        full = torch.cat([embeds, llm.get_input_embeddings()(answer)[None]], 1)
        predicted = llm.lm_head(states(llm, full)[0, length - 1 : -1]).argmax(-1)
        assert predicted.tolist() == answer.tolist()


@torch.no_grad()
def test_the_cache_keeps_the_states_of_the_full_forward() -> None:
    """Token by token, far past the window, with the cache that generation uses."""
    from transformers import DynamicCache

    llm = windowed(layers=2)
    embeds = prompt(llm, [3 * LENGTH]).embeds
    cache = DynamicCache(config=llm.config)
    steps = [
        llm.model(inputs_embeds=embeds[:, i : i + 1], past_key_values=cache, use_cache=True).last_hidden_state
        for i in range(3 * LENGTH)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), states(llm, embeds), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["phi3", "qwen3"])
def test_last_hidden_state_is_after_the_final_norm(model_type: str) -> None:
    """phrase_projector reads it, and lm_head: X-SAM's official weights expect the normalised state."""
    llm = windowed(model_type, layers=2)
    llm.model.norm.weight.uniform_(0.5, 2)
    kept = {}
    llm.model.norm.register_forward_hook(lambda _, inputs, output: kept.update(before=inputs[0], after=output))
    embeds = prompt(llm, [LENGTH]).embeds
    output = llm(inputs_embeds=embeds, output_hidden_states=True)
    last = states(llm, embeds)
    torch.testing.assert_close(last, kept["after"])
    torch.testing.assert_close(output.hidden_states[-1], last)
    torch.testing.assert_close(output.logits, llm.lm_head(last))
    x = kept["before"]
    by_hand = x * (x.square().mean(-1, keepdim=True) + llm.config.rms_norm_eps).rsqrt() * llm.model.norm.weight
    torch.testing.assert_close(last, by_hand)


@torch.no_grad()
def test_an_answer_closes_what_it_opens_and_nothing_else() -> None:
    """Beside a full forward pass for every token, whose choice among what is allowed it takes."""
    llm, (seg, opening, closing), end = windowed(layers=2), (7, 8, 9), 2
    llm.lm_head.weight[[seg, opening, closing, end]] *= 3  # or they would hardly come
    spliced = prompt(llm, [LENGTH, 6, 13, 9])
    tokens = torch.stack([t for t, _ in decode(llm, spliced, 25, (end,), (seg, opening, closing))], 1)
    closed = 0
    for embeds, length, answer in zip(spliced.embeds, spliced.lengths, tokens.tolist(), strict=True):
        embeds, inside = embeds[None, :length], False
        for token in answer:
            logits = llm.lm_head(states(llm, embeds)[0, -1])
            logits[[seg, opening, end] if inside else [closing]] = -torch.inf
            assert token == logits.argmax()
            inside, closed = token == opening or (inside and token != closing), closed + (token == closing)
            if token == end:
                break
            embeds = torch.cat([embeds, llm.get_input_embeddings()(torch.tensor([[token]]))], 1)
    assert closed > 0
