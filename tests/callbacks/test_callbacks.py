import builtins
import importlib
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fmcefast import ConvergenceRecorder, cqi, find_markers
from fmcefast.convergence.stopping import Stopping
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
        """fit(callback, ...) trains a line and returns the trainer and the module; log: how the loss is logged."""

        class Line(lightning.LightningModule):
            def __init__(self, log):
                super().__init__()
                self.layer = nn.Linear(1, 1, bias=False)
                nn.init.zeros_(self.layer.weight)
                self.log_loss = log
                self.means = []  # of Lightning, by epoch

            def training_step(self, batch, index):
                x, y = getattr(batch, "pair", batch)
                loss = nn.functional.mse_loss(self.layer(x), y)
                self.log_loss(self, loss, index)
                self.log("mean", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x))
                return loss

            def on_train_epoch_end(self):
                self.means.append(self.trainer.callback_metrics["mean"].item())

            def validation_step(self, batch, index):
                self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)}

        def both(module, loss, index):
            module.log("train_loss", loss, on_step=True, on_epoch=True)

        def fit(callbacks, epochs=EPOCHS, checkpoint=None, log=both, samples=16, collate=None, **settings):
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=callbacks,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
                **settings,
            )
            net = Line(log)
            data = torch.utils.data.TensorDataset(*line(samples))
            loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collate)
            validation = torch.utils.data.DataLoader(data, batch_size=4)
            trainer.fit(net, loader, validation, ckpt_path=checkpoint)
            return trainer, net

        return fit

    @pytest.fixture
    def callback(self, lightning):
        from fmcefast.callbacks.lightning import ConvergenceCallback

        return ConvergenceCallback

    def test_every_epoch_is_recorded(self, fit, callback, tmp_path):
        trainer, net = fit(callback(tmp_path / "run", **SETTINGS))
        losses = losses_of(tmp_path / "run")
        np.testing.assert_allclose(losses, net.means, rtol=1e-6)
        assert trainer.callback_metrics["cqi"] == pytest.approx(cqi(losses, alpha=0.5, window=2)[-1], rel=1e-5)
        with ConvergenceRecorder(tmp_path / "run", resume=True) as recorder:
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
        with pytest.warns(RuntimeWarning, match="Epoch 4 is recorded again"):
            fit(callback(tmp_path / "run"), epochs=5, checkpoint=tmp_path / "third.ckpt")
        assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")

    def test_a_metric_that_was_not_logged_is_named(self, fit, callback, tmp_path):
        with pytest.raises(
            InputError, match=r"No 'loss' was logged in epoch 1; there are .*'train_loss'.*on_epoch=True"
        ):
            fit(callback(tmp_path / "run", monitor="loss"))
        ConvergenceRecorder(tmp_path / "run").close()  # nobody holds it

    @pytest.mark.parametrize(
        "options",
        [{}, {"on_step": True}, {"on_epoch": True}, {"on_step": False, "on_epoch": True}, {"prog_bar": True}],
        ids=str,
    )
    @pytest.mark.parametrize(
        "settings", [{}, {"accumulate_grad_batches": 3}, {"val_check_interval": 2}, {"limit_val_batches": 0}], ids=str
    )
    def test_the_mean_of_an_epoch_is_recorded_however_it_is_logged(self, fit, callback, tmp_path, options, settings):
        def log(module, loss, index):
            module.log("train_loss", loss, **options)

        _, net = fit(callback(tmp_path / "run"), epochs=3, log=log, samples=18, **settings)  # the last batch is smaller
        np.testing.assert_allclose(losses_of(tmp_path / "run"), net.means, rtol=1e-6)

    def test_batches_that_are_not_logged_do_not_count(self, fit, callback, tmp_path):
        logged = []

        def log(module, loss, index):
            if index % 2 == 0:
                module.log("train_loss", loss)
                logged.append(loss.item())

        fit(callback(tmp_path / "run"), epochs=3, log=log)
        np.testing.assert_allclose(losses_of(tmp_path / "run"), np.reshape(logged, (3, 2)).mean(1), rtol=1e-6)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a process that uses CUDA cannot be forked")
    @pytest.mark.parametrize("options", [{}, {"on_epoch": True}, {"on_step": False, "on_epoch": True}], ids=str)
    def test_the_mean_is_that_of_all_processes(self, fit, callback, tmp_path, options):
        def log(module, loss, index):
            module.log("train_loss", loss, **options)

        settings = {"devices": 2, "strategy": "ddp_fork", "accumulate_grad_batches": 9}  # one step, at the end
        fit(callback(tmp_path / "run"), epochs=1, log=log, **settings)
        assert losses_of(tmp_path / "run") == pytest.approx([(line()[1] ** 2).mean().item()])

    def test_a_metric_that_is_no_longer_logged_is_not_recorded_again(self, fit, callback, tmp_path):
        for name, options in (("steps", {}), ("epochs", {"on_step": False, "on_epoch": True})):

            def log(module, loss, index, options=options):
                if module.current_epoch < 2:
                    module.log("train_loss", loss, **options)

            with pytest.raises(InputError, match="No 'train_loss' was logged in epoch 3"):
                fit(callback(tmp_path / name), log=log)
            assert len(losses_of(tmp_path / name)) == 2

    def test_batches_whose_size_cannot_be_seen_are_refused_with_the_remedy(self, fit, callback, tmp_path):
        class Pair:
            def __init__(self, samples):
                self.pair = torch.utils.data.default_collate(samples)

        def with_size(module, loss, index):
            module.log("train_loss", loss, on_epoch=True, batch_size=4)

        with pytest.raises(InputError, match=r"number of samples in a batch.*on_epoch=True, batch_size=N\)"):
            fit(callback(tmp_path / "run"), log=lambda module, loss, _: module.log("train_loss", loss), collate=Pair)
        _, net = fit(callback(tmp_path / "run"), epochs=2, log=with_size, collate=Pair)
        np.testing.assert_allclose(losses_of(tmp_path / "run"), net.means, rtol=1e-6)

    def test_an_epoch_that_goes_on_in_its_middle_is_warned_of(self, lightning, fit, callback, tmp_path):
        class Save(lightning.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, index):
                if trainer.current_epoch == 1 and index == 1:
                    trainer.save_checkpoint(tmp_path / "middle.ckpt")

        fit([callback(tmp_path / "run"), Save()], epochs=1)
        fit([callback(tmp_path / "other"), Save()], epochs=2)
        with pytest.warns(UserWarning, match="Epoch 2 goes on in its middle: .* from batch 3 on"):
            fit(callback(tmp_path / "run"), epochs=2, checkpoint=tmp_path / "middle.ckpt")
        assert len(losses_of(tmp_path / "run")) == 2

    def test_a_new_training_is_not_mixed_with_an_old_one(self, fit, callback, tmp_path):
        fit(callback(tmp_path / "run"), epochs=2)
        before = losses_of(tmp_path / "run")
        weights = (tmp_path / "run" / "weights" / "epoch-0001.safetensors").read_bytes()
        with pytest.raises(
            InputError, match=r"holds 2 epochs. Go on .*ckpt_path=FILE.* resume=True; or .*another folder"
        ):
            fit(callback(tmp_path / "run"), epochs=2)
        assert losses_of(tmp_path / "run") == before
        assert (tmp_path / "run" / "weights" / "epoch-0001.safetensors").read_bytes() == weights
        fit(callback(tmp_path / "run", resume=True), epochs=2)
        assert losses_of(tmp_path / "run") == before * 2

    def test_a_checkpoint_that_is_ahead_of_the_folder_is_refused_at_once(self, fit, callback, tmp_path):
        trainer, _ = fit(callback(tmp_path / "run"), epochs=3)
        trainer.save_checkpoint(tmp_path / "third.ckpt")
        with pytest.raises(InputError, match=r"Epoch 4 cannot be recorded: .*other holds 0 epochs"):
            fit(callback(tmp_path / "other"), epochs=5, checkpoint=tmp_path / "third.ckpt")

    def test_training_stops_when_another_metric_has_converged(self, fit, callback, tmp_path):
        stop = Stopping("val_loss", mu=0.02, alpha=0.5, window=2, patience=1)
        values = []

        def log(module, loss, index):
            module.log("train_loss", loss)
            module.log("step_loss", loss)
            if index == 0 and "val_loss" in module.trainer.callback_metrics:
                values.append(module.trainer.callback_metrics["val_loss"].item())

        trainer, _ = fit(callback(tmp_path / "run", stop=stop), epochs=40, log=log)
        values.append(trainer.callback_metrics["val_loss"].item())
        assert trainer.current_epoch == len(values) < 40
        assert stop.reached(values) and not stop.reached(values[:-1])
        trainer, _ = fit(callback(tmp_path / "cut", stop=stop), epochs=5)
        trainer.save_checkpoint(tmp_path / "fifth.ckpt")
        trainer, _ = fit(callback(tmp_path / "cut", stop=stop), epochs=40, checkpoint=tmp_path / "fifth.ckpt")
        assert trainer.current_epoch == len(values)
        often = callback(tmp_path / "often", stop=Stopping("val_loss", mu=1e-9))
        trainer, _ = fit(often, epochs=2, log=log, val_check_interval=2)
        assert often.state_dict()["stop_values"][-1] == trainer.callback_metrics["val_loss"].item()
        steps = callback(tmp_path / "steps", stop=Stopping("step_loss", mu=1e-9))
        fit(steps, epochs=2, log=log)
        np.testing.assert_allclose(steps.state_dict()["stop_values"], losses_of(tmp_path / "steps"))
        with pytest.raises(InputError, match=r"No 'val_acc' was logged in epoch 1; there are .*'val_loss'"):
            fit(callback(tmp_path / "none", stop=Stopping("val_acc", mode="max")))

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
                learning_rate=0.1,
                optim="sgd",
                lr_scheduler_type="constant",
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                **{"save_strategy": "no", "per_device_train_batch_size": 4, **settings},
            )
            net = Line()
            data = [{"x": x, "labels": y} for x, y in zip(*line(), strict=True)]
            trainer = transformers.Trainer(net, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
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
        with ConvergenceRecorder(tmp_path / "run", resume=True) as recorder:
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
        with pytest.warns(RuntimeWarning, match="Epoch 3 is recorded again"):
            _, rest = fit(recording, epochs=4, resume=str(tmp_path / "hf" / "checkpoint-8"))
        assert rest.losses == whole.losses[8:]
        assert losses_of(tmp_path / "run") == losses

    @pytest.mark.parametrize(
        ("settings", "unknown"),
        [
            ({"logging_steps": 1}, 0),
            ({"logging_steps": 2}, 0),
            ({"logging_steps": 5}, 1),
            ({"logging_strategy": "epoch"}, 2),
            ({"logging_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 0),
            ({"logging_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 5}, 0),
        ],
        ids=str,
    )
    def test_an_epoch_that_goes_on_in_its_middle_counts_as_a_whole(self, fit, callback, tmp_path, settings, unknown):
        settings = {"logging_strategy": "steps", "save_strategy": "steps", "save_steps": 6, **settings}  # of 4 an epoch
        trainer, net = fit(callback(tmp_path / "run"), epochs=3, **settings)
        whole = losses_of(tmp_path / "run")
        with pytest.warns(RuntimeWarning) as warned:
            _, rest = fit(
                callback(tmp_path / "run"), epochs=3, resume=str(tmp_path / "hf" / "checkpoint-6"), **settings
            )
        told = [str(warning.message) for warning in warned if "logged" in str(warning.message)]
        expected = whole
        if unknown:
            assert told == [
                f"Epoch 2 was resumed in its middle, and the losses of {unknown} of its 4 steps had not been logged: "
                "the mean of the others is recorded. Log as often as checkpoints are saved."
            ]
            known = [loss for entry in trainer.state.log_history if entry["step"] == 5 for loss in [entry["loss"]]]
            expected = [whole[0], np.mean(known * (2 - unknown) + rest.losses[:2]), whole[2]]
        else:
            assert not told
        np.testing.assert_allclose(losses_of(tmp_path / "run"), expected, rtol=1e-4)
        assert len(rest.losses) < len(net.losses)

    def test_an_epoch_that_begins_anew_counts_as_a_whole(self, fit, callback, tmp_path):
        settings = {"logging_strategy": "steps", "save_strategy": "steps", "save_steps": 6, "ignore_data_skip": True}
        fit(callback(tmp_path / "run"), epochs=2, **settings)
        with pytest.warns(RuntimeWarning, match="Epoch 2 is recorded again"):
            _, rest = fit(
                callback(tmp_path / "run"), epochs=2, resume=str(tmp_path / "hf" / "checkpoint-6"), **settings
            )
        assert losses_of(tmp_path / "run")[1] == pytest.approx(np.mean(rest.losses[:4]), rel=1e-4)

    def test_a_new_training_is_not_mixed_with_an_old_one(self, fit, callback, tmp_path):
        recording = callback(tmp_path / "run")
        fit(recording, epochs=2)
        before = losses_of(tmp_path / "run")
        with pytest.raises(InputError, match=r"2 epochs. Go on .*resume_from_checkpoint=.* resume=True; or .*another"):
            fit(recording, epochs=2)
        assert losses_of(tmp_path / "run") == before
        fit(callback(tmp_path / "run", resume=True), epochs=2)
        assert losses_of(tmp_path / "run") == before * 2

    def test_training_stops_when_another_metric_has_converged(self, fit, callback, tmp_path):
        stop = Stopping("eval_loss", mu=0.02, alpha=0.5, window=2)
        settings = {"eval_strategy": "epoch", "save_strategy": "epoch"}
        trainer, _ = fit(callback(tmp_path / "run", stop=stop), epochs=30, **settings)
        values = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert trainer.state.epoch == len(values) < 30
        assert stop.reached(values) and not stop.reached(values[:-1])
        with pytest.warns(RuntimeWarning, match="Epoch 3 is recorded again"):
            again, _ = fit(
                callback(tmp_path / "run", stop=stop),
                epochs=30,
                resume=str(tmp_path / "hf" / "checkpoint-8"),
                **settings,
            )
        assert again.state.epoch == len(values)

    def test_a_metric_to_stop_at_that_is_not_logged_is_named(self, fit, callback, tmp_path):
        stop = Stopping("eval_accuracy", mode="max")
        with pytest.raises(InputError, match=r"'eval_accuracy' is never logged.*eval_strategy"):
            fit(callback(tmp_path / "run", stop=stop), epochs=2)
        with pytest.raises(InputError, match=r"No 'eval_accuracy' was logged, .*; there are 'eval_loss'"):
            fit(callback(tmp_path / "run", stop=stop), epochs=2, eval_strategy="epoch")

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
