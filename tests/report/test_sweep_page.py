"""The page of a sweep: its numbers are the study's, it escapes what it shows and stays small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from isoformer.errors import StorageError
from isoformer.report import build_sweep_report
from isoformer.report.heat_map import cividis, heat_map
from isoformer.report.study import Study
from isoformer.report.study_facts import pareto_front
from isoformer.tracking import TrackingConfig
from made_study import ERROR, a_study, some_finals, write_study
from page_structure import Structure, cells

QUIET = TrackingConfig(enabled=False)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return a_study()


@pytest.fixture(scope="module")
def page(study_root: Path) -> str:
    path = build_sweep_report(str(study_root), "made", tracking=QUIET)
    assert path == study_root / "studies" / "made" / "report.html"
    return path.read_text()


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_the_page_is_well_formed_and_alone(page: str) -> None:
    structure = Structure(page)
    assert len(structure.ids) == len(set(structure.ids)), "ids are unique, across figures too"
    assert {fragment[1:] for fragment in structure.fragments} <= set(structure.ids)
    assert structure.addresses == ["data:,"] and not structure.unlabelled
    assert structure.tags.count("script") == 1 and page.count("<svg") == 8 + 7 + 1
    assert not re.search(r"@import|url\((?!#)", page)
    assert "Missing:" not in page


def test_the_policy_names_the_script_by_its_hash(page: str) -> None:
    import base64
    import hashlib

    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    )


def test_the_table_holds_every_trial_best_first(page: str, made: dict[str, Any]) -> None:
    rows = cells(section(page, "trials"))[1:]
    assert len(rows) == len(made["trials"])
    by_number = {str(trial["number"]): trial for trial in made["trials"]}
    for row in rows:
        trial = by_number.pop(row[0])
        value = "–" if trial["value"] is None else f"{trial['value']:.3f}"
        assert row[1:3] == [trial["state"], value]
        assert row[4] == str(trial["epochs"])
        assert row[-1] == trial["run"], "without a link the key is shown"
    scores = [float(row[2]) for row in rows if row[1] == "complete"]
    assert scores == sorted(scores, reverse=True) and rows[0][0] == str(made["best"])


def test_the_head_says_what_was_sought_and_found(page: str, made: dict[str, Any]) -> None:
    text = section(page, "found")
    best = made["trials"][made["best"]]
    assert f"<b>{best['value']:.3f}</b><span>best R², trial {best['number']}</span>" in text
    for shown in (
        "finished", "the highest R² on the validation genes and the fewest parameters", "tpe sampler",
        "0.0003 to 0.01, by logarithm", "fusion is cross_attention or perceiver_shared", "feedfacefeedface",
        f"{best['params']['learning_rate']:.3g}", f"{best['values'][1]:,}",
        f"<b>{made['device_hours']:.2f}</b>",
    ):  # fmt: skip
        assert shown in text or shown in page.split("</header>")[0], shown


def test_the_front_is_listed(page: str, made: dict[str, Any]) -> None:
    rows = cells(section(page, "front"))[1:]
    front = pareto_front(Study.model_validate(made))
    assert [row[:3] for row in rows] == [
        [str(t.number), f"{t.values[0]:.3f}", f"{t.values[1]:,.0f}"] for t in front
    ]


def test_tissues_are_ordered_by_mean_and_told_in_titles_and_a_table(page: str, made: dict[str, Any]) -> None:
    text = section(page, "tissues")
    best = sorted((t for t in made["trials"] if t["tissues"]), key=lambda t: -t["value"])[:10]
    means = {}
    for tissue in best[0]["tissues"]:
        values = [trial["tissues"][tissue] for trial in best if trial["tissues"][tissue] is not None]
        means[tissue] = sum(values) / len(values)
    rows = cells(text)
    assert [row[0] for row in rows[1:]] == sorted(means, key=lambda tissue: -means[tissue])
    assert rows[0][1:] == [f"trial {trial['number']}" for trial in best]
    for row in rows[1:]:
        for shown, trial in zip(row[1:], best, strict=True):
            value = trial["tissues"][row[0]]
            assert shown == ("–" if value is None else f"{value:.3f}")
            told = "no value" if value is None else f"{value:.3f}"
            assert f"<title>trial {trial['number']}, {row[0]}: {told}</title>" in text


def test_final_models_show_each_seed_and_the_spread(page: str, made: dict[str, Any]) -> None:
    text = section(page, "finals")
    assert "The test genes were seen once, by these models alone" in text
    rows = cells(text)[1:]
    for model in some_finals(made)["models"]:
        mean, sd = model["test_mean"]["r2"], model["test_sd"]["r2"]
        assert any(row[0] == str(model["rank"]) and row[6] == f"{mean:.3f} ± {sd:.3f}" for row in rows)
        for run in model["runs"]:
            row = next(row for row in rows if row[2] == run["run"])
            scores = [run["val"]["val_r2"], run["val"]["val_spearman"], *run["test"].values()]
            assert row[3:] == [str(run["seed"]), *(f"{score:.3f}" for score in scores)]


def test_what_trials_say_is_escaped_and_equal_errors_stand_once(page: str, made: dict[str, Any]) -> None:
    assert "<b>out of memory" not in page and page.count("&lt;b&gt;out of memory&lt;/b&gt; &amp;") == 1
    failed = [str(trial["number"]) for trial in made["trials"] if trial["state"] == "failed"]
    assert f"trials {', '.join(failed)}: <code>RuntimeError" in page
    assert f"({len(ERROR) - 600} more letters in trials.json)" in page


def test_names_from_a_study_cannot_become_markup(tmp_path: Path) -> None:
    bad = '"><img src=x onerror=alert(1)>$x_1$'
    study = a_study(20)
    study["space"][bad] = {"path": "model.width", "choices": [bad, "b"]}
    study["variants"], study["status"], study["storage"] = bad, bad, bad
    for trial in study["trials"]:
        trial["params"][bad] = bad
        trial["run"] = bad
        trial["tissues"] = {bad: 0.3} if trial["state"] == "complete" else {}
    page = built(tmp_path, study)
    assert "<img" not in page and "&lt;img src=x" in page
    Structure(page)


def test_links_go_to_the_runs_that_the_tracker_knows(
    study_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = [f"{number:032x}" for number in (0, 1)]
    given = {keys[0]: "http://127.0.0.1:5000/#/experiments/1/runs/ab", keys[1]: "javascript:alert(1)"}
    monkeypatch.setattr("isoformer.report.sweep_page.run_links", lambda config, asked: given)
    page = build_sweep_report(str(study_root), "made", tmp_path / "page.html").read_text()
    assert f'<a href="{given[keys[0]]}">{keys[0][:8]}…</a>' in page
    assert "javascript:" not in page and f"<code>{keys[1]}</code>" in page


def test_scores_that_are_not_numbers_are_dashes(tmp_path: Path) -> None:
    study = a_study(30)
    first = next(trial for trial in study["trials"] if trial["state"] == "complete")
    first |= {"value": float("nan"), "values": [float("nan"), None], "curve": [[0, float("nan")], [1, 0.2]]}
    page = built(tmp_path, study)
    row = next(row for row in cells(section(page, "trials")) if row[0] == str(first["number"]))
    assert row[1:4] == ["complete", "–", f"{first['parameters']:,}"], "the size is known all the same"
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_500_trials_fit(tmp_path: Path) -> None:
    study = a_study(500)
    page = built(tmp_path, study)
    assert len(page.encode()) < 3_000_000
    assert len(cells(section(page, "trials"))) == 501


def test_more_than_1000_trials_are_counted(tmp_path: Path) -> None:
    study = a_study(60)
    study["trials"] += [
        trial | {"number": 60 + k, "curve": []} for k, trial in enumerate(study["trials"] * 16)
    ]
    page = built(tmp_path, study)
    assert len(cells(section(page, "trials"))) == 1001
    assert "20 more trials are in trials.json" in page


def test_a_study_of_which_little_is_known_says_so(tmp_path: Path) -> None:
    waiting = {"number": 0, "state": "waiting"}
    failed = {"number": 1, "state": "failed", "value": None, "params": {"width": 4}}
    page = built(tmp_path, {"study": "bare", "trials": [waiting, failed]}, with_finals=False)
    Structure(page)
    assert page.count("Missing:") == 4 and "<svg" not in page
    assert "no error was recorded" in page and "no test gene was scored" in page


def test_a_single_trial_is_drawn(tmp_path: Path) -> None:
    study = a_study(60)
    page = built(tmp_path, {**study, "trials": [study["trials"][study["best"]]]}, with_finals=False)
    Structure(page)
    assert page.count("<svg") > 8


def test_a_study_that_is_not_there_is_an_error_of_ours(study_root: Path) -> None:
    with pytest.raises(StorageError, match="there are: made"):
        build_sweep_report(str(study_root), "other")


def test_of_a_bucket_the_page_is_put_there_and_copied_here(
    study_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoformer.report.page.local_path", lambda root: None)
    monkeypatch.chdir(tmp_path)
    key = study_root / "studies" / "made" / "report.html"
    key.unlink(missing_ok=True)
    path = build_sweep_report(str(study_root), "made", tracking=QUIET)
    assert path == Path("sweep-made.html")
    assert path.read_bytes() == key.read_bytes()


def test_the_colour_scale_grows_lighter_evenly() -> None:
    def lightness(share: float) -> float:
        red, green, blue = (int(cividis(share)[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    steps = [lightness(k / 50) for k in range(51)]
    assert steps == sorted(steps) and steps[-1] > 15 * steps[0]


def test_a_heat_map_of_nothing_is_none() -> None:
    assert heat_map({"a": {"Liver": None}}, title="none", name="none") is None


def built(root: Path, study: dict[str, Any], *, with_finals: bool = True) -> str:
    write_study(root, study, with_finals=with_finals)
    return build_sweep_report(str(root), study["study"], tracking=QUIET).read_text()
