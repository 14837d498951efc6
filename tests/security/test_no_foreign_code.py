"""The package's source has no way to run what a file holds, to skip a check, or to listen to the world."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).resolve().parents[2] / "platform" / "isoformer"
ALLOWED: Final = {
    (
        "benchmark/embed_contestants.py",
        "Parquet past the one door",
    ): "what the benchmark wrote a moment before",
    ("benchmark/store_layouts.py", "Parquet past the one door"): "what the benchmark wrote a moment before",
    ("documents.py", "yaml"): "its loader is a subclass of SafeLoader",
    (
        "extraction.py",
        "Parquet past the one door",
    ): "the bytes that this process wrote, for their number of rows",
    ("parquet_file.py", "Parquet past the one door"): "the door itself",
    ("sources/annotation.py", "tar without filter"): "`str.extract` of a table, no archive",
}
"""(file, rule): why it is no danger."""


class Place:
    """A call, a keyword or a constant of a source. `name`: `torch.load` of `torch.load(…)`."""

    def __init__(self, node: ast.AST) -> None:
        self.node, self.name, self.last_two = node, "", ""
        if isinstance(node, ast.Call):
            self.name = _dotted(node.func)
            self.last_two = ".".join(self.name.split(".")[-2:])
        self.keyword = node.arg if isinstance(node, ast.keyword) else None

    def calls(self, *names: str) -> bool:
        """One of the names, or a last part of the name where that is given alone."""
        return bool(self.name) and (self.last_two in names or self.last_two.rpartition(".")[2] in names)

    def given(self, name: str) -> object:
        """The constant that a call gives for a keyword; None where there is none."""
        keywords = self.node.keywords if isinstance(self.node, ast.Call) else []
        values = [one.value for one in keywords if one.arg == name]
        return values[0].value if values and isinstance(values[0], ast.Constant) else None

    @property
    def constant(self) -> object:
        """The value of a constant or of a keyword."""
        value = self.node.value if isinstance(self.node, ast.keyword) else self.node
        return value.value if isinstance(value, ast.Constant) else None


def _dotted(function: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join(reversed([*parts, function.id if isinstance(function, ast.Name) else ""]))


RULES: Final[dict[str, Callable[[Place], bool]]] = {
    "pickle": lambda it: it.calls(
        "pickle.load", "pickle.loads", "Unpickler", "cloudpickle.loads", "cloudpickle.load", "joblib.load",
        "dill.loads", "marshal.loads", "shelve.open", "read_pickle",
    ),
    "torch.load without weights_only=True": lambda it: (
        it.calls("torch.load", "serialization.load") and it.given("weights_only") is not True
    ),
    "torch code": lambda it: it.calls("jit.load", "PackageImporter", "hub.load", "add_safe_globals"),
    "np.load of pickles": lambda it: (
        it.calls("np.load", "numpy.load") and it.given("allow_pickle") not in (None, False)
    ),
    "yaml": lambda it: it.calls("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    "eval": lambda it: it.name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    "trust_remote_code": lambda it: it.keyword == "trust_remote_code" and it.constant is not False,
    "remote code not refused": lambda it: (
        it.calls("from_pretrained") and it.given("trust_remote_code") is not False
    ),
    "pyfunc": lambda it: it.calls("pyfunc.load_model", "sklearn.load_model", "pytorch.load_model"),
    "shell": lambda it: it.keyword == "shell",
    "no TLS": lambda it: (
        (it.keyword in ("verify", "verify_ssl", "use_ssl") and it.constant is False)
        or it.calls("_create_unverified_context", "disable_warnings")
    ),
    "every interface": lambda it: it.constant in ("0.0.0.0", "::", "[::]"),
    "tar without filter": lambda it: (
        it.calls("extractall", "extract", "unpack_archive") and it.given("filter") != "data"
    ),
    "Parquet past the one door": lambda it: it.calls("pq.ParquetFile", "pq.read_table", "pq.ParquetDataset"),
    "templates without escaping": lambda it: (
        it.calls("Environment") and "autoescape" not in ast.unparse(it.node)
    ),
}  # fmt: skip


def places(source: str) -> Iterator[Place]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call | ast.keyword | ast.Constant):
            yield Place(node)


def found() -> list[tuple[str, str, int]]:
    """(file, rule, line) of every place in the package that a rule forbids."""
    return [
        (path.relative_to(PACKAGE).as_posix(), rule, getattr(place.node, "lineno", 0))
        for path in sorted(PACKAGE.rglob("*.py"))
        for place in places(path.read_text(encoding="utf-8"))
        for rule, is_forbidden in RULES.items()
        if is_forbidden(place)
    ]


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    all_found = found()
    assert [one for one in all_found if one[:2] not in ALLOWED] == []
    assert {one[:2] for one in all_found} == set(ALLOWED), "an exception that is no longer needed"


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("pickle", "pickle.loads(data)"),
        ("torch.load without weights_only=True", "torch.load(path, map_location='cpu')"),
        ("torch.load without weights_only=True", "torch.load(path, weights_only=flag)"),
        ("np.load of pickles", "np.load(path, allow_pickle=True)"),
        ("yaml", "yaml.load(text, Loader=yaml.Loader)"),
        ("eval", "eval(text)"),
        ("trust_remote_code", "AutoModel.from_config(c, trust_remote_code=flag)"),
        ("remote code not refused", "AutoModel.from_pretrained(folder)"),
        ("shell", "subprocess.run(line, shell=True)"),
        ("no TLS", "requests.get(url, verify=False)"),
        ("every interface", "serve(host='0.0.0.0')"),
        ("tar without filter", "archive.extractall(folder)"),
        ("Parquet past the one door", "pq.ParquetFile(path)"),
        ("templates without escaping", "jinja2.Environment(loader=loader)"),
        ("pyfunc", "mlflow.pyfunc.load_model(uri)"),
    ],
)
def test_each_rule_sees_what_it_forbids(rule: str, source: str) -> None:
    assert any(RULES[rule](place) for place in places(source))
