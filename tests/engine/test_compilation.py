"""torch.compile as a setting: one graph per image size, the raw model untouched, a compiler required by one line."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cotnet.engine.compilation import cache_folder, compile_mode, compiled, compiled_or_not, require_compiler
from cotnet.errors import InputError


def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(8, 2))


@pytest.mark.slow
def test_one_graph_per_image_size_and_the_model_itself_stays_eager():
    model, twin = small(), small()
    keys = list(model.state_dict())
    replica = compiled(model, backend="aot_eager")
    assert list(model.state_dict()) == keys
    torch._dynamo.reset()
    counters.clear()
    for epoch in range(2):
        for side in range(8, 17):  # more sizes than torch keeps graphs of by default
            images = torch.randn(4, 3, side, side)
            for net in (replica, twin):
                torch.manual_seed(epoch)
                net(images).square().sum().backward()
        assert counters["stats"]["unique_graphs"] == 9
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    calls = counters["stats"]["calls_captured"]
    assert torch.equal(model.eval()(images), twin.eval()(images))
    assert counters["stats"]["calls_captured"] == calls


@pytest.mark.long
@pytest.mark.slow
def test_continued_with_graphs_from_the_cache_it_is_the_uncut_run(monkeypatch, tmp_path):
    """The real compiler, on a net that it can do in seconds: the same bits, and nothing is compiled twice."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    images = torch.randn(4, 4, 3, 8, 8)

    def train(model, steps):
        torch._dynamo.reset()
        replica, optimizer = compiled(model), torch.optim.SGD(model.parameters(), lr=0.1)
        for step in steps:
            torch.manual_seed(step)
            replica(images[step]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    uncut, cut = small(), small()
    train(uncut, range(4))
    libraries = sorted(tmp_path.rglob("*.so"))
    train(cut, range(2))
    train(cut, range(2, 4))
    assert libraries
    assert sorted(tmp_path.rglob("*.so")) == libraries
    for name, tensor in uncut.state_dict().items():
        assert torch.equal(tensor, cut.state_dict()[name]), name


def test_the_cache_outlives_a_restart(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "cotnet" / "inductor"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/cotnet/inductor")


@pytest.mark.parametrize(
    ("device", "variable", "language", "wanted"), [("cpu", "CXX", "C++", r"g\+\+"), ("cuda", "CC", "C", "gcc or clang")]
)
def test_a_missing_compiler_is_one_line(device, variable, language, wanted, monkeypatch, tmp_path):
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    line = rf"train.compile=true needs a {language} compiler \(neither {wanted} nor {variable} is there\); install one"
    with pytest.raises(InputError, match=line.replace("C++", r"C\+\+")):
        require_compiler(torch.device(device), "train.compile")
    (tmp_path / "mine").touch(mode=0o755)
    monkeypatch.setenv(variable, "mine")
    require_compiler(torch.device(device), "train.compile")
    monkeypatch.setenv(variable, "theirs")
    with pytest.raises(InputError, match=f"{variable}=theirs is not there"):
        require_compiler(torch.device(device), "train.compile")


def test_headers_are_missing_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("cotnet.engine.compilation.missing_for_kernels", lambda: "Python's headers (x); install them")
    line = r"^train\.compile=max-autotune needs Python's headers \(x\); install them, or set train\.compile=false$"
    with pytest.raises(InputError, match=line):
        require_compiler(torch.device("cuda"), "train.compile", "max-autotune")


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("given", "device", "missing", "mode"),
    [
        ("auto", CPU, "", None),
        ("auto", CUDA, "", "default"),
        ("auto", CUDA, "a C compiler (x); install one", None),
        (False, CUDA, "", None),
        (True, CPU, "", "default"),
        ("default", CPU, "", "default"),
        ("reduce-overhead", CUDA, "", "reduce-overhead"),
        ("max-autotune", CUDA, "", "max-autotune"),
    ],
)
def test_modes(given, device, missing, mode, monkeypatch):
    monkeypatch.setattr("cotnet.engine.compilation.missing_for_kernels", lambda: missing)
    assert compile_mode(given, device) == mode
    if given == "auto" and mode is None:
        model = nn.Linear(2, 2)
        called, line = compiled_or_not(model, given, key="compile", device=device, trial=model, any_rank=bool)
        assert called is model
        assert line == (f"compile=auto: not compiled; torch.compile needs {missing}" if missing else None)


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A real failure of the real compiler: its C++ compiler is gone, and nothing is in its cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}):
        yield nn.Sequential(nn.Linear(3, 3), nn.ReLU())


def compile_it(model, given, monkeypatch, **more):
    """As on a GPU, where `auto` compiles."""
    monkeypatch.setattr("cotnet.engine.compilation.compile_mode", lambda *_: "default")
    how = {"key": "train.compile", "device": CPU, "any_rank": bool, "trial": lambda net: net(torch.zeros(2, 3))} | more
    torch._dynamo.reset()
    return compiled_or_not(model, given, **how)


@pytest.mark.slow
def test_auto_runs_what_cannot_be_compiled_uncompiled_and_says_so(broken, monkeypatch):
    called, line = compile_it(broken, "auto", monkeypatch)
    assert called is broken
    assert line.startswith("train.compile=auto: not compiled; compiling failed: ")
    assert "/no/such/compiler" in line and "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, "max-autotune"])
def test_what_cannot_be_compiled_as_asked_is_one_line(given, broken, monkeypatch):
    with pytest.raises(InputError) as caught:
        compile_it(broken, given, monkeypatch)
    line = str(caught.value)
    assert line.startswith(f"train.compile={str(given).lower()} failed: ")
    assert line.endswith("; set train.compile=auto or false")
    assert "/no/such/compiler" in line and "\n" not in line


def test_ranks_compile_together_or_not_at_all(monkeypatch):
    model = nn.Linear(2, 2)
    given = {"trial": lambda _: None}
    called, line = compile_it(model, "auto", monkeypatch, any_rank=lambda _: True, **given)
    assert called is model
    assert line == "train.compile=auto: not compiled; another rank cannot compile"
    called, line = compile_it(model, "auto", monkeypatch, **given)
    assert called is not model and line is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), InputError("a batch of one")])
def test_what_compiling_does_not_cause_is_raised(error, monkeypatch):
    def trial(_):
        raise error

    with pytest.raises(type(error)):
        compile_it(nn.Linear(2, 2), "auto", monkeypatch, trial=trial)
