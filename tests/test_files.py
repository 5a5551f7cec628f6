"""Files and their hashes."""

import numpy as np
import pytest

from fmcefast import files


@pytest.mark.parametrize("data", [b"123456789", np.frombuffer(b"123456789", np.uint8)])
def test_a_content_hash_is_the_crc32c(data):
    assert files.content_hash(data) == "e3069283"  # the check value of CRC-32C


def test_a_content_hash_has_eight_digits():
    assert files.content_hash(b"") == "00000000"
