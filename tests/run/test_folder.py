import os

import pytest

from fmcefast.errors import InputError
from fmcefast.pipeline.change import open_run
from fmcefast.run.folder import newest_run, read_run


def test_a_damaged_configuration_is_refused(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    run.config_yaml.write_text("epochs: many\n")
    with pytest.raises(InputError, match=r"config\.yaml is damaged: .*takes int"):
        read_run(run.path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run folder.*fmcefast run"):
        read_run(tmp_path)


def test_the_newest_run(tmp_path):
    with pytest.raises(InputError, match="no run under"):
        newest_run(tmp_path)
    for age, name in enumerate(["b", "c", "a"]):
        run = open_run(tmp_path / name, {}, create=True)
        os.utime(run.config_yaml, (1000 - age, 1000 - age))
    assert newest_run(tmp_path).name == "b"
