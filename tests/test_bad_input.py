"""Every mistake gets one clear line and its exit code; nothing is lost, overwritten or run."""

import json
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from programs import ROOT, SMALL, Done, checkpoint, make_digits, once, run, run_process

pytestmark = pytest.mark.slow
LONG = pytest.mark.long

RESNET18 = ("backbone=torchvision", "backbone.model_name=resnet18")
NATIVE = "\x1b[0;31m[ERROR]"  # what the image decoder's own library prints beside the error it returns


@pytest.fixture(scope="module")
def digits(shared):
    return once(shared, "four-of-each", lambda folder: make_digits(folder, train=4, val=2))


@pytest.fixture(scope="module")
def trained(shared, digits):
    """A finished run of a few steps."""
    given = [*SMALL, f"data.root={digits}", "train.epochs=1", "schedule.warmup_epochs=0", "output_dir=run"]
    return once(shared, "trained", lambda folder: run("train.py", *given, cwd=folder)) / "run"


def error_line(program: str, *overrides: str, cwd: Path, code: int = 2) -> str:
    """The one line that the program says; it says nothing else."""
    return only_line(run(program, *overrides, cwd=cwd, code=code))


def only_line(done: Done) -> str:
    lines = [line for line in done.stderr.splitlines() if not line.startswith(NATIVE)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bakbone=cotnet50"], "bakbone is not a setting; did you mean backbone?"),
        (["optimizer.momentun=0.5"], "optimizer.momentun is not a setting; did you mean optimizer.momentum?"),
        (["backbone=cotnet5"], "backbone=cotnet5 is unknown; did you mean cotnet50"),
        (["+train.epoch=3"], "train.epoch is not a setting; did you mean train.epochs?"),
        (["experimnet=digits"], "experimnet is not a setting; did you mean experiment"),
        (["+sede=1"], "sede is not a setting; did you mean seed"),
        (["train.epochs=many"], "train.epochs=many must be a whole number"),
        (["train.epochs=0"], "train.epochs=0 must be at least 1"),
        (["train.precision=fp8"], "train.precision=fp8 is unknown; did you mean"),
        (["optimizer.lr=-1"], "optimizer.lr=-1 must be positive"),
        (["train.loss=mse"], "train.loss=mse is unknown; valid: bce, ce"),
        (["train.clip_value=0"], "train.clip_value=0 must be positive, or null"),
        (["train.clip_norm=1", "train.clip_value=1"], "train.clip_value=1: clip by norm or by value; set clip_norm"),
        (["train.bce_threshold=1"], "train.bce_threshold=1 must be at least 0 and below 1, or null"),
        (["train.max_minutes=-1"], "train.max_minutes=-1 must be positive, or null"),
        (["train.sync_bn=true"], "train.sync_bn=true needs GPUs; set train.sync_bn=false"),
        (
            ["train.precision=tf32"],
            "train.precision=tf32 needs a GPU of compute capability 8.0 or newer; use train.precision=fp32",
        ),
        (["optimizer.layer_decay=0"], "optimizer.layer_decay=0 must be above 0 and at most 1, or null"),
        (["schedule.cooldown_epochs=2"], "schedule.cooldown_epochs=2 must be below the run's 2 epochs"),
        (["schedule.warmup_epochs=9"], "schedule.warmup_epochs=9 must be below the run's 2 epochs"),
        (["train.batch_size=21", "launch.ranks=2"], "train.batch_size=21 is not divisible by 2 ranks"),
        (["train.batch_size=4000"], "train.batch_size=4000 exceeds the 40 training images; lower it"),
        (["data.root=nowhere"], "nowhere: no such folder; give one that holds train/ and val/"),
        (["data.num_classes=7"], "has 10 classes but data.num_classes is 7; set data.num_classes=10"),
        (["augmentation.flip=2"], "augmentation.flip=2 must be from 0 to 1"),
        (["backbone._target_=os.system"], "'os.system' is not one of cotnet.models"),
        (["optimizer._target_=subprocess.run"], "optimizer._target_ 'subprocess.run' is not allowed"),
        (["optimizer.lr=["], "cannot read optimizer.lr=[: write key=value"),
        (["epochs=3"], "epochs is not a setting; did you mean train.epochs?"),
        (["data.rot=x"], "data.rot is not a setting; did you mean data.root?"),
        (["train.batch_size=abc"], "train.batch_size=abc must be a whole number"),
        (["data.root=a=b"], "cannot read data.root=a=b: write key=value"),
        (["experiment=finetune"], "backbone.head=reset wants weights to start from; set backbone.weights=PATH"),
        (["backbone.weights=nowhere.pth"], "backbone.weights=nowhere.pth does not exist"),
        (["launch.ranks=0"], "launch.ranks=0 must be at least 1"),
        (["loader.device=gpu"], "loader.device=gpu needs a GPU; set loader.device=auto or cpu"),
        (["loader.device=tpu"], "loader.device=tpu is unknown; did you mean"),
        (["train.compile=fast"], "train.compile=fast must be true or false or auto, default, reduce-overhead or max"),
        (["train.channels_last=yes"], "train.channels_last=yes must be true or false or auto"),
        (["train.checkpointing=[5]"], "train.checkpointing=[5] must be a list of 1, 2, 3 or 4, such as [1]"),
        (["train.checkpointing=[1]", *RESNET18], "train.checkpointing is for this project's own backbones"),
    ],
)
def test_configuration(overrides, message, digits, tmp_path):
    line = error_line("train.py", *SMALL, f"data.root={digits}", "output_dir=run", *overrides, cwd=tmp_path)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_one_image_is_too_few_for_a_norm_of_pooled_maps(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "output_dir=run", "train.batch_size=1"]
    assert "leaves one image to a rank and micro-batch" in error_line("train.py", *overrides, cwd=tmp_path)


