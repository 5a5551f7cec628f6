"""The maturity of modules that a recorder tells at the end of every epoch."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fmcefast import ConvergenceRecorder
from fmcefast.errors import InputError
from fmcefast.maturity.probe import probe
from fmcefast.maturity.statistics import LABEL_FREE
from fmcefast.pipeline.verify import verify
from fmcefast.progress import Progress
from fmcefast.recorder.live import LiveProbe
from fmcefast.run.epochs import read_epochs
from fmcefast.run.maturity import read_maturity
from fmcefast.stages.train import train

MODULES = ["backbone.0", "backbone"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 6, 2)
        )
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        return self.head(self.backbone(images).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def labelled(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 9, 9, generator=generator), torch.arange(count) % 2


def batches(count=80, size=24):
    images, labels = labelled(count)
    return list(zip(images.split(size), labels.split(size), strict=True))


def expected(model, images, modules=MODULES):
    found = probe(model, modules, images)
    return {name: {each: values[each] for each in LABEL_FREE} for name, values in found.items()}


def as_rows(found, epoch):
    return [(epoch, name, *values.values()) for name, values in found.items()]


def rows_of(run):
    return [tuple(vars(row).values()) for row in read_maturity(run / "maturity.csv")]


def generators():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_values_are_those_of_probe(tmp_path, net):
    first = [batch[:each] for (batch, _), each in zip(batches(), (24, 24, 16), strict=False)]
    found = []
    with ConvergenceRecorder(tmp_path / "run", modules=MODULES, images=iter(batches())) as recorder:
        for loss in (2.0, 1.0):
            found += as_rows(expected(net, first), recorder.epochs + 1)
            recorder.epoch_end(net, loss)
            with torch.no_grad():
                net.backbone[0].weight[:4] *= 3
        assert recorder.maturity(net) == expected(net, first)
    assert rows_of(tmp_path / "run") == found and found[0][2:] != found[2][2:]
    assert verify(recorder.run, Progress(quiet=True)).sound


def training(folder, **probed):
    """Weights and all random numbers after a training, which draws such for order, dropout and augmentation."""
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    net = Net()
    net.backbone[1].momentum = None
    optimizer = torch.optim.Adam(net.parameters())
    loader = DataLoader(TensorDataset(*labelled(48)), 16, shuffle=True)
    with ConvergenceRecorder(folder, **probed) as recorder:
        for _ in range(3):
            for images, labels in loader:
                images = images * random.uniform(0.9, 1.1) + np.random.normal()
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(images), labels)
                loss.backward()
                optimizer.step()
            recorder.epoch_end(net, loss.item())
    assert all(module.training for module in net.modules())
    return net.state_dict(), generators()


def test_a_training_ends_with_the_same_weights_to_the_bit(tmp_path):
    class Augmented(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image * random.uniform(0.5, 1) + np.random.normal() + torch.randn(1), label

    held_out = DataLoader(Augmented(*labelled(40, seed=2)), 10, shuffle=True)
    weights, numbers = training(tmp_path / "without")
    probed, numbers_of_probed = training(tmp_path / "with", modules=MODULES, images=held_out)
    assert numbers == numbers_of_probed
    assert all(torch.equal(weights[name], probed[name]) for name in weights)
    assert len(rows_of(tmp_path / "with")) == 6 and not (tmp_path / "without" / "maturity.csv").exists()


def test_modes_and_statistics_stay_as_they_are(net):
    net.train()
    net.backbone[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    LiveProbe(MODULES, batches(), 64)(net)
    assert [name for name, module in net.named_modules() if not module.training] == ["backbone.1"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_loader_that_shuffles_gives_the_same_images_every_time(net):
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(*labelled(90)), 20, shuffle=True, generator=generator)
    before = generator.get_state(), generators()
    first = LiveProbe(["backbone"], loader, 32)(net)
    assert torch.equal(generator.get_state(), before[0]) and generators() == before[1]
    torch.manual_seed(99)
    again = DataLoader(TensorDataset(*labelled(90)), 20, shuffle=True, generator=generator)
    assert LiveProbe(["backbone"], again, 32)(net) == first
    plain = DataLoader(TensorDataset(*labelled(90)), 20, shuffle=True)
    first = LiveProbe(["backbone"], plain, 32)(net)
    torch.rand(3)
    assert LiveProbe(["backbone"], plain, 32)(net) == first


def test_an_epoch_that_is_recorded_again_replaces_its_rows(tmp_path, net):
    run = tmp_path / "run"
    probed = {"modules": ["backbone"], "images": batches()}
    with ConvergenceRecorder(run, **probed) as recorder:
        for loss in (3.0, 2.0, 1.5, 1.0):
            recorder.epoch_end(net, loss)
    before = rows_of(run)
    with torch.no_grad():
        net.backbone[4].weight[:3] *= 5
    with ConvergenceRecorder(run, resume=True, **probed) as recorder:
        with pytest.warns(RuntimeWarning, match="Epoch 3 is recorded again"):
            recorder.epoch_end(net, 1.8, epoch=3)
        now = rows_of(run)
        assert now[:2] == before[:2] and [row[0] for row in now] == [1, 2, 3] and now[2] != before[2]
    with ConvergenceRecorder(run, resume=True) as recorder:  # goes on without modules
        recorder.epoch_end(net.state_dict(), 1.7)
        assert rows_of(run) == now
        with pytest.warns(RuntimeWarning, match="Epoch 2 is recorded again"):
            recorder.epoch_end(net, 1.6, epoch=2)
        assert rows_of(run) == now[:1]


def test_rows_of_an_epoch_that_was_not_committed_do_not_count(tmp_path, net, monkeypatch):
    with ConvergenceRecorder(tmp_path / "run", modules=["backbone"], images=batches()) as recorder:
        recorder.epoch_end(net, 2.0)
        with monkeypatch.context() as patch:
            patch.setattr("fmcefast.recorder.recorder.write_epochs", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                recorder.epoch_end(net, 1.0)
        assert [row[0] for row in rows_of(tmp_path / "run")] == [1, 2]
        assert len(read_epochs(recorder.run.losses_csv)) == 1
    with ConvergenceRecorder(tmp_path / "run", resume=True) as recorder:
        recorder.epoch_end(net, 1.0)
    assert [row[0] for row in rows_of(tmp_path / "run")] == [1]


def test_a_bad_module_is_named_and_nothing_is_recorded(tmp_path, net):
    for modules, complaint in (
        (["backbone", "backbne"], "Unknown module of Net 'backbne'. Did you mean 'backbone'"),
        ("head", "'head' puts out a tensor"),
    ):
        with ConvergenceRecorder(tmp_path / "run", modules=modules, images=batches()) as recorder:
            for use in (recorder.maturity, lambda model: recorder.epoch_end(model, 1.0)):
                with pytest.raises(InputError, match=complaint):
                    use(net)
            assert recorder.epochs == 0 and not train.is_begun(recorder.run)
            assert not recorder.run.maturity_csv.exists()


def test_a_state_dict_alone_cannot_be_probed(tmp_path, net):
    state = {"other": torch.ones(2)}
    with ConvergenceRecorder(tmp_path / "run", modules=["backbone"], images=batches()) as recorder:
        with pytest.raises(InputError, match=r"cannot be told from a state_dict.*epoch_end\(model, loss, state="):
            recorder.epoch_end(state, 1.0)
        assert recorder.epochs == 0
        recorder.epoch_end(net, 1.0, state=state)
        assert recorder.run.config.backbone == "Net" and len(rows_of(tmp_path / "run")) == 1
        assert recorder.run.weights_of(1).stat().st_size < 200
    with pytest.raises(InputError, match="is closed"):
        recorder.maturity(net)


@pytest.mark.parametrize(
    ("probed", "complaint"),
    [
        ({"modules": ["backbone"]}, "`modules` need images.*images=LOADER"),
        ({"images": batches()}, "No modules are named"),
        ({"modules": ["backbone"], "images": batches(12)}, "gave 12 images; .* at least 16"),
        ({"modules": ["backbone"], "images": batches(), "image_count": 8}, "at least 16 images, not 8"),
        ({"modules": ["backbone"], "images": [["a.png"]]}, "`images` gave a str"),
        ({"modules": ["backbone"], "images": [{"image": torch.ones(4, 1, 9, 9)}]}, "`images` gave a NoneType"),
        ({"modules": ["backbone"], "images": [torch.arange(20)]}, r"a tensor \(20,\)"),
    ],
)
def test_images_that_do_not_serve_are_refused_before_there_is_a_folder(tmp_path, probed, complaint):
    with pytest.raises(InputError, match=complaint):
        ConvergenceRecorder(tmp_path / "run", **probed)
    assert not (tmp_path / "run").exists()


def test_images_come_in_several_forms(net):
    images, labels = labelled(32)
    found = expected(net, [images])
    for given in (images, [images], [(images, labels)], [{"pixel_values": images, "labels": labels}]):
        assert LiveProbe(MODULES, given, 64)(net) == found
    halved = LiveProbe(MODULES, images, 64)(net.to(torch.bfloat16))
    assert halved["backbone"]["bn_inv_ccos"] == pytest.approx(found["backbone"]["bn_inv_ccos"], abs=0.02)


def test_images_of_one_class_are_warned_of(net):
    images, labels = labelled(64)
    with pytest.warns(RuntimeWarning, match="of one class.*Shuffle the loader"):
        LiveProbe(MODULES, [(images, torch.zeros_like(labels))], 32)


def test_maps_that_are_the_same_for_all_images_leave_empty_cells(tmp_path, net):
    nn.init.zeros_(net.backbone[0].weight)
    with ConvergenceRecorder(tmp_path / "run", modules=["backbone"], images=batches()) as recorder:
        recorder.epoch_end(net, 1.0)
    assert recorder.run.maturity_csv.read_text().splitlines()[1] == "1,backbone,,,,"
    assert rows_of(tmp_path / "run") == [(1, "backbone", None, None, None, None)]


def test_a_model_without_forward_is_refused(net):
    with pytest.raises(InputError, match=r"ModuleDict cannot be run on images.*forward\(images\)"):
        LiveProbe(["net.backbone"], batches(), 32)(nn.ModuleDict({"net": net}))


def test_verify_notices_a_damaged_table(tmp_path, net):
    with ConvergenceRecorder(tmp_path / "run", modules=["backbone"], images=batches()) as recorder:
        recorder.epoch_end(net, 1.0)
    path = recorder.run.maturity_csv
    path.write_text(path.read_text().rpartition(",")[0])
    found = verify(recorder.run, Progress(quiet=True)).problems
    assert len(found) == 1 and "maturity.csv is damaged" in found[0]
    with pytest.raises(InputError, match=r"maturity\.csv is damaged"):
        ConvergenceRecorder(tmp_path / "run", resume=True)


class TestWrappedModels:
    @pytest.fixture(autouse=True)
    def found(self, net):
        """What the module within must give."""
        self.images = labelled(64)[0]
        return expected(net, [self.images])

    def probe(self, model):
        return LiveProbe(MODULES, self.images, 64)(model)

    @pytest.fixture
    def process_group(self):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    def test_compiled_ones_are_not_compiled_again(self, net, found):
        from torch._dynamo.utils import counters

        before = counters["frames"]["total"]
        assert self.probe(torch.compile(net)) == found
        assert self.probe(torch.compile(nn.DataParallel(net))) == found
        net.backbone = torch.compile(net.backbone)
        assert self.probe(net) == found  # by the names without what torch.compile puts into them
        net.compile()
        assert self.probe(net) == found
        assert counters["frames"]["total"] == before

    def test_one_process_waits_for_no_other(self, net, found, process_group, monkeypatch):
        assert self.probe(nn.parallel.DistributedDataParallel(net)) == found
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda *_: 1 / 0)
        assert self.probe(net) == found
        with pytest.raises(ZeroDivisionError):
            net(self.images)

    def test_sharded_ones_are_refused(self, net, process_group):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        with pytest.raises(InputError, match=r"sharded over processes.*fmcefast probe"):
            self.probe(fully_shard(net, mesh=init_device_mesh("cpu", (1,))))
