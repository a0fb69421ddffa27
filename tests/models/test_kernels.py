"""What is computed between convolutions: both kernels against the formulas, value by value, in float64."""

import copy
import logging
import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F

from hta.config import RuntimeConfig
from hta.models import native
from hta.models.canvas import plan_canvases
from hta.models.kernels import LEAKY_SLOPE, PLAIN_KERNELS, Coverage, Norm
from hta.models.native import NativeKernels, WinogradKernels, choose_kernels
from hta.models.networks import Discriminator
from hta.runtime import resolve
from hta.speed.workload import benchmark_config, scale_trainer
from hta.training.losses import PatchTargets, fake_loss, transformation_loss

CPU = torch.device("cpu")
NATIVE_KERNELS = choose_kernels(CPU, True)
BOTH = pytest.mark.parametrize("kernels", [PLAIN_KERNELS, NATIVE_KERNELS], ids=["plain", "native"])
# One batch of many pieces, and one that is smaller than a piece.
SHAPES = [(3, 35, 22, 24), (2, 35, 5, 3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))


def random_batches(dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    batches = [torch.randn(shape, generator=draw, dtype=torch.float64) + 0.5 for shape in SHAPES]
    return [batch.to(dtype).contiguous(memory_format=torch.channels_last) for batch in batches]


def random_coverage(dtype):
    draw = torch.Generator().manual_seed(9)
    counts = [torch.randint(0, 10, (n, h, w), generator=draw).float() for n, _, h, w in SHAPES]
    return counts, Coverage.of_counts(counts, 1, dtype, CPU)


def random_norm(dtype):
    draw = torch.Generator().manual_seed(4)
    mean, var, gamma, beta = torch.rand(4, SHAPES[0][1], generator=draw, dtype=torch.float64)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    # A negative scale turns the sign round, and one of zero lets nothing through.
    gamma[:2] = torch.tensor([-0.7, 0.0])
    return Norm(*(value.to(dtype) for value in (mean, var + 0.5, gamma, beta - 0.5)), 1e-5)


def assert_near(actual, expected, dtype):
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_compiler_made_the_native_kernels_which_are_of_the_cpu_alone():
    assert isinstance(NATIVE_KERNELS, NativeKernels)
    assert choose_kernels(torch.device("meta"), True) is PLAIN_KERNELS


@BOTH
@DTYPES
def test_moments_are_those_of_the_repeated_values(kernels, dtype):
    batches, (counts, coverage) = random_batches(dtype), random_coverage(dtype)
    mean, var = kernels.moments(batches, coverage)
    for c in range(SHAPES[0][1]):
        values = [
            b[:, c].double().flatten().repeat_interleave(n.flatten().long())
            for b, n in zip(batches, counts, strict=True)
        ]
        repeated = torch.cat(values)
        assert_near(mean[c], repeated.mean(), dtype)
        assert_near(var[c], repeated.var(correction=0), dtype)
    assert coverage.total == len(repeated)


@BOTH
def test_moments_of_flat_features_do_not_cancel(kernels):
    batches, (_, coverage) = random_batches(torch.float32), random_coverage(torch.float32)
    flat = [1000 + 0.01 * batch for batch in batches]
    _, var = kernels.moments(flat, coverage)
    _, expected = kernels.moments([batch.double() for batch in flat], random_coverage(torch.float64)[1])
    torch.testing.assert_close(var.double(), expected, rtol=1e-2, atol=0)


@BOTH
@DTYPES
def test_norm_leaky_and_its_gradients_equal_autograd(kernels, dtype):
    batches, (counts, coverage), norm = random_batches(dtype), random_coverage(dtype), random_norm(dtype)
    gamma, beta = (norm[i].double().requires_grad_() for i in (2, 3))
    leaves = [batch.double().requires_grad_() for batch in batches]
    weights = [count.double().unsqueeze(1) / coverage.total for count in counts]
    mean = sum((w * x).sum(dim=(0, 2, 3), keepdim=True) for w, x in zip(weights, leaves, strict=True))
    var = sum((w * (x - mean).square()).sum(dim=(0, 2, 3), keepdim=True) for w, x in zip(weights, leaves, strict=True))
    normed = [(x - mean) * torch.rsqrt(var + 1e-5) * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1) for x in leaves]
    expected = [F.leaky_relu(value, LEAKY_SLOPE) for value in normed]
    grads = random_batches(dtype, seed=7)
    torch.autograd.backward(expected, [grad.double() for grad in grads])

    own = norm._replace(mean=mean.detach().flatten().to(norm.mean), var=var.detach().flatten().to(norm.var))
    activations = kernels.norm_leaky(batches, own)
    result = kernels.norm_leaky_backward(grads, batches, activations, coverage, own)

    for actual, wanted in zip(activations, expected, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, wanted, dtype)
    for actual, leaf in zip(result.inputs, leaves, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, leaf.grad, dtype)
    scale = 1e3 if dtype != torch.float64 else 1  # sums of thousands of rounded values
    torch.testing.assert_close(result.gamma.double(), gamma.grad, rtol=1e-2, atol=TOLERANCE[dtype] * scale)
    torch.testing.assert_close(result.beta.double(), beta.grad, rtol=1e-2, atol=TOLERANCE[dtype] * scale)


