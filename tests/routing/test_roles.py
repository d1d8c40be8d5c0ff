"""Roles: golden tables of many families, the same under every wrapper; an error that names what fits nothing."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from routing_models import MODELS, fresh, golden, shared, table
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from steepest import rules
from steepest.routing import HIDDEN, KINDS, default_routing, named_roles, roles

WRAPPED = [
    "gpt2",
    "llama_tied",
    "mixtral",
    "gpt_oss",
    "vit",
    "convnext",
    "mamba",
    "sequential",
    "transformer_encoder",
    "lstm",
]


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# Golden tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_golden_table(name):
    """A deliberate change: run ``python tests/routing/routing_models.py`` and read the difference."""
    assert table(shared(name)) == golden(name)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_one_role_that_fits_it(name):
    model = shared(name)
    plain = dict(model.named_parameters())
    claimed = list(named_roles(model))
    assert [n for n, _, _ in claimed] == list(plain)
    assert all(p is plain[n] for n, p, _ in claimed)
    assert roles(model) == {n: role for n, _, role in claimed}
    every_name = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    assert every_name == {n for n, _, role in claimed for n in (n, *role.tied)}
    for _, p, role in claimed:
        assert role.kind in KINDS
        assert role.why
        assert role.view.is_matrix == (role.kind not in ("norm", "bias", "vector"))
        assert sum(torch.Size(s).numel() for s in role.view.shapes(p.shape)) == p.numel()


@pytest.mark.parametrize("name", MODELS)
def test_layers_and_blocks_partition_the_hidden_matrices(name):
    blocks = {}
    for parameter_name, role in roles(shared(name)).items():
        if role.kind in HIDDEN:
            blocks.setdefault((role.layer, role.block), []).append(parameter_name)
    layers = sorted({layer for layer, _ in blocks if layer is not None})
    if "sequential" not in name:
        assert layers == list(range(len(layers)))
    assert {block for _, block in blocks} <= {"attention", "mlp", "mixer", "conv", "embedding", "head", "linear"}


def test_a_decoder_counts_on_from_the_encoder():
    found = roles(shared("t5"))
    assert found["encoder.block.1.layer.1.DenseReluDense.wo.weight"].layer == 1
    assert found["decoder.block.0.layer.1.EncDecAttention.q.weight"].layer == 2


# Wrappers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRAPPED)
def test_the_same_after_compile(name):
    model = shared(name)
    assert roles(torch.compile(model)) == roles(model)
    assert table(torch.compile(model)) == golden(name)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_same_after_ddp_and_compile_inside_or_outside(name, process_group):
    model = fresh(name)
    expected = roles(model)
    assert roles(DistributedDataParallel(model)) == expected
    assert roles(torch.compile(DistributedDataParallel(model))) == expected
    assert roles(DistributedDataParallel(torch.compile(model))) == expected
    assert table(DistributedDataParallel(model)) == golden(name)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_same_after_fully_shard(name, process_group):
    model = fresh(name)
    expected = roles(model)
    mesh = init_device_mesh("cpu", (1,))
    for module in reversed(list(model.modules())):  # inner blocks first
        for block in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(type(p).__name__ == "DTensor" for p in model.parameters())
    assert roles(model) == expected
    assert table(model) == golden(name)
    assert roles(torch.compile(model)) == expected


def test_the_same_when_layers_are_compiled_or_checkpointed_one_by_one():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = fresh("llama")
    expected = roles(model)
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(layer) if i == 0 else checkpoint_wrapper(layer)
    assert any("_orig_mod" in n for n, _ in model.named_parameters())
    assert roles(model) == expected


class LoraLayer(nn.Module):
    """Shaped like PEFT's: the wrapped module under ``base_layer``, the factors beside it."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.lora_magnitude_vector = nn.ModuleDict({"default": nn.Linear(1, 1, bias=False)})


