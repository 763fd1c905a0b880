"""The commands use a GPU where there is one."""

import pytest

import fusedstep as fs
from fusedstep.tools import verify


@pytest.mark.exhaustive
def test_demo_and_verify_use_the_gpu(cupy, capsys, monkeypatch, tmp_path):
    from fusedstep.tools import demo, extras

    monkeypatch.setattr(demo, "classes", lambda: [fs.SGD, fs.Adam])
    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    output = tmp_path / "demo.png"
    assert demo.main(["--device", "cuda", "--epochs", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("yes") == 2
    monkeypatch.setattr(verify, "classes", lambda: [fs.SGD])
    monkeypatch.setattr(verify, "find_spec", lambda name: True)
    assert verify.main([]) == 0
    assert "GPU: the current one of CuPy" in capsys.readouterr().out
