"""Two processes on one machine: sharded (FSDP2) and replicated (DDP) runs are the run of one process.

The processes are started once; each writes what it saw to a file, and the tests read the files. The gradients are the
same in all runs, so nothing but the optimizer can make a difference, and there is no tolerance.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import cases
import processes
import steepest
from processes import WORLD
from steepest import rules

STEPS = 5
PLAIN = ("step", "fit", "columns")  # the state that every process has whole

pytestmark = processes.needs_processes


class Model(nn.Module):
    """Rows that two processes cannot share evenly, one row (so that a shard is empty), a convolution, vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 6)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.up = nn.Linear(5, 7)
        self.gate = nn.Linear(7, 1, bias=False)
        self.down = nn.Linear(7, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 9, bias=False)

    def forward(self, tokens):
        x = self.conv(self.embed(tokens).mT).mT
        h = torch.tanh(self.up(x))
        x = self.norm(x + self.down(h * self.gate(h)))
        return self.head(x)


OPTIMIZERS = {
    "lion": lambda m: steepest.Lion(m, lr=0.01),
    "adamw": lambda m: steepest.Steepest(m, rules.AdamW(lr=0.01)),
    "muon": lambda m: steepest.Muon(m, lr=0.01),
    "lion_muon": lambda m: steepest.LionMuon(m, lr=0.01, period=2),
    "lion_muon narrow state": lambda m: steepest.LionMuon(m, lr=0.01, period=2, state_dtype="bfloat16"),
    "lion 8 bits": lambda m: steepest.Lion(m, lr=0.01, state_dtype="int8"),
    "muon 8 bits": lambda m: steepest.Muon(
        m, lr=0.01, state_dtype="int8", rest=rules.AdamW(lr=0.01, state_dtype="bfloat16")
    ),
    "lion_muon random": lambda m: steepest.LionMuon(m, lr=0.01, period=2, trigger="random", seed=3),
    "lion_muon stable rank": lambda m: steepest.LionMuon(m, lr=0.01, trigger="stable_rank", threshold=0.45),
    # tanh is rounded differently at the end of a tensor, so of a shard (see tests/engine/test_fitting.py)
    "soft_signum": lambda m: steepest.SoftSignum(m, lr=0.01, relaxation="algebraic", transition=(1, 4)),
    "soft_signum refreshed": lambda m: steepest.SoftSignum(
        m, lr=0.01, relaxation="switch", transition=(1, 5), refresh_every=2, betas=(0.9, 0.99)
    ),
    "soft_muon": lambda m: steepest.SoftMuon(m, lr=0.01, transition=(1, 4)),
    "soft_muon gradient": lambda m: steepest.SoftMuon(m, lr=0.01, transition=(1, 4), sample="gradient", pool="group"),
    "soft_lion_muon": lambda m: steepest.SoftLionMuon(
        m, lr=0.01, period=2, sign_relaxation="algebraic", transition=(1, 5)
    ),
    "sinkgd": lambda m: steepest.SinkGD(m, lr=0.1, betas=(0.5, 0.5)),
    "lasm": lambda m: steepest.LASM(m, lr=0.01),
    "sage": lambda m: steepest.SAGE(m, lr=0.01),
    "sage transposed": lambda m: steepest.SAGE(m, lr=0.01, axis=1, rest=rules.SAGE(lr=0.01)),
    "tensor rate": lambda m: steepest.LionMuon(m, lr=torch.tensor(0.01), period=2),
}


CHECKPOINTS = ["lion_muon", "lion_muon narrow state", "lion 8 bits", "soft_signum", "soft_muon", "sage"]


def batch(step, rank=None):
    """Tokens of a step; with a rank, its half of them."""
    tokens = torch.randint(9, (8, 6), generator=torch.Generator().manual_seed(step))
    return tokens if rank is None else tokens.chunk(WORLD)[rank]


def backward(model, tokens):
    logits = model(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def whole(t):
    t = t.detach()
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).clone()


def train(model, optimizer, steps=STEPS, start=0, rank=None):
    """Weights after each step, by clean name."""
    history = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        backward(model, batch(step, rank))
        optimizer.step()
        history.append({n.removeprefix("module."): whole(p) for n, p in model.named_parameters()})
    return history