@BOTH
@DTYPES
@pytest.mark.parametrize("classes", [3, 16, 55, 64])
def test_cross_entropy_equals_the_formula(kernels, dtype, classes):
    draw = torch.Generator().manual_seed(0)
    logits = (40 * torch.randn(2, 3, 700, classes, generator=draw)).to(dtype)
    hits = torch.randint(0, 3, (2, 1, 700, classes), generator=draw, dtype=torch.uint8)
    counts = hits.sum(dim=-1, keepdim=True).to(torch.float64 if dtype == torch.float64 else torch.float32)
    leaf = logits.double().requires_grad_()
    expected = -(leaf.log_softmax(dim=-1) * hits).sum()
    expected.backward()
    value, grad = kernels.cross_entropy(logits, hits, counts)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5 if dtype != torch.float64 else 1e-13, atol=0)
    assert grad.dtype == dtype
    # The gradient of a position is up to the number of windows that hold it.
    assert (grad.double() - leaf.grad).abs().max() <= TOLERANCE[dtype] * counts.max()


@BOTH
def test_what_is_not_a_number_stays_so(kernels):
    batches, (_, coverage), norm = random_batches(torch.bfloat16), random_coverage(torch.bfloat16), random_norm(None)
    batches[0][1, 4, 2, 3] = torch.nan
    assert kernels.moments(batches, coverage)[0].isnan().nonzero().flatten().tolist() == [4]
    assert kernels.norm_leaky(batches[:1], norm)[0].isnan().sum() == 1
    logits = torch.zeros(1, 1, 600, 5)
    logits[0, 0, 7, 1] = torch.nan
    hits = torch.ones(1, 1, 600, 5, dtype=torch.uint8)
    assert kernels.cross_entropy(logits, hits, torch.full((1, 1, 600, 1), 5.0))[0].isnan()


@pytest.mark.parametrize("loss", [transformation_loss, fake_loss])
@pytest.mark.parametrize("shape", [(25, 25), (23, 31)])
def test_a_discriminator_does_the_same_with_both(loss, shape):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan, results = plan_canvases(*shape, 54), []
    torch.manual_seed(0)
    weights = Discriminator(6, 55, 3, 5, torch.float64).double().state_dict()
    for kernels in (PLAIN_KERNELS, NATIVE_KERNELS):
        network = Discriminator(6, 55, 3, 5, torch.float64, kernels).double()
        network.load_state_dict(copy.deepcopy(weights))
        leaf = images.clone().requires_grad_()
        targets = PatchTargets(plan, 55, network.margin, 2, torch.float64, CPU, kernels)
        value = loss(network(plan.render(leaf), network.coverages(plan, 2, CPU)), targets)
        value.backward()
        results.append([value.detach(), leaf.grad, *network.state_dict().values()])
        results[-1] += [parameter.grad for parameter in network.parameters()]
    for plain, native_one in zip(*results, strict=True):
        torch.testing.assert_close(native_one, plain, rtol=1e-10, atol=1e-12)


