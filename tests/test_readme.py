"""The README's example runs as it stands, and learns."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.01 * losses[0]
    assert names["opt"].t == names["again"].t == {"w": 640, "b": 640}
    assert names["batches"].done == 640
    assert (names["params"]["w"] == names["opt"].ema["w"]).all()
    assert names["again"].weight_decay == 0.01
