"""Files of every kind, changed at random, are read or refused by one line; a moment of what `fuzz.py` does."""

from random import Random

import pytest
from fuzz import KINDS, fuzz

from delib.detection.darknet_cfg import read_cfg
from delib.suite.parameters import read_parameters
from delib.suite.record import read_record


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"container"}))  # test_container.py has its own
def test_changed_files_are_read_or_refused_by_one_line(name: str) -> None:
    outcomes, faults = fuzz(name, 1, Random(0))
    assert not faults
    assert outcomes["refused"]


@pytest.mark.parametrize("read", [read_record, read_parameters, read_cfg])
def test_lists_in_lists_in_lists_are_refused(read, tmp_path) -> None:
    path = tmp_path / "deep"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deep") as refusal:
        read(path)
    assert len(str(refusal.value).splitlines()) == 1
