"""The model of scale: its parts equal statsmodels' where both exist, it finds known truths, and its intervals hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from click.testing import CliRunner
from scipy import stats

from benchmarks import Options, scaling
from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.results import NO_EPISODE, ResultStore
from fastxfer.scale import cells_of, fit_scale, paper_cells
from fastxfer.scale.cells import differences, squeeze
from fastxfer.scale.mixed import fit_mixed
from fastxfer.scale.own import about_backbones, relations_by_domain, relations_by_proximity, runs_of

# -- variances of few seeds --------------------------------------------------------------------------------------------


def test_squeezed_variances_are_those_of_a_known_prior():
    rng = np.random.default_rng(0)
    true = 6.0 * 2.0 / rng.chisquare(6, 4000)  # scaled inverse χ² of 6 degrees of freedom around 2
    drawn = true * rng.chisquare(4, 4000) / 4
    v, df = squeeze(drawn, np.full(4000, 4.0))
    prior = df[0] - 4
    assert prior == pytest.approx(6, abs=0.8)
    assert v == pytest.approx((prior * ((v[0] * df[0] - 4 * drawn[0]) / prior) + 4 * drawn) / df)
    assert np.mean((np.log(v) - np.log(true)) ** 2) < 0.5 * np.mean((np.log(drawn) - np.log(true)) ** 2)


def test_equal_variances_become_one_and_few_stay():
    rng = np.random.default_rng(1)
    drawn = 3.0 * rng.chisquare(40, 12) / 40
    v, df = squeeze(drawn[:8], np.full(8, 40.0))
    assert len(set(v)) == 1 or df[0] > 200
    assert v.mean() == pytest.approx(3, rel=0.2)
    few = np.array([1.0, 5.0])
    assert np.array_equal(squeeze(few, np.array([4.0, 4.0]))[0], few)


# -- cells and differences ---------------------------------------------------------------------------------------------


def runs(effect: dict[str, float], units: int, noise: float, luck: float, rng: Any, **facts: Any) -> pd.DataFrame:
    """A target at 5 shots, a configuration a model name; `luck` is what a unit does to all alike."""
    shared = luck * rng.normal(size=units)
    lines = [
        {
            "target": "t",
            "source": "s",
            "model": m,
            "shots": "5",
            "unit": u,
            "value": mean + shared[u] + noise * rng.normal(),
        }
        for m, mean in effect.items()
        for u in range(units)
    ]
    return pd.DataFrame(lines).assign(parameters=1e7, images=1e6, relation="near", **facts)


def test_what_a_unit_does_to_all_is_no_noise():
    rng = np.random.default_rng(0)
    means = {"a": 0.5, "b": 0.6, "c": 0.4}
    found = [cells_of(runs(means, 6, 0.02, luck, rng))["v"].iloc[0] for luck in (0.3,) * 60]
    assert np.mean(found) == pytest.approx(0.02**2 / 6, rel=0.2)
    cells = cells_of(runs(means, 6, 0.0, 0.3, rng)).set_index("model")
    assert cells["v"].max() < 1e-20
    assert cells["value"]["b"] - cells["value"]["a"] == pytest.approx(0.1)
    assert set(cells["df"]) == {10}


def test_only_units_that_all_have_count():
    rng = np.random.default_rng(0)
    table = runs({"a": 0.5, "b": 0.6}, 5, 0.01, 0.1, rng)
    fewer = table[~((table["model"] == "a") & (table["unit"] == 4))]
    assert set(cells_of(fewer)["n"]) == {4}
    with pytest.raises(DataError, match="no seed or episode was run by all of 2 configurations"):
        cells_of(
            table[((table["model"] == "a") & (table["unit"] < 2)) | ((table["model"] == "b") & (table["unit"] > 2))]
        )
    with pytest.raises(DataError, match="runs lack the columns parameters"):
        cells_of(table.drop(columns="parameters"))


def test_a_difference_of_two_alone_is_the_paired_t_test():
    rng = np.random.default_rng(3)
    table = runs({"a": 0.5, "b": 0.55}, 7, 0.02, 0.2, rng)
    (line,) = differences(table, {"model": ["b"]}, {"model": ["a"]}, on=["source"]).to_dict("records")
    wide = table.pivot(index="unit", columns="model", values="value")
    test = stats.ttest_rel(wide["b"], wide["a"])
    assert line["value"] / np.sqrt(line["v"]) == pytest.approx(test.statistic)
    assert (line["df"], line["n"]) == (test.df, 7)
    assert line["value_cell"] - line["value_other"] == pytest.approx(line["value"])


def test_intervals_of_differences_hold_where_variances_differ():
    rng = np.random.default_rng(4)
    held = []
    for _ in range(30):
        spread = 0.02 * np.sqrt(5 / rng.chisquare(5, 6))
        lines = [
            {
                "target": "t",
                "source": s,
                "model": m,
                "shots": "1",
                "unit": u,
                "value": 0.5 + (m == "b") * 0.03 + spread[s] * rng.normal(),
            }
            for s in range(6)
            for m in "ab"
            for u in range(5)
        ]
        found = differences(pd.DataFrame(lines), {"model": ["b"]}, {"model": ["a"]}, on=["source"])
        half = stats.t.ppf(0.975, found["df"]) * np.sqrt(found["v"])
        held += list(np.abs(found["value"] - 0.03) <= half)
    assert 0.9 < np.mean(held) < 0.99
    assert found["df"].max() <= 4 * 11


# -- the mixed model ---------------------------------------------------------------------------------------------------


def test_without_known_variances_it_is_statsmodels_mixed_model():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 6)
    x = np.column_stack([np.ones(72), rng.normal(size=72)])
    y = x @ [1.0, 2.0] + 1.5 * rng.normal(size=12)[group] + rng.normal(size=72)
    ours = fit_mixed(y, x, np.zeros(72), {"group": np.eye(12)[group], "rest": np.eye(72)})
    theirs = sm.MixedLM(y, x, groups=group).fit(reml=True)
    assert ours.beta == pytest.approx(theirs.fe_params, abs=1e-4)
    assert np.sqrt(np.diag(ours.covariance)) == pytest.approx(theirs.bse_fe, rel=1e-3)
    assert ours.theta["group"] == pytest.approx(float(theirs.cov_re[0, 0]), rel=1e-2)
    assert ours.theta["rest"] == pytest.approx(theirs.scale, rel=1e-3)


def test_with_known_variances_alone_it_is_weighted_least_squares():
    rng = np.random.default_rng(1)
    x, v = np.column_stack([np.ones(30), rng.normal(size=30)]), rng.uniform(0.1, 2, 30)
    y = x @ [0.5, -1.0] + np.sqrt(v) * rng.normal(size=30)
    ours = fit_mixed(y, x, v, {})
    theirs = sm.WLS(y, x, weights=1 / v).fit()
    assert ours.beta == pytest.approx(theirs.params)
    assert ours.covariance == pytest.approx(theirs.normalized_cov_params, rel=1e-6)
    found = ours.contrast(np.array([0.0, 1.0]))
    assert (found.df, found.high - found.value) == (np.inf, pytest.approx(1.959964 * found.se, rel=1e-5))


def test_a_meta_analysis_has_the_variance_that_the_restricted_likelihood_wants():
    rng = np.random.default_rng(2)
    v = rng.uniform(0.05, 0.5, 15)
    y = 1 + rng.normal(size=15) * np.sqrt(0.4 + v)
    ours = fit_mixed(y, np.ones((15, 1)), v, {"study": np.eye(15)})

    def criterion(t: float) -> float:
        w = 1 / (v + t)
        mean = (w * y).sum() / w.sum()
        return float(np.log(v + t).sum() + np.log(w.sum()) + (w * (y - mean) ** 2).sum())

    grid = np.linspace(0, 3, 30_001)
    assert ours.theta["study"] == pytest.approx(grid[np.argmin([criterion(t) for t in grid])], abs=2e-4)


def test_satterthwaite_is_exact_where_the_balanced_t_test_is():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(6), 4)
    y = 3 + 5 * rng.normal(size=6)[group] + rng.normal(size=24)
    ours = fit_mixed(y, np.ones((24, 1)), np.zeros(24), {"group": np.eye(6)[group], "rest": np.eye(24)})
    found, means = ours.contrast(np.ones(1)), y.reshape(6, 4).mean(axis=1)
    assert found.df == pytest.approx(5, abs=1e-2)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 5, means.mean(), stats.sem(means)), abs=1e-3)


def test_what_the_data_leave_open_is_nan():
    x = np.column_stack([np.ones(8), np.arange(8.0), 2 * np.arange(8.0)])
    ours = fit_mixed(np.arange(8.0) + [0, 1] * 4, x, np.full(8, 0.1), {})
    assert np.isnan(ours.contrast(np.array([0.0, 1.0, 0.0])).value)
    assert ours.contrast(np.array([0.0, 1.0, 2.0])).value == pytest.approx(1, abs=0.2)
    with pytest.raises(DataError, match="3 cells are too few for a model of 2"):
        fit_mixed(np.arange(3.0), x[:3], np.ones(3), {})


# -- gains -------------------------------------------------------------------------------------------------------------

SOURCES = {"a": 1e5, "b": 3e5, "c": 1e6, "d": 2e5, "e": 6e5, "f": 3e6}


def world(rng: Any, sd: float, gain: Callable[[str, str], float], v: float = 0.5) -> pd.DataFrame:
    """Four targets, six sources, two sizes, 5 and full shots; half of the pairs are near. Data bring 2 points a tenfold."""
    lines = []
    by_target = rng.normal(size=(4, 2, 2)) * sd
    by_source, both = 0.7 * sd * rng.normal(size=6), 0.5 * sd * rng.normal(size=(6, 4))
    for i, target in enumerate("tuvw"):
        for j, (source, images) in enumerate(SOURCES.items()):
            far = int((j >= 3) == (i < 2))
            for size in (1e7, 1e8):
                for shots in ("5", "full"):
                    relation = ("near", "far")[far]
                    y = 50 + 5 * i + (gain(relation, shots) + by_target[i, far, 0]) * np.log10(size)
                    y += (2 + by_target[i, far, 1]) * np.log10(images) + by_source[j] + both[j, i]
                    y += np.sqrt(0.5 * sd**2 + v) * rng.normal()
                    lines.append((target, source, f"{size:g}", shots, y / 100, v / 1e4, 4, 5, size, images, relation))
    names = ["target", "source", "model", "shots", "value", "v", "df", "n", "parameters", "images", "relation"]
    return pd.DataFrame(lines, columns=names)


def test_gains_of_a_world_without_noise_come_out():
    model = fit_scale(world(np.random.default_rng(0), 0.0, lambda r, k: {"near": 4, "far": 1}[r] - (k == "5"), v=0.0))
    assert model.gain("size", "near", "full").value == pytest.approx(4, abs=1e-3)
    assert model.gain("size", "far", "5").value == pytest.approx(0, abs=1e-3)
    assert model.gain("data", "near", ["5", "full"]).value == pytest.approx(2, abs=1e-3)
    assert model.gap("size", "near", "far", ["full"]).value == pytest.approx(3, abs=1e-3)
    effects = model.effects()
    assert set(effects["shots"]) == {"5", "full"}
    assert set(effects["n_targets"]) == {4}


def test_intervals_hold_the_gains_of_worlds_with_noise():
    rng, held = np.random.default_rng(0), []
    for _ in range(30):
        model = fit_scale(world(rng, 1.0, lambda r, k: 3.0))
        found = [model.gain("size", "near", "full"), model.gain("size", "far", "5"), model.gain("data", "near", "full")]
        truths = [3, 3, 2, 0]
        found.append(model.gap("size", "near", "far", ["5", "full"]))
        held.append([f.low <= truth <= f.high for f, truth in zip(found, truths, strict=True)])
    assert np.mean(held) >= 0.88


def test_logits_do_not_shrink_near_the_ceiling():
    lines = []
    for base, target in ((-1.0, "hard"), (2.0, "easy"), (0.0, "mid")):
        for source, images in (("a", 1e6), ("b", 1e7)):
            for size in (1e7, 1e8, 1e9):
                logit = base + 0.5 * np.log10(size / 1e7) + 0.2 * np.log10(images / 1e6)
                lines.append(
                    (target, source, f"{size:g}", "full", 1 / (1 + np.exp(-logit)), 1e-8, 4, 5, size, images, "near")
                )
    names = ["target", "source", "model", "shots", "value", "v", "df", "n", "parameters", "images", "relation"]
    model = fit_scale(pd.DataFrame(lines, columns=names), "logit")
    assert model.gain("size", "near", "full").value == pytest.approx(0.5, abs=1e-3)
    assert model.gain("data", "near", "full").value == pytest.approx(0.2, abs=1e-3)


def test_one_size_leaves_its_gain_open_and_one_of_all_is_refused():
    cells = world(np.random.default_rng(0), 0.5, lambda r, k: 3.0)
    model = fit_scale(cells[cells["model"] == "1e+08"])
    assert np.isnan(model.gain("size", "near", "full").value)
    assert np.isfinite(model.gain("data", "near", "full").value)
    with pytest.raises(DataError, match="one size of network and one size of source"):
        fit_scale(cells[(cells["model"] == "1e+08") & (cells["source"] == "a")])
    with pytest.raises(UsageError, match="scale must be one of points, logit"):
        fit_scale(cells, "log")


def test_the_papers_cells_are_fitted():
    cells = paper_cells()
    assert len(cells) == 289
    assert set(cells["relation"]) == {"natural to natural", "natural to X-ray", "X-ray to X-ray"}
    assert (cells["v"] > 0).all()


# -- rows of ours ------------------------------------------------------------------------------------------------------


def rows_of(rng: Any) -> pd.DataFrame:
    lines = []
    for backbone, source, gain in (
        ("s1", "imagenet1k", 0.0),
        ("l1", "imagenet1k", 0.05),
        ("s21", "imagenet21k", 0.02),
        ("l21", "imagenet21k", 0.07),
    ):
        for target in ("pets", "dtd", "nih14"):
            for seed in range(4):
                base = {
                    "source": source,
                    "backbone": backbone,
                    "target": target,
                    "ways": "all",
                    "shots": "full",
                    "seed": seed,
                }
                base |= {
                    "episode": NO_EPISODE,
                    "probe": "finetune",
                    "params": "",
                    "split": "test",
                    "metric": "accuracy",
                }
                lines.append(base | {"value": 0.6 + gain * (target != "nih14") + 0.004 * rng.normal()})
    return pd.DataFrame(lines)


def about_file(path: Path) -> Path:
    path.write_text("backbone,parameters\ns1,2e7\nl1,2e8\ns21,2e7\nl21,2e8\n")
    return path


def test_our_rows_become_cells(tmp_path):
    rows = rows_of(np.random.default_rng(0))
    about = about_backbones(rows, tmp_path, about_file(tmp_path / "sizes.csv"))
    assert about.set_index("backbone")["images"]["l21"] == 14.2e6  # the paper's source of this name
    relations = relations_by_domain(rows, about, {"dtd": "natural", "nih14": "X-ray"})
    assert relations["s1", "pets"] == "natural to natural"
    cells = cells_of(runs_of(rows, about, relations, probe="finetune", metric="accuracy"))
    assert len(cells) == 12
    assert set(cells["df"]) == {9}
    gain = fit_scale(cells).gain("size", "natural to natural", "full")
    assert gain.value == pytest.approx(5, abs=1.5)


def test_near_and_far_by_measure(tmp_path):
    rows = rows_of(np.random.default_rng(0))
    lines = [
        (s, t, "r", "mmd", v)
        for s in ("imagenet1k", "imagenet21k")
        for t, v in (("pets", 0.1), ("dtd", 0.2), ("nih14", 0.9))
    ]
    table = pd.DataFrame(lines, columns=["source", "target", "reference", "measure", "value"])
    found = relations_by_proximity(rows, table, "mmd")
    assert (found["s1", "pets"], found["s1", "dtd"], found["s1", "nih14"]) == ("near", "near", "far")
    overlaps = table.assign(measure="neighbours", value=-table["value"])
    assert relations_by_proximity(rows, overlaps, "neighbours") == found
    with pytest.raises(UsageError, match=r"no measure 'mdd'.*Did you mean: mmd"):
        relations_by_proximity(rows, table, "mdd")
    with pytest.raises(DataError, match="do not say how near 'imagenet1k' is to 'pets'"):
        relations_by_proximity(rows, table[table["target"] != "pets"], "mmd")


def test_what_is_not_known_of_our_backbones_is_asked_for(tmp_path):
    rows = rows_of(np.random.default_rng(0))
    about = about_backbones(rows, tmp_path)
    with pytest.raises(DataError, match="domain of target 'dtd' is not known"):
        relations_by_domain(rows, about, {})
    relations = relations_by_domain(rows, about, {"dtd": "natural", "nih14": "X-ray"})
    with pytest.raises(DataError, match=r"parameters or source images of l1, l21, s1, s21"):
        runs_of(rows, about, relations, probe="finetune", metric="accuracy")
    with pytest.raises(DataError, match=r"no test rows of probe 'fintune'.*Did you mean: finetune"):
        runs_of(rows, about, relations, probe="fintune", metric="accuracy")
    for text, words in (
        ("backbone,size\ns1,1\n", "found backbone, size"),
        ("backbone,parameters\ns3,1\n", "no row is of 's3'.*Did you mean"),
        ("backbone,parameters\ns1,many\n", "must be numbers above 0"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            about_backbones(rows, tmp_path, tmp_path / "bad.csv")


def test_the_command_on_our_rows(tmp_path):
    ResultStore.open(tmp_path / "rows").append(rows_of(np.random.default_rng(0)))
    words = ["scale", "--results", str(tmp_path / "rows"), "--data-root", str(tmp_path)]
    words += ["--backbones", str(about_file(tmp_path / "sizes.csv")), "--domain", "dtd=natural", "nih14=X-ray"]
    done = CliRunner().invoke(
        main, [*words, "--json", "--figure", str(tmp_path / "gains.csv"), "--out", str(tmp_path / "gains.md")]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["cells"] == 12
    near = next(g for g in told["gains"] if g["kind"] == "size" and g["relation"] == "natural to natural")
    assert near["verdict"] == "supported"
    assert len(pd.read_csv(tmp_path / "gains.csv")) == len(told["gains"])
    assert (tmp_path / "gains.md").read_text().startswith("| what | relation |")
    shown = CliRunner().invoke(main, [*words, "--logit"])
    assert "logits per tenfold" in shown.stderr
    assert CliRunner().invoke(main, [*words, "--domain", "dtd"]).exit_code == 2
    assert CliRunner().invoke(main, [*words, "--figure", "gains.png"]).exit_code == 2
    assert CliRunner().invoke(main, [*words, "--proximity", str(tmp_path / "none.csv")]).exit_code == 1


def test_the_benchmark_says_how_often_intervals_hold(monkeypatch):
    worlds = [(scaling._pairs, 3), (scaling._small, 1)]
    monkeypatch.setattr(scaling, "WORLDS", [(make, count, count) for make, count in worlds])
    entries = scaling.run(Options(tiny=True))
    assert {e["name"].split("/")[1] for e in entries} == {"pairs", "small"}
    assert all(0 <= e["rate"] <= 1 and e["checked"] and e["promised"][0] < e["promised"][1] for e in entries)
