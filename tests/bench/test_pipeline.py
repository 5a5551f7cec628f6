"""What `bench pipeline` compares does the same work."""

import pytest
import torch

from fmcefast.bench.suites.plain_pipeline import fmce_net
from fmcefast.models.fmce_net import FMCENet


@pytest.mark.parametrize(("channels", "height", "width"), [(16, 2, 2), (8, 7, 7), (12, 5, 3), (8, 1, 1)])
def test_the_plain_script_has_fmcefasts_fmce_net(channels, height, width, rng):
    ours, plain = FMCENet(channels, (height, width), phases=4), fmce_net(channels, height, width, phases=4)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    maps = torch.from_numpy(rng.random((3, channels, height, width), dtype="float32"))
    torch.testing.assert_close(plain(maps), ours(maps))