def peft_like(model: nn.Module) -> nn.Module:
    """The wrapping of PEFT with its class names, without the package."""
    layer_class = type("Linear", (type("BaseTunerLayer", (LoraLayer,), {}),), {})
    for layer in model.model.layers:
        layer.self_attn.q_proj = layer_class(layer.self_attn.q_proj)
    copies = type("ModulesToSaveWrapper", (nn.Module,), {})()
    copies.original_module = model.lm_head
    copies.modules_to_save = nn.ModuleDict({"default": nn.Linear(48, 64, bias=False)})
    model.lm_head = copies
    tuner = type("LoraModel", (type("BaseTuner", (nn.Module,), {}),), {})()
    tuner.model = model
    outer = type("PeftModelForCausalLM", (type("PeftModel", (nn.Module,), {}),), {})()
    outer.base_model = tuner
    return outer


def check_peft(model: nn.Module, expected: dict) -> None:
    found = roles(model)
    assert {n: role for n, role in found.items() if n in expected} == expected
    added = {n: role for n, role in found.items() if n not in expected}
    for name, role in added.items():
        kind = "head" if "lm_head" in name else "vector" if "magnitude" in name else "adapter"
        assert role.kind == kind, name
        assert (role.layer, role.block) == (
            (None, "head") if kind == "head" else (int("layers.1" in name), "attention")
        )
    assert len(added) == 2 * 3 + 1


def test_the_same_inside_peft():
    model = fresh("llama")
    check_peft(peft_like(model), roles(fresh("llama")))


def test_the_same_inside_the_real_peft():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, use_dora=True, modules_to_save=["lm_head"])
    check_peft(peft.get_peft_model(fresh("llama"), config), roles(fresh("llama")))


# What decides ---------------------------------------------------------------------------------------------------------


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: role.kind for name, role in roles(model).items()}


def test_an_embedding_wins_over_a_tied_head_that_comes_first():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head = nn.Linear(8, 16, bias=False)
            self.tokens = nn.Embedding(16, 8)
            self.tokens.weight = self.lm_head.weight

    ((name, role),) = roles(Model()).items()
    assert (name, role.kind, role.tied) == ("lm_head.weight", "embedding", ("tokens.weight",))
    assert "tied to tokens.weight" in role.why


def test_types_go_before_names():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.Linear(4, 4)
            self.mlp_embed = nn.LayerNorm(4)
            self.attn = nn.Conv2d(4, 4, 3)
            self.lookup = nn.Embedding(4, 4)

    found = kinds(Model())
    assert found["norm.weight"] == "linear"
    assert found["mlp_embed.weight"] == found["mlp_embed.bias"] == "norm"
    assert found["attn.weight"] == "conv"
    assert found["lookup.weight"] == "embedding"


def test_sizes_never_decide():
    class Model(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.body = nn.Linear(4, out)
            self.norm = nn.LayerNorm([out, 2])
            self.head = nn.Linear(out, 3)

    assert kinds(Model(8)) == kinds(Model(60_000))
    assert kinds(Model(8))["body.weight"] == "linear"
    assert kinds(Model(8))["norm.weight"] == "norm"


def test_a_head_is_named_and_outside_the_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Linear(4, 4)
            self.fc = nn.Linear(4, 4)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block()])
            self.classifier = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

    found = roles(Model())
    assert found["classifier.2.weight"].kind == "head"
    assert found["classifier.0.weight"].kind == "linear"
    assert found["classifier.0.weight"].block == found["classifier.0.bias"].block == "head"
    assert found["blocks.0.output.weight"].kind == "mlp"
    assert found["blocks.0.fc.weight"].kind == "linear"


def test_a_head_that_is_a_network_has_layers():
    block = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    head = nn.ModuleDict({"layers": nn.ModuleList([block]), "out": nn.Linear(4, 2)})
    found = roles(nn.ModuleDict({"diffusion_head": head}))
    inner, out = found["diffusion_head.layers.0.0.weight"], found["diffusion_head.out.weight"]
    assert (inner.kind, inner.layer, inner.block) == ("linear", 0, "linear")
    assert (out.kind, out.layer, out.block) == ("head", None, "head")