def sharded_model():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (model.up, model.down):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def run_sharded(name):
    model = sharded_model()
    optimizer = OPTIMIZERS[name](model)
    history = train(model, optimizer)
    local = sum(
        t.to_local().numel() if hasattr(t, "to_local") else 0
        for state in optimizer.state.values()
        for key, t in state.items()
        if key not in PLAIN
    )
    return {
        "weights": history,
        "plain state": sorted(
            {key for state in optimizer.state.values() for key, t in state.items() if not hasattr(t, "to_local")}
        ),
        "local state elements": local,
        "state": [{k: whole(t) for k, t in optimizer.state[p].items()} for p in model.parameters()],
        "report": str(optimizer),
    }


def run_replicated(name, rank):
    model = nn.parallel.DistributedDataParallel(Model())
    return {"weights": train(model, OPTIMIZERS[name](model)), "halves": halves(name, rank)}


def halves(name, rank):
    """Each process has half of the batch; DDP takes the mean."""
    model = nn.parallel.DistributedDataParallel(Model())
    return train(model, OPTIMIZERS[name](model), rank=rank)


def run_checkpoint(name):
    """Sharded state through torch.distributed.checkpoint's state dicts into a new optimizer, and on."""
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    model = sharded_model()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 3)
    # as copies: the state dicts share memory with the run that goes on
    saved = [
        torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)
        for state in (get_model_state_dict(model), get_optimizer_state_dict(model, optimizer))
    ]
    expected = train(model, optimizer, 2, start=3)
    twin = sharded_model()
    other = OPTIMIZERS[name](twin)
    train(twin, other, 1, start=50)
    set_model_state_dict(twin, saved[0])
    set_optimizer_state_dict(twin, other, saved[1])
    return {"expected": expected, "actual": train(twin, other, 2, start=3)}


def run_non_finite(rank):
    """A bad gradient in the shard of the last process alone is refused by all."""
    model = sharded_model()
    optimizer = OPTIMIZERS["lion_muon"](model)
    backward(model, batch(0))
    if rank == WORLD - 1:
        model.up.weight.grad.to_local()[-1, -1] = math.nan
    before = {n: whole(p) for n, p in model.named_parameters()}
    try:
        optimizer.step()
    except FloatingPointError as error:
        message = str(error)
    else:
        message = ""
    unchanged = all(torch.equal(whole(p), before[n]) for n, p in model.named_parameters())
    return {"message": message, "unchanged": unchanged}


# --- soft rules on tensors that are laid out by hand


SHAPES = {"rows": (7, 5), "columns": (6, 5), "one row": (1, 8), "copied": (4, 6), "plain": (5, 3), "many": (40, 30)}
MESHES = ("one axis", "copies of shards", "shards of copies")
SOFT = [
    (name, pool, mesh)
    for name in ("soft_signum", "soft_muon", "soft_lion_muon")
    for pool in ("rule", "group", "tensor")
    for mesh in MESHES
]


def soft_rule(name, pool):
    products = {} if name == "soft_signum" else {"compute_dtype": "float32"}
    return replace(rules.by_name(name)(), lr=0.05, transition=(1, 5), refresh_every=3, pool=pool, **products)


