import re
from pathlib import Path

CODE = r"\"([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)*)\""
RAISED = re.compile(rf"VolumeError\(\s*{CODE}|return \(?\s*{CODE}, ")


def test_every_reason_code_is_documented_and_every_documented_one_exists():
    root = Path(__file__).parents[2]
    table = (root / "docs" / "data.md").read_text().split("## Reason codes")[1]
    documented = re.findall(r"^\| `([A-Z0-9_]+)` \|", table, re.MULTILINE)
    sources = "\n".join(path.read_text() for path in (root / "ct3dlib").rglob("*.py"))
    raised = {a or b for a, b in RAISED.findall(sources)}
    assert documented == sorted(documented)
    assert raised - set(documented) == set()
    assert {code for code in documented if f'"{code}"' not in sources} == set()