def test_what_stands_beside_the_output_embedding_is_not_the_head():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 2)
            self.body = nn.Linear(4, 4)
            self.head = nn.ModuleDict({"decoder": nn.Linear(4, 9), "extra": nn.Linear(4, 4)})

        def get_input_embeddings(self):
            return self.stem

        def get_output_embeddings(self):
            return self.head["decoder"]

    found = kinds(Model())
    assert found["stem.weight"] == "conv"
    assert found["head.decoder.weight"] == "head"
    assert found["head.extra.weight"] == "linear"


def test_the_model_says_what_its_input_embedding_is():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(9, 4))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Table()
            self.second = Table()

        def get_input_embeddings(self):
            return self.first

        def get_output_embeddings(self):
            raise NotImplementedError

    assert kinds(Model()) == {"first.weight": "embedding", "second.weight": "linear"}


def test_experts_in_a_list_and_their_router():
    class GatedMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 6)
            self.down_proj = nn.Linear(6, 4)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.feed_forward = nn.ModuleDict(
                {"gate": nn.Linear(4, 2), "experts": nn.ModuleList([GatedMLP()]), "shared_expert": GatedMLP()}
            )

    found = roles(nn.ModuleDict({"layers": nn.ModuleList([Block()])}))
    short = {name.removeprefix("layers.0.feed_forward.").removesuffix(".weight"): role for name, role in found.items()}
    assert short["gate"].kind == short["gate"].block == "router"
    assert short["experts.0.gate"].kind == short["experts.0.down_proj"].kind == "expert"
    assert short["experts.0.gate"].block == short["experts.0.gate.bias"].block == "mlp"
    assert short["shared_expert.gate"].kind == short["shared_expert.down_proj"].kind == "mlp"


@pytest.mark.parametrize(
    ("declared", "shape", "view"),
    [
        ({"is_transposed": True}, (2, 4, 4), "batch,transposed"),
        ({"is_transposed": False}, (2, 4, 6), "batch"),
        ({"hidden_size": 4}, (2, 4, 6), "batch,transposed"),
        ({"hidden_size": 6}, (2, 4, 6), "batch"),
        ({"hidden_size": 4}, (2, 4, 4), "batch"),
        ({}, (2, 4, 6), "batch"),
    ],
)
def test_experts_in_one_tensor_are_stored_as_their_module_declares(declared, shape, view):
    class TinyExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up_proj = nn.Parameter(torch.zeros(shape))
            self.down_proj = nn.Parameter(torch.zeros(shape).mT.contiguous())
            self.__dict__.update(declared)

    found = roles(TinyExperts())
    assert {str(role.view) for role in found.values()} == {view}
    assert {role.kind for role in found.values()} == {"expert"}


def test_norms_are_told_by_class_or_name():
    class GRN(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, 1, 1, 4))
            self.bias = nn.Parameter(torch.zeros(1, 1, 1, 4))

    class RMSNormGated(GRN):
        pass

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

    class NormalSampler(nn.Linear):
        pass

    found = kinds(nn.ModuleDict({"a": GRN(), "b": RMSNormGated(), "norm1": Scale(), "c": NormalSampler(4, 4)}))
    assert {found[n] for n in ("a.weight", "a.bias", "b.weight", "b.bias", "norm1.weight")} == {"norm"}
    assert found["c.weight"] == "linear"


