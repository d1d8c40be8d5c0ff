"""Groups inside a tensor: heads, rows and columns of many layouts; their RMS and factors against slow numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from steepest.routing.views import View
from steepest.scaling.grouping import Groups, broadcast, group_factors, group_rms, groups_of
from steepest.scaling.partition import Member, partition

DECODER = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 64,
}


def groups_in(model: nn.Module, **options) -> dict[str, tuple[tuple[int, ...], int]]:
    """The groups of each scaled tensor by the end of its name, without .weight."""
    found = {}
    for members in partition(model).blocks.values():
        for member in members:
            cut = groups_of(member, **options)
            cut.counts(member.parameter.shape)  # raises if it does not fit
            found[".".join(member.name.removesuffix(".weight").split(".")[-2:])] = cut.axes, cut.length
    return found


# Which groups ---------------------------------------------------------------------------------------------------------


def test_heads_of_separate_projections():
    import transformers

    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER, head_dim=16))
    expected = {
        "model.embed_tokens": ((0,), 1),
        "self_attn.q_proj": ((0,), 16),  # (64, 48): 4 heads
        "self_attn.k_proj": ((0,), 16),  # (32, 48): 2 heads
        "self_attn.v_proj": ((0,), 16),
        "self_attn.o_proj": ((1,), 16),  # (48, 64): heads are columns
        "mlp.gate_proj": ((0,), 1),
        "mlp.up_proj": ((0,), 1),
        "mlp.down_proj": ((0,), 1),
        "lm_head": ((0,), 1),
    }
    assert groups_in(model) == expected
    assert groups_in(model, by="rows") == dict.fromkeys(expected, ((0,), 1))
    assert groups_in(model, by="columns") == dict.fromkeys(expected, ((1,), 1))


def test_a_query_with_its_gate_has_a_head_for_both():
    import transformers

    config = transformers.Qwen3NextConfig(
        **{**DECODER, "num_hidden_layers": 4},
        head_dim=12,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    found = groups_in(transformers.Qwen3NextForCausalLM(config))
    assert found["self_attn.q_proj"] == ((0,), 24)  # (96, 48): 4 heads of 12 + 12
    assert found["self_attn.k_proj"] == ((0,), 12)
    assert found["linear_attn.in_proj_qkvz"] == ((0,), 1)
    assert found["linear_attn.conv1d"] == ((0,), 1)
    assert found["experts.gate_up_proj"] == ((0, 1), 1)  # (experts, out, in)
    assert found["experts.down_proj"] == ((0, 1), 1)


def test_transposed_and_fused_weights():
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=48, n_head=4, n_positions=8))
    assert groups_in(model) == {
        "transformer.wte": ((0,), 1),
        "transformer.wpe": ((0,), 1),
        "attn.c_attn": ((1,), 12),  # (48, 3 x 48)
        "attn.c_proj": ((0,), 12),
        "mlp.c_fc": ((1,), 1),
        "mlp.c_proj": ((1,), 1),
    }
    assert groups_in(model, by="columns")["attn.c_attn"] == ((0,), 1)
    phi = transformers.Phi3ForCausalLM(transformers.Phi3Config(**DECODER, pad_token_id=0))
    assert groups_in(phi)["self_attn.qkv_proj"] == ((0,), 12)  # (48 + 24 + 24, 48)
    assert groups_in(phi)["mlp.gate_up_proj"] == ((0,), 1)
    options = {k: v for k, v in DECODER.items() if k != "num_key_value_heads"}
    neox = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**options))
    assert groups_in(neox)["attention.query_key_value"] == ((0,), 36)  # q, k and v of a head stand together
    assert groups_in(neox)["attention.dense"] == ((1,), 12)
    torch_layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1)
    found = groups_in(torch_layer)
    assert found["self_attn.in_proj_weight"] == ((0,), 4)
    assert found["self_attn.out_proj"] == ((1,), 4)


def test_stages_with_different_numbers_of_heads_and_convolutions():
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 8], window_size=4
    )
    swin = transformers.SwinForImageClassification(config)
    heads = {
        member.name.split("encoder.")[1]: groups_of(member).length
        for (_, block), members in partition(swin).blocks.items()
        for member in members
        if block == "attention" and "q_proj" in member.name
    }
    assert heads == {"layers.0.blocks.0.attention.q_proj.weight": 4, "layers.1.blocks.0.attention.q_proj.weight": 2}
    assert groups_in(swin)["patch_embeddings.projection"] == ((0,), 1)  # a filter each
    assert groups_in(swin, by="columns")["patch_embeddings.projection"] == ((1,), 1)


def test_lora_factors():
    peft = pytest.importorskip("peft")
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["k_proj", "o_proj", "up_proj"], r=4))
    found = {}
    for members in partition(model).blocks.values():
        for member in members:
            found[member.name.split(".", 3)[3].removesuffix(".default.weight")] = groups_of(member)
    assert found == {
        "self_attn.k_proj.lora_A": Groups((0,)),
        "self_attn.k_proj.lora_B": Groups((0,), 12),
        "self_attn.o_proj.lora_A": Groups((1,), 12),
        "self_attn.o_proj.lora_B": Groups((0,)),
        "mlp.up_proj.lora_A": Groups((0,)),
        "mlp.up_proj.lora_B": Groups((0,)),
    }


def test_names_that_say_nothing_have_rows():
    def cut(host, shape, view=None, heads=(4, 2)):
        parameter = nn.Parameter(torch.empty(shape))
        return groups_of(
            Member(name=host, parameter=parameter, role_kind="", host=host, view=view or View(), heads=heads)
        )

    assert cut("attn.q_proj", (8, 6)) == Groups((0,), 2)
    assert cut("attn.q_proj", (8, 6), heads=(0, 0)) == Groups((0,))
    assert cut("attn.q_proj", (9, 6)) == Groups((0,))  # four heads do not fit
    assert cut("attn.q_a_proj", (8, 6)) == Groups((0,))
    assert cut("attn.qkv", (16, 6)) == Groups((0,))  # fused, of unknown sections
    assert cut("attn.kv", (16, 6), View(rows=(8, 8))) == Groups((0,), 4)
    assert cut("attn.conv", (8, 1, 3), View(flatten=True)) == Groups((0,))
    assert cut("up", (3, 5, 7), View(batch=True, transposed=True)) == Groups((0, 2))
    member = Member(name="w", parameter=nn.Parameter(torch.empty(2, 2)), role_kind="", host="w", view=View())
    with pytest.raises(ValueError, match="unknown by 'row'; did you mean 'rows'"):
        groups_of(member, by="row")


# Their RMS and factors ------------------------------------------------------------------------------------------------

CUTS = [
    ((6, 4), Groups((0,))),
    ((6, 4), Groups((1,))),
    ((6, 4), Groups((0,), 3)),
    ((6, 4), Groups((1,), 2)),
    ((5, 3, 2, 2), Groups((0,))),
    ((5, 3, 2, 2), Groups((1,))),
    ((3, 4, 5), Groups((0, 1))),
    ((3, 4, 5), Groups((0, 2))),
    ((3, 4, 5), Groups((0, 1), 2)),
    ((2, 3), Groups((0, 1))),
]


def slow(x: torch.Tensor, cut: Groups) -> tuple[np.ndarray, np.ndarray]:
    """(group of each element, RMS of each group), one element after the other."""
    counts = cut.counts(x.shape)
    groups = np.empty(x.shape, dtype=int)
    squares: dict[int, list[float]] = {}
    for at in np.ndindex(*x.shape):
        where = [at[axis] for axis in cut.axes]
        where[-1] //= cut.length
        groups[at] = np.ravel_multi_index(where, counts)
        squares.setdefault(groups[at], []).append(float(x[at]) ** 2)
    return groups, np.array([np.sqrt(np.mean(squares[k])) for k in range(len(squares))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "cut"), CUTS)
def test_rms_and_broadcast_against_numpy(shape, cut, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    groups, expected = slow(x, cut)
    (rms,) = group_rms([x], [cut])
    assert rms.shape == cut.counts(shape)
    assert rms.dtype == torch.float32
    np.testing.assert_allclose(rms.flatten().numpy(), expected, rtol=1e-6)
    factors = torch.arange(rms.numel(), dtype=torch.float32).view(rms.shape)
    wide = broadcast(factors, cut, x)
    assert wide.ndim == x.ndim
    np.testing.assert_array_equal(wide.expand(shape).numpy(), groups)


def reference_factors(rms: list[np.ndarray], sizes: list[int], beta: float, bounds: tuple[float, float]) -> np.ndarray:
    flat = np.concatenate([r.ravel() for r in rms])
    size = np.concatenate([np.full(r.size, n) for r, n in zip(rms, sizes, strict=True)])
    weight = np.exp(beta * np.log(flat + 1e-12))
    weight = weight / weight.sum()
    return np.clip(weight * size.sum() / (size * weight).sum(), *bounds)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_factors_against_numpy(beta):
    torch.manual_seed(0)
    shapes, sizes = [(4,), (3, 2), (5,)], [12, 7, 30]
    rms = [torch.rand(shape) + 0.1 for shape in shapes]
    for bounds in ((0.5, 2.0), (0.0, 1e9)):
        factors = group_factors(rms, sizes, beta=beta, bounds=bounds)
        assert [f.shape for f in factors] == [r.shape for r in rms]
        expected = reference_factors([r.double().numpy() for r in rms], sizes, beta, bounds)
        np.testing.assert_allclose(torch.cat([f.flatten() for f in factors]).numpy(), expected, rtol=1e-5)
    elements = sum(float(f.sum()) * n for f, n in zip(factors, sizes, strict=True))
    assert elements / sum(f.numel() * n for f, n in zip(factors, sizes, strict=True)) == pytest.approx(1, rel=1e-5)


def test_factors_by_hand():
    """RMS 16 and 1 of groups of equal size: weights 2 and 1, so 4/3 and 2/3; a size of 3 to 1 gives 2 x 4/7 and 4/7."""
    (equal,) = group_factors([torch.tensor([16.0, 1.0])], [5])
    torch.testing.assert_close(equal, torch.tensor([4 / 3, 2 / 3]))
    large, small = group_factors([torch.tensor([16.0]), torch.tensor([1.0])], [3, 1])
    torch.testing.assert_close(torch.cat([large, small]), torch.tensor([8 / 7, 4 / 7]))


def test_the_defaults():
    (factors,) = group_factors([torch.tensor([1e4, 1.0, 1.0, 1.0, 1.0, 1.0])], [1])
    assert factors[0] == 2.0  # 10 / 2.5 before the clamp
    assert factors[1] == 0.5  # 1 / 2.5


def test_groups_without_a_usable_gradient_stand_aside():
    alone = group_factors([torch.tensor([16.0, 1.0])], [5])[0]
    for odd in (0.0, float("nan"), float("inf")):
        (factors,) = group_factors([torch.tensor([16.0, odd, 1.0, odd])], [5])
        torch.testing.assert_close(factors[[0, 2]], alone)
        assert factors[[1, 3]].tolist() == [1, 1]
    assert group_factors([torch.zeros(3)], [4])[0].tolist() == [1, 1, 1]


def test_equal_groups_and_one_group_have_the_factor_one_exactly():
    assert group_factors([torch.full((8,), 3e-7)], [4])[0].tolist() == [1] * 8
    assert group_factors([torch.tensor([3e-7])], [4])[0].tolist() == [1]


def test_a_scale_of_the_gradient_changes_nothing():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    a, b = (group_factors(group_rms([scale * x], [Groups((0,))]), [4])[0] for scale in (1.0, 2.0**-20))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


def test_inputs_are_not_changed():
    x = torch.randn(6, 4)
    before = x.clone()
    rms = group_rms([x], [Groups((0,))])
    rms_before = rms[0].clone()
    broadcast(group_factors(rms, [4])[0], Groups((0,)), x).mul_(0)
    assert torch.equal(x, before)
    assert torch.equal(rms[0], rms_before)


def test_groups_that_do_not_fit():
    with pytest.raises(ValueError, match=r"groups of 4 do not cut axis 1 of a tensor of shape \(6, 10\)"):
        group_rms([torch.ones(6, 10)], [Groups((1,), 4)])


def test_nothing_is_read_back_from_the_device():
    """On the meta device a tensor has no values, so that reading one is an error."""
    x = torch.empty(6, 4, device="meta")
    rms = group_rms([x, x], [Groups((0,), 3), Groups((1,))])
    factors = group_factors(rms, [12, 6])
    assert broadcast(factors[0], Groups((0,), 3), x).shape == (6, 1)
    assert broadcast(factors[1], Groups((1,)), x).shape == (1, 4)


# Sharded --------------------------------------------------------------------------------------------------------------

PLACEMENTS = [Shard(0), Shard(1), Replicate()]


def gradients() -> list[tuple[torch.Tensor, Groups]]:
    torch.manual_seed(0)
    return [(torch.randn(shape), cut) for shape, cut in [*CUTS, ((1, 6), Groups((1,), 3)), ((9, 2), Groups((0,), 3))]]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    seen = []
    for placement in PLACEMENTS:
        plain = gradients()
        sharded = [distribute_tensor(x, mesh, [placement]) for x, _ in plain]
        cuts = [cut for _, cut in plain]
        rms = group_rms(sharded, cuts)
        scaled = []
        for x, r, cut in zip(sharded, rms, cuts, strict=True):
            part = x.to_local() * broadcast(r, cut, x)
            whole = type(x).from_local(part, mesh, [placement], shape=x.shape, stride=x.stride(), run_check=False)
            scaled.append(whole.full_tensor())
        seen.append((rms, scaled))
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_groups_of_sharded_gradients_are_those_of_the_whole(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    plain = gradients()
    expected = group_rms([x for x, _ in plain], [cut for _, cut in plain])
    for rank in range(2):
        for rms, scaled in torch.load(tmp_path / f"{rank}.pt"):
            for (x, cut), r, e, s in zip(plain, rms, expected, scaled, strict=True):
                torch.testing.assert_close(r, e, rtol=1e-6, atol=0)
                torch.testing.assert_close(s, x * broadcast(e, cut, x), rtol=1e-6, atol=0)