def laid_out(mesh_name):
    """For each tensor how it is distributed: None for an ordinary one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    shape = {"one axis": (WORLD,), "copies of shards": (WORLD, 1), "shards of copies": (1, WORLD)}[mesh_name]
    mesh = init_device_mesh("cpu", shape)
    before = [Replicate()] * (len(shape) - 1)
    axes = {"rows": Shard(0), "columns": Shard(1), "one row": Shard(0), "copied": Replicate(), "many": Shard(0)}
    return mesh, {name: [*before, axes[name]] if name in axes else None for name in SHAPES}


# Rows of more than one block of 8-bit codes; the places of a shard by columns are no run of those of the whole.
NARROW = {
    f"{name} {state_dtype} {rounding}": rules.by_name(name)(
        lr=0.01, weight_decay=0.1, state_dtype=state_dtype, param_rounding=rounding, seed=5
    )
    for name, state_dtype in (("lion", "bfloat16"), ("lion", "int8"), ("muon", "bfloat16"), ("sage", "bfloat16"))
    for rounding in ("stochastic", "kahan")
}


def narrow_steps(name, mesh_name=None):
    shapes = {**SHAPES, "rows": (7, 300)}
    if "int8" in name:
        del shapes["columns"]  # refused: see below
    return steps_of(NARROW[name], mesh_name, steps=4, shapes=shapes, dtype=torch.bfloat16)["weights"]


def run_refused_columns():
    try:
        steps_of(rules.Lion(state_dtype="int8"), "one axis")
    except ValueError as error:
        return str(error)
    return ""


def steps_of(rule, mesh_name=None, *, steps=6, change=None, shapes=SHAPES, dtype=torch.float32):
    """Weights after each step, and the fits, of tensors that are distributed (or not) and given gradients."""
    problem = cases.Problem(shapes, steps=steps, dtype=dtype)
    layout = {}
    if mesh_name is not None:
        from torch.distributed.tensor import distribute_tensor

        mesh, layout = laid_out(mesh_name)

    def place(name, x):
        return x if layout.get(name) is None else distribute_tensor(x, mesh, layout[name])

    params = {name: nn.Parameter(place(name, p.detach())) for name, p in problem.params.items()}
    named = list(params.items())
    optimizer = steepest.Steepest([{"params": named[:3]}, {"params": named[3:]}], rule)
    history = []
    for step in range(steps):
        for name, p in params.items():
            p.grad = place(name, problem.gradients[step][name])
        if change is not None:
            change(step, params, optimizer)
        optimizer.step()
        history.append({name: whole(p) for name, p in params.items()})
    return {"weights": history, "fit": {name: optimizer.state[p].get("fit") for name, p in params.items()}}


def run_soft(name, pool, mesh_name):
    return steps_of(soft_rule(name, pool), mesh_name)


def run_soft_non_finite(rank):
    """A bad momentum in the shard of the last process alone is refused by all, at the fit."""
    found = {}
    for name in ("soft_signum", "soft_muon"):
        kept = {}

        def change(step, params, optimizer, kept=kept):
            if step == 1:
                momentum = optimizer.state[params["many"]]["momentum"].to_local()
                if rank == WORLD - 1:
                    momentum[-1, -1] = math.nan
                kept.update(
                    before=[whole(p) for p in params.values()], params=list(params.values()), optimizer=optimizer
                )

        try:
            steps_of(soft_rule(name, "rule"), "one axis", change=change)
        except FloatingPointError as error:
            message = str(error)
        else:
            message = ""
        unchanged = all(torch.equal(whole(p), w) for p, w in zip(kept["params"], kept["before"], strict=True))
        fits = [kept["optimizer"].state[p]["fit"] for p in kept["params"]]
        found[name] = {"message": message, "unchanged": unchanged and all(bool(f.isnan().all()) for f in fits)}
    return found


def run_soft_zero():
    """The same warning on every process, also on one whose shards are all empty."""

    def change(step, params, optimizer):
        for p in params.values():
            p.grad.zero_()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps_of(replace(soft_rule("soft_signum", "rule"), refresh_every=0), "one axis", change=change)
    return [str(w.message) for w in caught if "steepest" in w.filename]


def work(rank):
    result = {}
    for name in OPTIMIZERS:
        result["sharded", name] = run_sharded(name)
        result["replicated", name] = run_replicated(name, rank)
    for name in CHECKPOINTS:
        result["checkpoint", name] = run_checkpoint(name)
    result["non-finite"] = run_non_finite(rank)
    result["soft"] = {key: run_soft(*key) for key in SOFT}
    result["soft non-finite"] = run_soft_non_finite(rank)
    result["soft zero"] = run_soft_zero()
    result["narrow"] = {(name, mesh): narrow_steps(name, mesh) for name in NARROW for mesh in MESHES}
    result["refused columns"] = run_refused_columns()
    result["sage"] = {mesh: steps_of(rules.SAGE(lr=0.02), mesh)["weights"] for mesh in MESHES}
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process saw."""
    return processes.run(work, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def alone():
    """The runs of one process, by optimizer."""
    runs = {}
    for name, make in OPTIMIZERS.items():
        model = Model()
        optimizer = make(model)
        history = train(model, optimizer)
        state = [dict(optimizer.state[p]) for p in model.parameters()]
        runs[name] = {"weights": history, "state": state, "report": str(optimizer)}
    return runs


every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
def test_sharded_is_unsharded_bit_for_bit(name, results, alone):
    # The sums of SAGE over rows are added up in another order.
    same = cases.assert_close if name.startswith("sage") else cases.assert_same
    for result in results:
        same(result["sharded", name]["weights"], alone[name]["weights"])
        same(result["sharded", name]["state"], alone[name]["state"])


@every_optimizer
def test_replicated_is_alone_bit_for_bit(name, results, alone):
    for result in results:
        cases.assert_same(result["replicated", name]["weights"], alone[name]["weights"])


@every_optimizer
def test_replicas_stay_equal_on_their_halves_of_the_batch(name, results):
    first, second = (result["replicated", name]["halves"] for result in results)
    cases.assert_same(first, second)


@pytest.mark.parametrize("name", ["lion", "muon", "lion_muon"])
def test_halves_of_the_batch_are_the_batch(name, results, alone):
    """To rounding, where the mean over processes is summed in another order; the first step, before signs can part."""
    first = results[0]["replicated", name]["halves"][0]
    for parameter, w in alone[name]["weights"][0].items():
        close = (first[parameter] - w).abs() < 1e-4
        assert close.float().mean() > 0.95, parameter


@every_optimizer
def test_state_is_sharded_like_its_parameter(name, results):
    """Every process holds its share, nothing twice; only counters, fits and column averages are replicated."""
    elements = sum(p.numel() for p in Model().parameters())
    buffers = results[0]["sharded", name]["state"]
    total = sum(t.numel() for state in buffers for key, t in state.items() if key not in PLAIN)
    assert total >= elements or name in ("sinkgd", "sage")  # these have no state for some of them
    assert sum(result["sharded", name]["local state elements"] for result in results) == total
    plain = {"soft": ["fit", "step"], "sage": ["columns", "step"]}.get(name[:4], ["step"])
    assert all(result["sharded", name]["plain state"] == plain for result in results)


@every_optimizer
def test_the_report_is_that_of_one_process(name, results, alone):
    for result in results:
        assert result["sharded", name]["report"] == alone[name]["report"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_sharded_checkpoint_is_exact(name, results):
    for result in results:
        cases.assert_same(result["checkpoint", name]["actual"], result["checkpoint", name]["expected"])


def test_a_bad_gradient_on_one_process_is_refused_by_all(results):
    bad = results[-1]["non-finite"]
    assert "'up.weight'" in bad["message"]
    assert "another process" in results[0]["non-finite"]["message"]
    assert all(result["non-finite"]["unchanged"] for result in results)


@pytest.mark.filterwarnings("ignore:.*'one row' is all zero or constant")  # one singular value has no spread
@pytest.mark.parametrize(("name", "pool", "mesh"), SOFT)
def test_a_fit_is_over_the_whole_of_all_tensors(name, pool, mesh, results):
    """Uneven, empty and copied shards, an ordinary tensor beside them: the fit is that of one process, bit for bit.

    The steps too, but for tanh, which torch rounds differently in the last elements of a tensor (so of a shard).
    """
    rule = soft_rule(name, pool)
    expected = steps_of(rule)
    tanh = name != "soft_muon"
    for result in results:
        actual = result["soft"][name, pool, mesh]
        cases.assert_same(actual["fit"], expected["fit"])
        cases.assert_close(
            actual["weights"], expected["weights"], rtol=1e-7 if tanh else 0.0, atol=1e-6 * rule.lr if tanh else 0.0
        )
    distinct = {str(fit) for fit in expected["fit"].values()}
    assert len(distinct) == {"rule": 1, "group": 2, "tensor": len(SHAPES)}[pool]


@pytest.mark.parametrize("name", ["soft_signum", "soft_muon"])
def test_a_bad_momentum_on_one_process_is_refused_by_all(name, results):
    for rank, result in enumerate(results):
        found = result["soft non-finite"][name]
        assert f"{name}: non-finite" in found["message"]
        # an element-wise rule looks at its own shard alone
        wanted = "'many'" if rank == WORLD - 1 or name == "soft_muon" else "another process"
        assert wanted in found["message"]
        assert found["unchanged"]


def test_nothing_to_fit_is_said_on_every_process(results):
    for result in results:
        (message,) = result["soft zero"]
        assert "soft_signum: the momentum of 'rows', 'columns'" in message
        assert "stay hard" in message


@pytest.mark.parametrize("mesh", MESHES)
def test_the_columns_of_sage_are_those_of_the_whole_tensor(mesh, results):
    """Cut by rows, by columns, copied, or with an empty shard: to the order of additions."""
    expected = steps_of(rules.SAGE(lr=0.02))["weights"]
    for result in results:
        cases.assert_close(result["sage"][mesh], expected)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", NARROW)
def test_an_element_has_its_noise_wherever_it_is(name, mesh, results):
    """Cut by rows, by columns, copied, or with an empty shard: parameters and state in few bits are those of one."""
    expected = narrow_steps(name)
    for result in results:
        if "sage" in name:  # its sums are added up in another order
            cases.assert_close(result["narrow"][name, mesh], expected, rtol=2**-7)
        else:
            cases.assert_same(result["narrow"][name, mesh], expected)


def test_8_bits_of_a_part_of_a_row_are_refused(results):
    for result in results:
        assert "(6, 5)" in result["refused columns"]
        assert "use state_dtype='bfloat16'" in result["refused columns"]
