"""The cache and the arms on a GPU: as on the CPU, and without waiting for the device where nothing must be known."""

import pytest
import torch

from fmcefast.data.image_set import ImageSet
from fmcefast.data.recipes import Recipe
from fmcefast.learning.arms import Arm, CacheSkip, InfoBatch
from fmcefast.learning.feature_vectors import feature_vectors
from fmcefast.learning.images import DeviceImages
from fmcefast.learning.layer_watch import LayerWatch
from fmcefast.learning.vector_cache import FeatureVectorCache
from fmcefast.models.small_cnn import SmallCNN

pytestmark = pytest.mark.gpu


def test_vectors_and_hits_are_those_of_the_cpu(rng):
    cuda = torch.device("cuda")
    on_cpu, on_gpu = FeatureVectorCache(3), FeatureVectorCache(3)
    for _ in range(4):
        maps = torch.from_numpy(rng.standard_normal((32, 5, 6, 6))).float()
        labels = torch.from_numpy(rng.integers(0, 3, 32))
        vectors, copied = feature_vectors(maps), feature_vectors(maps.to(cuda))
        torch.testing.assert_close(copied.cpu(), vectors)
        on_cpu.update(vectors, labels)
        with torch.cuda.device(cuda):
            torch.cuda.set_sync_debug_mode("error")  # raises where the host waits
            try:
                on_gpu.update(copied, labels.to(cuda, non_blocking=True))
                hits = on_gpu.hits(copied, labels.to(cuda, non_blocking=True))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(on_gpu.vectors.cpu(), on_cpu.vectors, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(on_gpu.thresholds.cpu(), on_cpu.thresholds, rtol=1e-5, atol=1e-6)
        assert (hits.cpu() == on_cpu.hits(vectors, labels)).float().mean() > 0.9  # some lie on the threshold


def test_all_arms_train(rng):
    cuda = torch.device("cuda")
    labels = rng.integers(0, 3, 60)
    pixels = (80 * labels[:, None, None, None] + rng.uniform(0, 60, (60, 16, 16, 1))).astype("uint8")
    images = DeviceImages(ImageSet(labels, pixels), Recipe((0.4,), (0.3,)), 16, 1, cuda)
    torch.manual_seed(0)
    network = SmallCNN(3, size=16).to(cuda, memory_format=torch.channels_last)
    common = (network, images, 20, torch.Generator(cuda).manual_seed(0))
    watch = LayerWatch(network, ["maps1"], images[:2])
    for arm in (Arm(*common), InfoBatch(*common, skip=0.5), CacheSkip(*common, watch=watch, classes=3)):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for epoch in (1, 2):
            trained = 0
            for rows in arm.batches(epoch, 4):
                loss, count = arm.loss(rows)
                if loss is not None:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    arm.after_step()
                    assert torch.isfinite(loss)
                trained += count
            pruned = isinstance(arm, InfoBatch) and epoch == 2
            assert trained < 60 if pruned else trained + arm.hits == 60
