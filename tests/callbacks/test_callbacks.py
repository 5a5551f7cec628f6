import builtins
import importlib
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fmcefast import ConvergenceRecorder, cqi, find_markers
from fmcefast.errors import InputError
from fmcefast.maturity.probe import probe
from fmcefast.run.epochs import read_epochs
from fmcefast.run.maturity import read_maturity

SETTINGS = {"phases": 2, "mu": 0.05, "alpha": 0.5, "window": 2}
EPOCHS = 12


def losses_of(path):
    return [row.loss for row in read_epochs(path / "losses.csv")]


def line(samples=16):
    """Points on y = 2x, (samples, 1) each."""
    x = torch.linspace(-1, 1, samples)[:, None]
    return x, 2 * x


class Images(nn.Module):
    """A small network for images (N, 1, 8, 8), and its loss."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(4, 2)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.backbone(pixel_values).mean((2, 3)))
        return {"logits": logits, **({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})}


def images_and_labels(samples=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, 1, 8, 8, generator=generator), torch.arange(samples) % 2


def check_maturity(run, epochs, net, module, images):
    """Rows of every epoch, of which the last are what the trained network has."""
    rows = read_maturity(run / "maturity.csv")
    assert [(row.epoch, row.module) for row in rows] == [(epoch, module) for epoch in range(1, epochs + 1)]
    found = probe(net, [module], images)[module]
    assert {name: getattr(rows[-1], name) for name in vars(rows[-1]) if name in found} == {
        name: value for name, value in found.items() if name.startswith("bn_")
    }


@pytest.mark.parametrize(
    ("library", "module", "extra"),
    [("lightning", "lightning", "lightning"), ("transformers", "huggingface", "transformers")],
)
def test_a_library_that_is_missing_is_named(monkeypatch, library, module, extra):
    def without(name, *arguments, **keywords):
        if name.split(".")[0] in (library, "pytorch_lightning"):
            raise ImportError(name)
        return imported(name, *arguments, **keywords)

    imported = builtins.__import__
    monkeypatch.delitem(sys.modules, f"fmcefast.callbacks.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"not installed.*pip install 'fmcefast\[{extra}\]'"):
        importlib.import_module(f"fmcefast.callbacks.{module}")


class TestLightning:
    @pytest.fixture
    def lightning(self):
        return pytest.importorskip("lightning.pytorch")

    @pytest.fixture
    def fit(self, lightning, tmp_path):
        """fit(callback, ...) trains a line and returns the trainer and the module."""

        class Line(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(1, 1, bias=False)
                nn.init.zeros_(self.layer.weight)
                self.means = []

            def training_step(self, batch, index):
                loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
                self.log("train_loss", loss, on_step=True, on_epoch=True)
                self.means[-1].append(loss.item())
                return loss

            def validation_step(self, batch, index):
                self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

            def on_train_epoch_start(self):
                self.means.append([])

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)}

        def fit(callback, epochs=EPOCHS, checkpoint=None, **settings):
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=[callback],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
                **settings,
            )
            net = Line()
            loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*line()), batch_size=4)
            trainer.fit(net, loader, loader, ckpt_path=checkpoint)
            return trainer, net

        return fit

    @pytest.fixture
    def callback(self, lightning):
        from fmcefast.callbacks.lightning import ConvergenceCallback

        return ConvergenceCallback

    def test_every_epoch_is_recorded(self, fit, callback, tmp_path):
        trainer, net = fit(callback(tmp_path / "run", **SETTINGS))
        losses = losses_of(tmp_path / "run")
        np.testing.assert_allclose(losses, [np.mean(each) for each in net.means], rtol=1e-5)
        assert trainer.callback_metrics["cqi"] == pytest.approx(cqi(losses, alpha=0.5, window=2)[-1], rel=1e-5)
        with ConvergenceRecorder(tmp_path / "run") as recorder:
            assert recorder.run.config.backbone == "Line"
            assert recorder.markers().markers == find_markers(losses, **SETTINGS).markers
            stored = load_file(recorder.run.weights_of(EPOCHS))
        torch.testing.assert_close(stored, dict(net.state_dict()), rtol=0, atol=0)
        rates = [row.lr for row in read_epochs(tmp_path / "run" / "losses.csv")]
        np.testing.assert_allclose(rates, 0.1 * 0.99 ** np.arange(EPOCHS))

    def test_training_stops_at_convergence(self, fit, callback, tmp_path):
        trainer, _ = fit(callback(tmp_path / "run", stop=True, **SETTINGS))
        losses = losses_of(tmp_path / "run")
        assert len(losses) == find_markers(losses, **SETTINGS).markers[-1] == trainer.current_epoch < EPOCHS

    def test_a_training_from_a_checkpoint_goes_on_after_it(self, fit, callback, tmp_path):
        fit(callback(tmp_path / "whole", **SETTINGS), epochs=5)
        trainer, _ = fit(callback(tmp_path / "run", name="mine", **SETTINGS), epochs=3)
        trainer.save_checkpoint(tmp_path / "third.ckpt")
        fit(callback(tmp_path / "run"), epochs=4, checkpoint=tmp_path / "third.ckpt")
        assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")[:4]
        fit(callback(tmp_path / "run"), epochs=5, checkpoint=tmp_path / "third.ckpt")
        assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")

    def test_a_metric_that_was_not_logged_is_named(self, fit, callback, tmp_path):
        with pytest.raises(
            InputError, match=r"No 'loss' was logged in epoch 1; there are .*'train_loss'.*on_epoch=True"
        ):
            fit(callback(tmp_path / "run", monitor="loss"))
        ConvergenceRecorder(tmp_path / "run").close()  # nobody holds it

    @pytest.fixture
    def fit_images(self, lightning, tmp_path):
        class Classifier(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Images()

            def forward(self, images):
                return self.net(images)["logits"]

            def training_step(self, batch, index):
                loss = self.net(*batch)["loss"]
                self.log("train_loss", loss, on_epoch=True)
                return loss

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

        def fit(run, **probed):
            from fmcefast.callbacks.lightning import ConvergenceCallback

            lightning.seed_everything(0, verbose=False)
            net = Classifier()
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=2,
                callbacks=[ConvergenceCallback(run, **probed)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
            )
            data = torch.utils.data.TensorDataset(*images_and_labels())
            trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))
            return net

        return fit

    def test_the_maturity_of_modules_is_recorded(self, fit_images, tmp_path):
        images, labels = images_and_labels(24)
        net = fit_images(tmp_path / "run", modules=["net.backbone"], images=[(images, labels)])
        check_maturity(tmp_path / "run", 2, net, "net.backbone", [images])
        plain = fit_images(tmp_path / "plain").state_dict()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in net.state_dict().items())

    def test_a_bad_module_is_named_before_the_first_epoch(self, fit_images, tmp_path):
        with pytest.raises(InputError, match="Unknown module of Classifier 'backbone'"):
            fit_images(tmp_path / "run", modules=["backbone"], images=images_and_labels(24)[0])
        with ConvergenceRecorder(tmp_path / "run") as recorder:
            assert recorder.epochs == 0

    def test_a_trial_leaves_nothing(self, fit, callback, tmp_path):
        fit(callback(tmp_path / "run"), fast_dev_run=True)
        assert not (tmp_path / "run").exists()


class TestHuggingFace:
    @pytest.fixture
    def transformers(self):
        pytest.importorskip("accelerate")
        return pytest.importorskip("transformers")

    @pytest.fixture
    def fit(self, transformers, tmp_path):
        """fit(callback, ...) trains a line and returns the trainer and the module."""

        class Line(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(1, 1, bias=False)
                nn.init.zeros_(self.layer.weight)
                self.losses = []

            def forward(self, x, labels):
                logits = self.layer(x)
                loss = nn.functional.mse_loss(logits, labels)
                self.losses.append(loss.item())
                return {"loss": loss, "logits": logits}

        def fit(callback, epochs=EPOCHS, resume=None, **settings):
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path / "hf"),
                num_train_epochs=epochs,
                per_device_train_batch_size=4,
                learning_rate=0.1,
                optim="sgd",
                lr_scheduler_type="constant",
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                **{"save_strategy": "no", **settings},
            )
            net = Line()
            data = [{"x": x, "labels": y} for x, y in zip(*line(), strict=True)]
            trainer = transformers.Trainer(net, arguments, train_dataset=data, callbacks=[callback])
            trainer.train(resume_from_checkpoint=resume)
            return trainer, net

        return fit

    @pytest.fixture
    def callback(self, transformers):
        from fmcefast.callbacks.huggingface import ConvergenceCallback

        return ConvergenceCallback

    @pytest.mark.parametrize(
        "logging",
        [
            {"logging_strategy": "epoch"},
            {"logging_strategy": "steps", "logging_steps": 2},
            {"logging_strategy": "steps", "logging_steps": 3},  # of an epoch's four
            {"logging_strategy": "no"},
        ],
    )
    def test_every_epoch_is_recorded(self, fit, callback, tmp_path, logging):
        _, net = fit(callback(tmp_path / "run", **SETTINGS), **logging)
        losses = losses_of(tmp_path / "run")
        np.testing.assert_allclose(losses, np.reshape(net.losses, (EPOCHS, 4)).mean(1), rtol=1e-4)
        with ConvergenceRecorder(tmp_path / "run") as recorder:
            assert recorder.run.config.backbone == "Line"
            assert recorder.markers().markers == find_markers(losses, **SETTINGS).markers
            stored = load_file(recorder.run.weights_of(EPOCHS))
        torch.testing.assert_close(stored, dict(net.state_dict()), rtol=0, atol=0)
        assert {row.lr for row in read_epochs(tmp_path / "run" / "losses.csv")} == {0.1}

    @pytest.mark.parametrize("strategy", ["epoch", "steps"])
    def test_training_stops_at_convergence(self, fit, callback, tmp_path, strategy):
        recording = callback(tmp_path / "run", stop=True, **SETTINGS)
        trainer, _ = fit(recording, logging_strategy=strategy, logging_steps=1)
        losses = losses_of(tmp_path / "run")
        assert len(losses) == find_markers(losses, **SETTINGS).markers[-1] == trainer.state.epoch < EPOCHS
        assert recording.recorder.converged

    def test_a_training_from_a_checkpoint_goes_on_after_it(self, fit, callback, tmp_path):
        recording = callback(tmp_path / "run", **SETTINGS)
        _, whole = fit(recording, epochs=4, save_strategy="epoch")
        losses = losses_of(tmp_path / "run")
        _, rest = fit(recording, epochs=4, resume=str(tmp_path / "hf" / "checkpoint-8"))
        assert rest.losses == whole.losses[8:]
        assert losses_of(tmp_path / "run") == losses

    @pytest.fixture
    def fit_images(self, transformers, tmp_path):
        def fit(run, **probed):
            from fmcefast.callbacks.huggingface import ConvergenceCallback

            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path / "hf"),
                num_train_epochs=2,
                per_device_train_batch_size=4,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
            )
            transformers.set_seed(0)
            net = Images()
            data = [{"pixel_values": x, "labels": y} for x, y in zip(*images_and_labels(), strict=True)]
            callbacks = [ConvergenceCallback(run, **probed)]
            transformers.Trainer(net, arguments, train_dataset=data, callbacks=callbacks).train()
            return net

        return fit

    def test_the_maturity_of_modules_is_recorded(self, fit_images, tmp_path):
        images, labels = images_and_labels(24)
        batches = [{"pixel_values": images, "labels": labels}]
        net = fit_images(tmp_path / "run", modules=["backbone"], images=batches)
        check_maturity(tmp_path / "run", 2, net, "backbone", [images])
        plain = fit_images(tmp_path / "plain").state_dict()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in net.state_dict().items())

    def test_a_bad_module_is_named_before_the_first_epoch(self, fit_images, tmp_path):
        with pytest.raises(InputError, match=r"Unknown module of Images 'backbon'\. Did you mean 'backbone'"):
            fit_images(tmp_path / "run", modules=["backbon"], images=images_and_labels(24)[0])
        assert not (tmp_path / "run" / "losses.csv").exists()

    def test_a_trainer_that_logs_nothing_is_refused(self, transformers, callback, tmp_path):
        recording = callback(tmp_path / "run")
        state = transformers.TrainerState(epoch=1.0, global_step=0, is_world_process_zero=True)
        control = transformers.TrainerControl()
        recording.on_train_begin(None, state, control)
        state.global_step = 4
        recording.on_epoch_end(None, state, control, model=nn.Linear(1, 1))
        assert control.should_log
        for goes_on in (recording.on_epoch_begin, recording.on_train_end):
            with pytest.raises(InputError, match='logging_strategy="epoch"'):
                goes_on(None, state, control)
