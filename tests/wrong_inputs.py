"""Wrong command lines and what they answer: the table behind test_wrong_inputs.py and docs/errors.md.

python tests/wrong_inputs.py > docs/errors.md
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
QUICK = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "evaluation=[]",
    "callbacks=[]", "logger=none", "model.channels=[4,6]",
)  # fmt: skip
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")
FOLDER = "dataset=image_folder batch_size=4 dataset.root"
TRANSFER = "evaluation=[transfer] +dataset@evaluation.transfer.to.mine=image_folder evaluation.transfer.to.mine.root"


class Wrong(NamedTuple):
    """A command line, what is wrong with it, and a part of the answer. ``{name}`` stands for a place of :func:`places`."""

    what: str
    line: str
    answer: str
    program: str = "train.py"


TABLE: dict[str, list[Wrong]] = {
    "The command line": [
        Wrong("unknown group", "lerner=dtp", "unknown key 'lerner'; did you mean 'learner'?"),
        Wrong("unknown option", "learner=dpt", "learner=dpt: no such choice; did you mean 'dtp'?"),
        Wrong("no option", "learner=", "learner=: no such choice"),
        Wrong("unknown preset", "experiment=smok", "did you mean 'smoke'?"),
        Wrong("a group without any", "dataset=null", "a group takes the name of one of its options"),
        Wrong("a group taken out", "~learner", "learner must be a group's name or a section with a _target_"),
        Wrong("unknown evaluation", "evaluation=[linear,kn]", "evaluation=kn: no such choice; did you mean 'knn'?"),
        Wrong("misspelt key", "trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
        Wrong("misspelt key, added", "+learner.target_stp=2", "did you mean 'learner.target_step'?"),
        Wrong("key of another option", "loss.temperature=0.1", "unknown key 'loss.temperature'; it belongs to loss=dcl, simclr"),
        Wrong("the same in a multirun", "-m loss=hinge,simclr loss.temperature=0.1", "in a sweep over them, ++loss.temperature=..."),
        Wrong("key of many other options", "learner=bp learner.feedback.noise_std=1", "it belongs to learner=ddtp_linear, drl, "),
        Wrong("an option of other programs", "--epochs 5", "no such option; settings are written key=value"),
        Wrong("an argument that is not listed", "learner.forward_optimizer.weight_decay=1e-4", "torch.optim.Adam takes it: write +learner"),
        Wrong("the same, misspelt", "learner.forward_optimizer.weight_deca=1e-4", "did you mean '+learner.forward_optimizer.weight_decay'?"),
        Wrong("unknown configuration", "--config-name nope", "--config-name nope: no such configuration; there is: evaluate, train"),
        Wrong("a value twice", "hydra.mode=MULTIRUN seed=0,0", "seed=0,0: 0 is there twice; each value makes a run of its own"),
        Wrong("two equal signs", "learner==bp", "learner==bp: not understood; write key=value"),
        Wrong("a list left open", "model.channels=[4,8", "not understood; write key=value, a list as key=[a,b]"),
        Wrong("no value at all", "seed", "seed: not understood; write key=value"),
        Wrong("several values without -m", "learner=bp,dtp", "-m makes a run of each of several values"),
        Wrong("an interpolation to nowhere", "seed='${nope}'", "Interpolation key 'nope' not found"),
        Wrong("a class that does not exist", "learner._target_=my.Rule", "'my.Rule' cannot be imported"),
        Wrong("a module for a class", "learner._target_=dtp_lightning.learners", "is not a class or function"),
        Wrong("a password", "+logger.wandb.api_key=0123456789abcdef", "holds no secrets; W&B takes its key from"),
    ],
    "Values": [
        Wrong("not a number", "seed=abc", "seed=abc: should be a valid integer"),
        Wrong("negative seed", "seed=-1", "seed=-1: should be greater than or equal to 0"),
        Wrong("seed too large", "seed=4294967296", "should be less than 4294967296"),
        Wrong("negative size", "batch_size=-3", "batch_size=-3: should be greater than 0"),
        Wrong("half an image", "batch_size=2.5", "batch_size=2.5: should be a valid integer"),
        Wrong("no images", "batch_size=null", "batch_size=null: should be a valid integer"),
        Wrong("learning rate in words", "learner.forward_optimizer.lr=fast", "lr=fast: should be a valid number"),
        Wrong("learning rate NaN", "learner.forward_optimizer.lr=nan", "learner.forward_optimizer: Invalid learning rate"),
        Wrong("infinite learning rate", "learner.forward_optimizer.lr=inf", "lr=inf: should be a finite number"),
        Wrong("negative learning rate", "learner=dtp_autoencoder learner.feedback.optimizer.lr=-1", "learner.feedback.optimizer: Invalid learning"),
        Wrong("beta above 1", "+learner.forward_optimizer.betas=[2,3]", "Invalid beta parameter at index 0: 2"),
        Wrong("margin NaN", "loss.pos_margin=nan", "loss.pos_margin=nan: should be a finite number"),
        Wrong("negative temperature", "loss=simclr loss.temperature=-1", "loss.temperature=-1: should be greater than 0"),
        Wrong("no target step", "learner.target_step=0", "learner.target_step=0: should be greater than 0"),
        Wrong("no noise to learn from", "learner=drl learner.feedback.noise_std=0", "noise_std=0: should be greater than 0"),
        Wrong("smoothing above 1", "loss=cross_entropy loss.label_smoothing=2", "label_smoothing=2: should be less than 1"),
        Wrong("probability above 1", "augment.flip=1.5", "augment.flip=1.5: should be less than or equal to 1"),
        Wrong("range upside down", "augment=simclr augment.scale=[1,0.1]", "scale must be given as [low, high]"),
        Wrong("a probability for one view", "augment=cifar augment.solarise=[0.1]", "solarise has 1 entries for 2 views"),
        Wrong("half a range", "augment=simclr augment.scale=[1]", "augment.scale=[1]: 1 entries are too few"),
        Wrong("unknown choice", "loss.reduction=average", "must be one of active, mean, sum"),
        Wrong("options that exclude each other", "loss.diagonals=5", "set pairs=cross reduction=sum with it"),
        Wrong("no neighbours", "evaluation=[knn] evaluation.knn.k=0", "evaluation.knn.k=0: should be greater than 0"),
        Wrong("more neighbours than images", "evaluation=[knn] evaluation.knn.k=100000", "k=100000 is larger than the 3000 training images; lower evaluation.knn.k"),
        Wrong("no strengths", "evaluation=[linear] evaluation.linear.strengths=[]", "0 entries are too few"),
        Wrong("one image, no pair", "evaluation=[distances] evaluation.distances.images=1", "greater than or equal to 2"),
        Wrong("unknown map", "callbacks=[pictures] callbacks.pictures.map=tnse", "must be one of pca, tsne, umap; did you mean 'tsne'?"),
        Wrong("never", "callbacks=[online_knn] callbacks.online_knn.every_n_epochs=0", "should be greater than 0"),
    ],
    "Training": [
        Wrong("no epochs", "trainer.max_epochs=0", "trainer.max_epochs=0: at least one epoch is needed"),
        Wrong("no number of epochs", "trainer.max_epochs=null", "trainer.max_epochs=null: at least one epoch is needed"),
        Wrong("no steps", "trainer.max_steps=0", "at least one step is needed, or -1 for no limit"),
        Wrong("no batches", "trainer.limit_train_batches=0", "at least one batch is needed; 1.0 takes all"),
        Wrong("logging at no step", "trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: should be greater than 0"),
        Wrong("fp16", "trainer.precision=16-mixed", "trainer.precision=16-mixed: must be 32-true or bf16-mixed"),
        Wrong("clipping", "+trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val has no meaning for learners"),
        Wrong("another's business", "+trainer.callbacks=[]", "trainer.callbacks is not the trainer's to say here"),
        Wrong("missing GPU", "trainer.accelerator=cuda", "CUDAAccelerator` can not run on your system"),
        Wrong("unknown accelerator", "trainer.accelerator=gpuu", "invalid accelerator name: `accelerator='gpuu'`"),
        Wrong("no device", "trainer.devices=0", "trainer.devices=0: at least one device is needed"),
        Wrong("a strategy that owns gradients", "trainer.strategy=fsdp", "must be auto or ddp"),
        Wrong("batch larger than the data", "batch_size=9999", "batch_size=9999 is larger than the 3000 training images"),
        Wrong("a batch of one", "batch_size=1", "loss=hinge compares the images of a batch and needs at least 2"),
        Wrong("a batch of one, lightly's loss", "batch_size=1 loss=simclr", "loss=simclr compares the images of a batch"),
        Wrong("one view", "augment=clean", "loss=hinge compares two views, and these augmentations give one"),
        Wrong("embeddings of another size", "loss=clapp loss.embedding_dim=7", "set it to model.embedding_dim"),
        Wrong("too many workers", "workers=100000", "workers=100000: should be less than or equal to 256"),
    ],
    "The network": [
        Wrong("image smaller than the poolings", "model.channels=[4,4,4,4,4,4]", "too small for poolings by [2, 2, 2, 2, 2, 2]"),
        Wrong("a network larger than the memory", "model.channels=[100000,100000]", "GiB of memory, and this machine has"),
        Wrong("no stages", "model.channels=[]", "model.channels=[]: 0 entries are too few"),
        Wrong("no channels", "model.channels=[0]", "model.channels=[0]: should be greater than 0"),
        Wrong("a word among channels", "model.channels=[8,wide]", "should be a valid integer"),
        Wrong("one stage, no feedback", "model.channels=[4]", "feedback goes from stage to stage, and this network has one"),
        Wrong("even kernel", "model.kernel_size=4", "kernel_size=4 must be odd"),
        Wrong("unknown activation", "model.activation=Tahn", "torch.nn has no activation 'Tahn'"),
        Wrong("a layer for an activation", "model.activation=Linear", "torch.nn.Linear is no activation"),
        Wrong("a list of another length", "model.pool=[2,2,2]", "model.pool has 3 entries for 2 stages"),
        Wrong("noise for other maps", "learner=dtp_autoencoder learner.feedback.noise_std=[1,1]", "noise_std has 2 entries for 1 feedback maps"),
    ],
    "Data": [
        Wrong("no such folder", f"{FOLDER}={{nowhere}}", "there is no folder"),
        Wrong("a file for a folder", f"{FOLDER}={{images}}/train/a/0.png", "there is no folder"),
        Wrong("no images", f"{FOLDER}={{no_images}}", "holds 0 images"),
        Wrong("empty class", f"{FOLDER}={{empty_class}}", "train/b holds no images"),
        Wrong("class in test alone", f"{FOLDER}={{test_class}}", "test/c is a class that train/ does not have"),
        Wrong("too few to split", f"{FOLDER}={{few}}", "train/b holds too few images to take some for test"),
        Wrong("damaged file", f"{FOLDER}={{damaged}}", "0.png cannot be read (not an image): replace or remove it"),
        Wrong("labels missing for the loss", f"{FOLDER}={{unlabelled}} loss=cross_entropy", "a supervised loss needs labels"),
        Wrong("no coarse classes", "dataset.labels=coarse", "classes 0, 1, 2, ... have no coarse ones; there is: CIFAR-10"),
        Wrong("unknown kind of labels", "dataset.labels=corse", "must be one of fine, coarse; did you mean 'coarse'?"),
        Wrong("more noise than labels", "dataset.label_noise=1.5", "should be less than or equal to 1"),
        Wrong("no label at all", "dataset.labelled_fraction=0", "dataset.labelled_fraction=0: should be greater than 0"),
        Wrong("noise without labels", f"{FOLDER}={{unlabelled}} dataset.label_noise=0.4", "these images have no labels; remove it"),
        Wrong("one class for a probe", f"{FOLDER}={{one_class}} evaluation=[linear]", "a probe needs images of two classes"),
        Wrong(
            "too few labels for a probe",
            f"{FOLDER}={{images}} evaluation=[few_labels] evaluation.few_labels.per_class=[1000]",
            "the smallest class has 9 images, fewer than [1000]; lower evaluation.few_labels.per_class",
        ),
        Wrong("size below the poolings", f"{FOLDER}={{images}} dataset.size=3", "images of 3 x 3 pixels are too small"),
        Wrong("two channels", f"{FOLDER}={{images}} dataset.channels=2", "dataset.channels=2: must be one of 1, 3"),
        Wrong("missing files", "dataset=cifar10 dataset.root={nowhere} dataset.download=false", "is missing or damaged in"),
        Wrong("missing files, digits", "dataset=svhn dataset.root={nowhere} dataset.download=false", "SVHN (train) is missing or damaged in"),
        Wrong("missing files, no download", "dataset=tiny_imagenet dataset.root={nowhere}", "Tiny ImageNet is missing in"),
        Wrong("no file", "dataset=npz", "dataset.path has no value: give dataset.path=..."),
        Wrong("a file that is not there", "dataset=npz dataset.path={nowhere}", "there is no such file; give an .npz or .npy file"),
        Wrong("a file of another kind", "dataset=npz dataset.path={evil}", "cannot be read (evil/data.pkl in it is no array)"),
        Wrong("half a file", "dataset=npz dataset.path={half}", "cannot be read (File is not a zip file): save it again"),
        Wrong("pixels as fractions", "dataset=npz dataset.path={fractions}", "train images are float64: save them as uint8 in 0..255"),
        Wrong("unknown keys of a file", "dataset=npz dataset.path={unnamed}", "no images to train on among its keys (pictures)"),
        Wrong("no such folder", "dataset=huggingface dataset.name={nowhere}", "there is no such folder"),
        Wrong("unknown data set", "dataset=cifar10 dataset.dataset=CIFAR11", "torchvision.datasets has no 'CIFAR11'"),
        Wrong("transfer to nothing", "evaluation=[transfer]", "transfer to which data set? add"),
        Wrong("a probe told other labels", "checkpoint={run} dataset=mnist +dataset.labels=coarse", "dataset.labels is for training: remove it", "evaluate.py"),
        Wrong("labels missing for transfer", f"{TRANSFER}={{unlabelled}}", "transfer to mine: its images have no labels"),
    ],
    "Folders and checkpoints": [
        Wrong("a folder with a run in it", "hydra.run.dir={run}", "holds a run already: resume=true goes on with it"),
        Wrong("another run in the folder", "hydra.run.dir={run} resume=true seed=1", "holds a run with another seed (was 0, now 1)"),
        Wrong("read-only folder", "hydra.run.dir={read_only}/mine", "hydra.run.dir=... chooses where a run is written"),
        Wrong("a file for a folder", "hydra.run.dir={run}/summary.json/mine", "not a directory; hydra.run.dir=... chooses"),
        Wrong("a folder that cannot be made", "hydra.run.dir=/proc/mine", "hydra.run.dir=... chooses where a run is written"),
        Wrong("resume from nowhere", "resume={nowhere}", "no such checkpoint; give a run folder or a .ckpt file"),
        Wrong("resume by a number", "resume=5", "resume=5: should be a valid boolean or should be a valid string"),
        Wrong("checkpoint of another model", "resume={run} model.channels=[4,8]", "is of another learner, model or data set"),
        Wrong("colour images, grey checkpoint", f"{FOLDER}={{images}} resume={{run}}", "(4, 1, 3, 3) there, (4, 3, 3, 3) here"),
        Wrong("checkpoint that runs code", "resume={evil}", "is refused, nothing of it was run: it asks for"),
        Wrong("no checkpoint", "", "checkpoint has no value: give checkpoint=...", "evaluate.py"),
        Wrong("missing checkpoint", "checkpoint={nowhere}", "no such file; a run leaves", "evaluate.py"),
        Wrong("not a checkpoint", "checkpoint={run}/summary.json", "damaged, or not a checkpoint of train.py", "evaluate.py"),
        Wrong("checkpoint that runs code", "checkpoint={evil}", "is refused, nothing of it was run", "evaluate.py"),
        Wrong("checkpoint naming a stranger", "checkpoint={stranger}", "names os.system, which is not shipped", "evaluate.py"),
        Wrong(
            "labels missing for all probes",
            "checkpoint={run}/checkpoints/last.ckpt dataset=image_folder dataset.root={unlabelled}",
            "nothing is left to evaluate",
            "evaluate.py",
        ),
        Wrong("unknown accelerator", "checkpoint={run}/checkpoints/last.ckpt evaluation=[knn] accelerator=gpuu", "accelerator=gpuu:", "evaluate.py"),
    ],
}  # fmt: skip
CASES = [case for cases in TABLE.values() for case in cases]


def places(folder: Path) -> dict[str, Path]:
    """Make the folders and files that the command lines name."""
    import numpy as np
    import torch
    from PIL import Image

    generator = np.random.default_rng(0)

    def images(name: str, **classes: int) -> Path:
        for below, count in classes.items():
            (folder / name / below.replace("_", "/")).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / below.replace("_", "/") / f"{i}.png")
        return folder / name

    found = {
        "nowhere": folder / "nowhere",
        "images": images("images", train_a=12, train_b=12),
        "no_images": images("no_images", a=0),
        "empty_class": images("empty_class", train_a=12, train_b=0),
        "test_class": images("test_class", train_a=12, train_b=12, test_c=2),
        "few": images("few", train_a=12, train_b=1),
        "damaged": images("damaged", train_a=12, train_b=12),
        "unlabelled": images("unlabelled", pictures=12),
        "one_class": images("one_class", train_a=12),
        "half": folder / "half.npz",
        "fractions": folder / "fractions.npz",
        "unnamed": folder / "unnamed.npz",
        "run": folder / "run",
        "evil": folder / "evil.ckpt",
        "stranger": folder / "stranger.ckpt",
        "read_only": folder / "read_only" if os.geteuid() else Path("/sys/kernel"),  # root may write anywhere else
    }
    (found["damaged"] / "train" / "a" / "0.png").write_text("not an image")
    np.savez(found["fractions"], images=generator.random((12, 20, 20, 3)), labels=np.arange(12) % 2)
    np.savez(found["unnamed"], pictures=np.zeros((12, 20, 20, 3), dtype=np.uint8))
    found["half"].write_bytes(found["unnamed"].read_bytes()[:3000])
    if os.geteuid():
        found["read_only"].mkdir(mode=0o555)
    code, told = attempt(Wrong("", "hydra.run.dir={run}", ""), found)
    assert code is None, told
    torch.save({"state_dict": Evil(folder / "pwned")}, found["evil"])
    stored = torch.load(found["run"] / "checkpoints" / "last.ckpt", weights_only=True)
    stored["hyper_parameters"]["config"]["augment"] = {"_target_": "os.system", "command": f"touch {folder}/pwned"}
    torch.save(stored, found["stranger"])
    return found


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


@contextlib.contextmanager
def _as_started(words: list[str]) -> Iterator[io.StringIO]:
    """What a program finds when it starts, and what it writes to stderr; everything is put back afterwards."""
    from hydra.core.global_hydra import GlobalHydra

    errors = io.StringIO()
    GlobalHydra.instance().clear()
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        os.environ.pop("HYDRA_FULL_ERROR", None)
        yield errors


def words_of(case: Wrong, known: Mapping[str, Path]) -> list[str]:
    """The command line, with real places, and with what makes a run quick where the case leaves it open."""
    line = case.line
    for name, path in known.items():
        line = line.replace(f"{{{name}}}", str(path))
    given = shlex.split(line)
    keys = {word.partition("=")[0] for word in given}
    quick = [word for word in QUICK if word.partition("=")[0] not in keys] if case.program == "train.py" else []
    folder = [] if "hydra.run.dir" in keys else [f"hydra.run.dir={known['run'].parent / 'out'}/{abs(hash(case))}"]
    options = given if any(word.startswith("--") for word in given) else [*quick, *QUIET, *folder, *given]
    return [case.program, *options]


def attempt(case: Wrong, known: Mapping[str, Path]) -> tuple[object, str]:
    """:func:`started` for a case."""
    return started(words_of(case, known))


def started(words: list[str]) -> tuple[object, str]:
    """Run a program and its words in this process; its exit code (None: it ended well) and what it wrote to stderr."""
    with _as_started(words) as errors:
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            code: object = None
        except SystemExit as stop:
            code = stop.code
    return code, errors.getvalue().strip()


def page(folder: Path) -> Iterator[str]:
    """The table as Markdown."""
    known = places(folder)
    yield '# What wrong input is answered\n\nWritten by `make errors`, held by `make test ARGS="-k wrong_inputs"`. Every answer is one line'
    yield "(after `error: `), the exit code is 2, and `HYDRA_FULL_ERROR=1` shows the traceback. Places in capitals are examples."
    for title, cases in TABLE.items():
        yield f"\n## {title}\n\n| | `python ...` | answer |\n|---|---|---|"
        for case in cases:
            told = attempt(case, known)[1].splitlines()[-1].removeprefix("error: ")
            told = told.replace("_target_", "`_target_`")  # no emphasis
            told = re.sub(r"(?<=Available names are: ).*", "...", told)  # a set, in any order
            line = f"{case.program} {case.line}"
            for name, path in sorted(known.items(), key=lambda item: -len(str(item[1]))):
                told = told.replace(str(path), name.upper())
                line = line.replace(f"{{{name}}}", name.upper())
            yield f"| {case.what} | `{line.strip()}` | {told} |".replace(str(folder), "...")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        lines = list(page(Path(temporary)))
    print("\n".join(lines))
