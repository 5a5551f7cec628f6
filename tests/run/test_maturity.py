import pandas as pd
import pytest

from fmcefast.errors import InputError
from fmcefast.run.maturity import ModuleMaturity, read_maturity, write_maturity

HEADER = "epoch,module,bn_inv_ccos,bn_areq_pool,bn_erank_pool,bn_nn_ratio\n"
ROWS = [
    ModuleMaturity(1, "layer4", 0.1 + 0.2, 1 / 3, 12.0, 0.9),
    ModuleMaturity(1, "a,b", None, None, None, None),
    ModuleMaturity(3, "layer4", 0.5, None, 11.0, 0.8),
]


def test_rows_survive_the_file_exactly(tmp_path):
    path = tmp_path / "maturity.csv"
    assert read_maturity(path) == []
    write_maturity(path, ROWS)
    assert read_maturity(path) == ROWS
    table = pd.read_csv(path)
    assert ",".join(table.columns) + "\n" == HEADER
    assert table.bn_areq_pool.isna().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no column"),
        ("epoch,module\n", "no column bn_areq_pool"),
        (HEADER + "1,layer4,0.5,1,1\n", "line 2 has not as many cells"),
        (HEADER + "1,layer4,0.5,1,1,1,1\n", "line 2 has not as many cells"),
        (HEADER + "1,layer4,x,1,1,1\n", "could not convert"),
        (HEADER + "2,layer4,1,1,1,1\n1,layer4,1,1,1,1\n", "do not rise"),
        (HEADER + "0,layer4,1,1,1,1\n", "do not rise"),
        (HEADER + "1,layer4,1,1,1,1\n1,layer4,2,1,1,1\n", "two rows"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, text, complaint):
    (tmp_path / "maturity.csv").write_text(text)
    with pytest.raises(InputError, match=rf"maturity\.csv is damaged: .*{complaint}.*or remove it"):
        read_maturity(tmp_path / "maturity.csv")