def test_training_takes_the_kernels_that_the_settings_ask_for():
    for compiled, expected in ((True, NativeKernels), (False, type(PLAIN_KERNELS))):
        runtime = resolve(RuntimeConfig(not_cuda=True, compile=compiled))
        trainer = scale_trainer(benchmark_config(1, "float32"), runtime, 0)
        assert type(trainer.scale.discriminator.body.blocks[0].kernels) is expected
        assert type(trainer.targets.kernels) is expected


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("", "no C compiler found"),
        ("false", "'false' cannot make"),
        ("gcc'", '"gcc\'" cannot make'),
        ("gcc\\", r"'gcc\\' cannot make"),
        ("gcc\x1b[31m", r"'gcc\x1b[31m' cannot make"),
        ("a b/cc", "'a' cannot make"),
    ],
)
def test_without_a_compiler_training_goes_on(monkeypatch, caplog, compiler, said):
    native._library.cache_clear()
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", "/usr/bin" if compiler else "/nowhere")
    with caplog.at_level(logging.INFO, logger="hta"):
        assert choose_kernels(CPU, True) is PLAIN_KERNELS
    assert said in caplog.text
    native._library.cache_clear()


@pytest.mark.parametrize("size", ["1000000", "0", "4096"], ids=["without kernels", "empty", "half"])
def test_a_compiler_that_leaves_a_damaged_library_is_said(monkeypatch, tmp_path, caplog, size):
    native._library.cache_clear()
    compiler = tmp_path / "my compiler" / "cc"  # with a space in its path
    compiler.parent.mkdir()
    find = 'for word; do [ "$last" = -o ] && out="$word"; last="$word"; done; cd "$(dirname "$out")"'
    compiler.write_text(f'#!/bin/sh\n{find}\n"$REAL" -shared -x c /dev/null -o whole; head -c {size} whole > "$out"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("REAL", shutil.which("cc"))
    monkeypatch.setenv("CC", str(compiler))
    with caplog.at_level(logging.INFO, logger="hta"):
        assert choose_kernels(CPU, True) is PLAIN_KERNELS
    assert "my compiler/cc' cannot make" in caplog.text
    native._library.cache_clear()


def test_flags_of_the_compiler_are_recorded_in_printable_characters(tmp_path, monkeypatch):
    native._library.cache_clear()
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$2" != --version ] && exec "$REAL" "$@"\nprintf "\\033[1mCC 5\\033[m"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("REAL", shutil.which("cc"))
    monkeypatch.setenv("CC", f"{compiler} -ffast-math")
    assert choose_kernels(CPU, True).description.startswith(r"\x1b[1mCC 5\x1b[m -ffast-math -O3 ")
    native._library.cache_clear()


def test_the_compiler_is_known_and_a_copy_needs_none():
    assert "-O3" in NATIVE_KERNELS.description
    assert NATIVE_KERNELS.description[:3].lower() in ("cc ", "gcc", "cla")
    assert PLAIN_KERNELS.description == "torch's own operators"
    for copied in (pickle.loads(pickle.dumps(NATIVE_KERNELS)), copy.deepcopy(NATIVE_KERNELS)):  # noqa: S301
        assert type(copied) is WinogradKernels  # the rest is for training


@pytest.mark.parametrize("num_transforms", [4, 42, 54])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_canvases_and_their_gradients_are_those_of_the_plan(num_transforms, dtype):
    draw, results = torch.Generator().manual_seed(0), []
    plan = plan_canvases(13, 17, num_transforms)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    images = torch.rand(3, 3, 13, 17, generator=draw, dtype=kind)
    factors = [torch.rand(batch.shape, generator=draw) for batch in plan.render(images)]
    for kernels in (PLAIN_KERNELS, NATIVE_KERNELS):
        leaf = images.clone().requires_grad_()
        canvases = kernels.render(plan, leaf, dtype)
        sum((canvas * factor.to(dtype)).sum() for canvas, factor in zip(canvases, factors, strict=True)).backward()
        results.append((canvases, leaf.grad))
    (plain, plain_grad), (native, native_grad) = results
    for one, other in zip(plain, native, strict=True):
        assert one.dtype == other.dtype == dtype
        assert other.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    # In bfloat16, torch adds up the gradients of a pixel in that type.
    torch.testing.assert_close(native_grad, plain_grad, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