@pytest.mark.slow
def test_too_little_memory(digits, trained, tmp_path):
    """Batches of terabytes, which NumPy really is asked for in a worker."""
    given = [f"data.root={digits}", "loader=torchvision", "loader.threads=1"]
    given += ["data.eval_size=200000"]
    line = error_line("train.py", *SMALL, *given, "output_dir=run", cwd=tmp_path, code=1)
    assert line.startswith("rank 0 ran out of memory when it asked for 2.18 TiB; lower train.batch_size=")
    given += [f"checkpoint={trained / 'checkpoints' / 'last.pt'}", "output_dir=evaluation"]
    line = error_line("evaluate.py", *given, cwd=tmp_path, code=1)
    assert line == "rank 0 ran out of memory when it asked for 2.18 TiB; lower data.eval_batch_size=90"


def test_missing_root(tmp_path):
    line = only_line(run_process(str(ROOT / "train.py"), cwd=tmp_path, code=2))
    where = "the folder that holds train/ and val/, for example data.root=datasets/imagenet"
    assert line == f"data.root is required; set data.root=DIR, {where}"
    line = error_line("evaluate.py", cwd=tmp_path)
    path = "PATH, for example checkpoint=outputs/demo/checkpoints/best.pt"
    assert line == f"checkpoint is required; set checkpoint={path}"


def test_folders(digits, tmp_path):
    def line_for(root: Path) -> str:
        return error_line("train.py", *SMALL, f"data.root={root}", "output_dir=run", cwd=tmp_path)

    (tmp_path / "empty").mkdir()
    assert "no such folder" in line_for(tmp_path / "empty")
    root = Path(shutil.copytree(digits, tmp_path / "set"))
    (root / "train" / "4" / "notes").mkdir(parents=True)
    shutil.rmtree(root / "train" / "5")
    (root / "train" / "5").mkdir()
    assert "5" in line_for(root)
    assert "without supported images" in line_for(root)
    shutil.rmtree(root / "train" / "5")
    assert "train and val have different classes; only in val: 5" in line_for(root)


@pytest.mark.parametrize(
    ("loader", "ranks"), [("dali", 1), pytest.param("dali", 2, marks=LONG), pytest.param("torchvision", 2, marks=LONG)]
)
@pytest.mark.slow
def test_damaged_image_is_named_and_the_last_checkpoint_survives(loader, ranks, digits, tmp_path):
    root = Path(shutil.copytree(digits, tmp_path / "set"))
    overrides = [*SMALL, f"data.root={root}", f"loader={loader}", f"launch.ranks={ranks}", "output_dir=run"]
    overrides.remove("loader.threads=1")
    run("train.py", *overrides, "train.max_steps=2", cwd=tmp_path)
    before = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    victim = sorted((root / "train" / "3").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:70])
    line = only_line(run_process(str(ROOT / "train.py"), *overrides, cwd=tmp_path, code=2))
    assert str(victim) in line
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == before