def test_stages_are_numbered_through_but_lists_inside_a_block_are_not_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))

    class Stage(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.down = nn.Conv2d(2, 2, 2)
            self.blocks = nn.ModuleList([Block() for _ in range(depth)])

    found = roles(nn.ModuleDict({"stages": nn.ModuleList([Stage(1), Stage(2)])}))
    assert found["stages.0.blocks.0.layers.2.weight"].layer == 0
    assert found["stages.1.blocks.0.layers.0.weight"].layer == 1
    assert found["stages.1.blocks.1.layers.0.weight"].layer == 2
    assert found["stages.1.down.weight"].layer is None


def test_a_single_layer_is_not_the_head_of_itself():
    assert kinds(nn.Sequential(nn.Linear(4, 4))) == {"0.weight": "linear", "0.bias": "bias"}
    assert kinds(nn.Linear(4, 4)) == {"weight": "linear", "bias": "bias"}


@pytest.mark.parametrize(
    ("attributes", "size", "view"),
    [
        ({"num_heads": 4}, 36, "rows=12,12,12"),
        ({"num_heads": 4, "num_key_value_heads": 2}, 24, "rows=12,6,6"),
        ({"n_head": 4, "head_dim": 5, "n_kv_heads": 1}, 30, "rows=20,5,5"),
        ({}, 36, "rows=12,12,12"),
        ({"num_key_value_heads": 2}, 36, "matrix"),
        ({}, 32, "matrix"),
    ],
)
def test_sections_of_a_fused_weight_are_those_its_module_declares(attributes, size, view):
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(12, size)
            self.__dict__.update(attributes)

    model = nn.ModuleDict({"attn": SelfAttention()})
    role = roles(model)["attn.qkv.weight"]
    assert str(role.view) == view
    assert ("kept joined" in role.why) == (view == "matrix")


def test_views_of_convolutions_and_recurrent_layers():
    model = nn.ModuleDict(
        {
            "plain": nn.Conv1d(4, 6, 3),
            "grouped": nn.Conv2d(4, 6, 3, groups=2),
            "depthwise": nn.Conv2d(4, 8, 3, groups=4),
            "up": nn.ConvTranspose2d(4, 6, 3),
            "gru": nn.GRU(4, 5),
            "rnn": nn.RNN(4, 5),
            "cell": nn.LSTMCell(4, 5),
            "projected": nn.LSTM(4, 5, proj_size=2),
            "bilinear": nn.Bilinear(2, 3, 4),
        }
    )
    found = {name: str(role.view) for name, role in roles(model).items()}
    assert found["plain.weight"] == "flatten"
    assert found["grouped.weight"] == "flatten,heads=2"
    assert found["depthwise.weight"] == "flatten,heads=4"
    assert found["up.weight"] == "flatten,transposed"
    assert found["gru.weight_hh_l0"] == "rows=5,5,5"
    assert found["rnn.weight_ih_l0"] == "matrix"
    assert found["cell.weight_ih"] == "rows=5,5,5,5"
    assert found["projected.weight_hr_l0"] == "matrix"
    assert found["bilinear.weight"] == "flatten"
    assert found["cell.bias_ih"] == "element"


def test_a_projected_attention_has_a_matrix_for_each_input():
    found = roles(nn.MultiheadAttention(16, 4, kdim=8, vdim=12, add_bias_kv=True))
    assert {n: role.kind for n, role in found.items() if n.endswith("proj_weight")} == dict.fromkeys(
        ["q_proj_weight", "k_proj_weight", "v_proj_weight"], "attention"
    )
    assert found["bias_k"].kind == found["in_proj_bias"].kind == "bias"


def test_parametrisations_are_seen_through():
    def body(wrap):
        return nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": wrap(nn.Linear(4, 6))}), "conv": wrap(nn.Conv1d(4, 6, 3))})

    plain = roles(body(lambda m: m))
    found = roles(body(parametrizations.weight_norm))
    for module in ("mlp.fc1", "conv"):
        assert found[f"{module}.parametrizations.weight.original1"] == plain[f"{module}.weight"]
        assert found[f"{module}.parametrizations.weight.original0"].kind == "vector"
        assert found[f"{module}.bias"] == plain[f"{module}.bias"]
    found = roles(body(parametrizations.orthogonal))
    assert found["mlp.fc1.parametrizations.weight.original"] == plain["mlp.fc1.weight"]
    lookalike = nn.ModuleDict({"mlp": nn.Module()})
    lookalike["mlp"].weight_g = nn.Parameter(torch.zeros(4, 4))
    assert kinds(lookalike) == {"mlp.weight_g": "mlp"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = roles(body(nn.utils.weight_norm))
    assert found["mlp.fc1.weight_v"] == plain["mlp.fc1.weight"]
    assert found["mlp.fc1.weight_g"].kind == "vector"


def test_bare_parameters_go_by_their_names():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, shape in {
                "cls_token": (1, 1, 4),
                "pos_embed": (1, 9, 4),
                "class_embedding": (4,),
                "layer_scale_1": (4, 1, 1),
                "A_log": (4, 2),
                "dt_bias": (4,),
                "relative_position_bias_table": (9, 2),
                "token_embedding": (16, 4),
                "embed_tokens": (16, 4),
                "type_tokens_1": (1, 4),
                "attn_bias": (3, 4),
                "projection": (4, 4),
                "odd": (4,),
            }.items():
                self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    assert kinds(Model()) == {
        "cls_token": "vector",
        "pos_embed": "position",
        "class_embedding": "vector",
        "layer_scale_1": "vector",
        "A_log": "vector",
        "dt_bias": "vector",
        "relative_position_bias_table": "position",
        "token_embedding": "embedding",
        "embed_tokens": "embedding",
        "type_tokens_1": "vector",
        "attn_bias": "bias",
        "projection": "linear",
        "odd": "vector",
    }


# What is refused ------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A stack of matrices that neither a type nor a name explains."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.inner.weird = nn.Parameter(torch.zeros(2, 3, 4))


def test_a_parameter_that_fits_nothing_is_named():
    with pytest.raises(ValueError, match=r"'inner.weird' of shape \(2, 3, 4\) fits no known role.*steepest.route"):
        roles(Odd())


def test_flattened_parameters_are_named():
    flat_parameter = type("FlatParameter", (nn.Parameter,), {})
    model = nn.Module()
    model.body = nn.Module()
    model.body.handle = flat_parameter(torch.zeros(12))
    with pytest.raises(ValueError, match=r"'body.handle' is a flattened FSDP1 parameter.*fully_shard"):
        roles(model)
    model = nn.Module()
    model._fsdp_wrapped_module = nn.Module()
    model._fsdp_wrapped_module._flat_param = nn.Parameter(torch.zeros(12))
    with pytest.raises(ValueError, match=r"_flat_param' is a flattened FSDP1 parameter"):
        roles(model)
    model = nn.ModuleDict({"proj": nn.Linear(3, 4)})
    model["proj"].weight = nn.Parameter(torch.zeros(12))
    with pytest.raises(ValueError, match=r"'proj.weight' is a matrix \(linear\).*shape \(12,\).*looks flattened"):
        roles(model)


def test_a_lazy_parameter_is_named():
    with pytest.raises(ValueError, match=r"'0.weight' is not initialised yet; run the lazy model once"):
        roles(nn.Sequential(nn.LazyLinear(3)))


def test_only_modules_have_roles():
    with pytest.raises(TypeError, match=r"roles are those of a torch.nn.Module, got list"):
        roles([nn.Parameter(torch.zeros(2, 2))])


# Size -----------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(1, 1)
        self.norm = nn.LayerNorm(1)


def calls(layers: int) -> int:
    """Python calls that the default routing of a model with this many layers makes."""
    model = nn.ModuleDict({"tokens": nn.Embedding(2, 1), "layers": nn.ModuleList(Block() for _ in range(layers))})
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        default_routing(model, rules.LionMuon())
    finally:
        sys.setprofile(before)
    return count


def test_the_work_grows_linearly_with_the_model():
    calls(10)  # fills the caches
    small, large = calls(200), calls(800)
    assert large < 4.2 * small
    assert large < 800 * 4 * 200