def test_checkpoints(trained, tmp_path, digits):
    def line_for(path: Path, *overrides: str) -> str:
        return error_line("evaluate.py", f"checkpoint={path}", "output_dir=out", *overrides, cwd=tmp_path)

    good = trained / "checkpoints" / "last.pt"
    assert (
        line_for(tmp_path / "none.pt")
        == f"no checkpoint at {tmp_path}/none.pt; give checkpoint=PATH of an existing file"
    )
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:100_000])
    assert "damaged or truncated" in line_for(tmp_path / "cut.pt")
    assert "is of another model" in line_for(good, "backbone=resnet50")
    assert "fc.bias is [10] there and [7] here" in line_for(good, "backbone=cotnet_small", "data.num_classes=7")
    assert "weights=best is unknown" in line_for(good, "weights=best")
    assert "precision=fp33 is unknown; valid: auto, bf16" in line_for(good, "precision=fp33")
    assert line_for(trained / "checkpoints").startswith(f"{trained}/checkpoints is a folder; give a file")
    pair = "no checkpoint at a.pt; give checkpoint=PATH of an existing file"
    assert error_line("evaluate.py", "checkpoint=[a.pt,b.pt]", cwd=tmp_path) == pair
    make_digits(tmp_path / "few", train=1, val=1)
    for label in range(4, 10):
        shutil.rmtree(tmp_path / "few" / "val" / str(label))
    assert "few has 4 classes, the model of" in line_for(good, "data.root=few")
    assert "no such folder" in line_for(good, "data.root=nowhere")


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_hostile_checkpoints_run_nothing(trained, tmp_path):
    trace = tmp_path / "was-run"
    command = f"touch {trace}"
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"format": 1, "model": Bomb(command)}))
    torch.save({"format": 1, "config": Bomb(command)}, tmp_path / "torch.pt")
    content = checkpoint(trained)
    del content["checksum"]
    config = json.loads(content["config"])
    targets = {
        "backbone": "os.system",
        "loader": "torch.utils.collect_env.run",
    }
    paths = [tmp_path / "pickle.pt", tmp_path / "torch.pt"]
    for group, target in targets.items():
        hostile = {**config, group: {"_target_": target, "command": command}}
        torch.save({**content, "config": json.dumps(hostile)}, tmp_path / f"{group}.pt")
        paths.append(tmp_path / f"{group}.pt")
    for path in paths:
        line = error_line("evaluate.py", f"checkpoint={path}", "output_dir=out", cwd=tmp_path)
        assert "refused" in line or "not allowed" in line or "not one of cotnet.models" in line
    assert not trace.exists()


def test_folder_of_another_run(trained, digits, tmp_path):
    files = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    overrides = [*SMALL, f"data.root={digits}", "train.epochs=1", "schedule.warmup_epochs=0"]
    line = error_line("train.py", *overrides, "train.batch_size=10", "seed=3", f"output_dir={trained}", cwd=tmp_path)
    assert "holds a run with another configuration" in line
    assert "train.batch_size was 20, now 10" in line
    assert "seed was 0, now 3" in line
    done = run("train.py", *overrides, f"output_dir={trained}", cwd=tmp_path)
    assert "is finished: 2 steps" in done.stdout
    assert files == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_what_failed_before_its_first_checkpoint_may_be_corrected(digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "output_dir=run", "train.max_steps=2"]
    line = error_line("train.py", *given, "optimizer.lr=1e30", "train.clip_norm=null", cwd=tmp_path, code=1)
    assert "loss is not finite at step 2" in line
    assert "last.pt" not in line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    run("train.py", *given, cwd=tmp_path)


def test_truncated_last_checkpoint_is_kept_and_named(trained, digits, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    given = [*SMALL, f"data.root={digits}", "train.epochs=1", "schedule.warmup_epochs=0", "output_dir=run"]
    line = error_line("train.py", *given, cwd=tmp_path)
    assert "run/checkpoints/last.pt is damaged or truncated" in line
    assert last.stat().st_size == (trained / "checkpoints" / "last.pt").stat().st_size - 1000


def test_nowhere_to_write(digits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = error_line("train.py", *SMALL, f"data.root={digits}", "output_dir=file/run", cwd=tmp_path)
    assert line == "cannot write into file/run: Not a directory; choose another output_dir"


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint(digits, tmp_path):
    """No file may grow beyond a megabyte, as on a disk with so much left."""
    overrides = [*SMALL, f"data.root={digits}", "output_dir=run"]
    run("train.py", *overrides, "train.max_steps=1", cwd=tmp_path)
    before = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = run_process(str(ROOT / "train.py"), *overrides, cwd=tmp_path, code=1, preexec_fn=limit)
    assert only_line(done).startswith("cannot write run/checkpoints/last.pt: ")
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.pt", "last.pt"]
    run("train.py", *overrides, cwd=tmp_path)
