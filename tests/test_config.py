"""Parameters: the paper's defaults, the scales' files, the notebook's namespace, and what is refused."""

import pytest
import yaml

from kinemic.config import ABLATIONS, BEHAVIOURS, DEVIATIONS, PARAMS, Experiment, ablation


def test_defaults_are_the_papers():
    cfg = Experiment()
    assert (cfg.shots, cfg.mining.top_k, cfg.mining.bank, cfg.mining.temperature) == (10, 250, 60, 0.07)
    assert (cfg.denoiser.dim, cfg.denoiser.layers, cfg.denoiser.heads, cfg.denoiser.ff) == (512, 8, 4, 1024)
    assert (cfg.diffusion.num_timesteps, cfg.diffusion.guidance_scale) == (50, 2.5)
    a = cfg.adapt
    assert (a.steps, a.lr, a.weight_decay, a.max_grad_norm) == (10_000, 2e-5, 1e-5, 1.0)
    assert (a.tuning, a.rank, a.alpha, a.lora_dropout) == ("lora", 16, 32, 0.1)
    assert (a.weight_rec, a.weight_con, a.weight_win, a.weight_dist, a.window_weight) == (1, 1, 1, 0, "dynamic")


def test_paper_file_changes_no_setting():
    paper = Experiment.load("paper").model_dump(exclude={"scale", "source", "target"})
    assert paper == Experiment().model_dump(exclude={"scale", "source", "target"})


@pytest.mark.parametrize("path", sorted(PARAMS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_scale_loads_and_carries_its_name(path):
    assert Experiment.load(path.stem).scale == path.stem
    assert yaml.safe_load(path.read_text())["scale"] == path.stem
    assert Experiment.load(str(path)) == Experiment.load(path.stem)


def test_single_parameters_replace_the_scales_and_none_keeps_them():
    cfg = Experiment.load("smoke", shots=3, draws=None, settings={"adapt": {"steps": 9}})
    assert (cfg.shots, cfg.draws, cfg.adapt.steps) == (3, Experiment.load("smoke").draws, 9)
    assert cfg.adapt.rank == Experiment.load("smoke").adapt.rank


def test_values_as_papermill_injects_them_are_read():
    """papermill passes `-p flag 3` and the YAML 1.1 float `1e-4` as strings."""
    cfg = Experiment.load("smoke", shots="3", settings={"adapt": {"lr": "1e-4"}})
    assert cfg.shots == 3 and cfg.adapt.lr == 1e-4


@pytest.mark.parametrize(("parameters", "said"), [
    ({"shot": 3}, "shot: Extra inputs"),
    ({"shots": 0}, "shots: .*greater than or equal to 1"),
    ({"settings": {"adapt": {"step": 3}}}, "adapt.step: Extra"),
    ({"settings": {"adopt": {"steps": 3}}}, "adopt: Extra"),
    ({"settings": {"adapt": {"window": "best"}}}, "adapt.window: .*'mined', 'random' or 'none'"),
    ({"settings": {"adapt": {"lr": float("nan")}}}, "adapt.lr"),
    ({"settings": {"denoiser": {"dim": 30, "heads": 4}}}, "cannot be split into 4"),
    ({"settings": {"diffusion": {"sampling_steps": 99}}}, "exceeds num_timesteps"),
    ({"settings": {"adapt": 3}}, "settings.adapt must be a mapping"),
    ({"settings": {"behaviour": "published"}}, "behaviour is 'published', choose one of corrected, reference"),
    ({"settings": {"har": {"scheme": "reference"}}}, "moves the vertical axis, .*set augment none"),
    ({"settings": 3}, "settings must map"),
])  # fmt: skip
def test_unknown_and_impossible_parameters_are_one_line(parameters, said):
    with pytest.raises(ValueError, match=said) as caught:
        Experiment.load("smoke", **parameters)
    assert "\n" not in str(caught.value)


def test_unknown_scale_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="scales are .*embedded.*smoke"):
        Experiment.load("enormous")
    broken = tmp_path / "broken.yaml"
    broken.write_text("shots: [1")
    with pytest.raises(ValueError, match="broken.yaml: not valid YAML"):
        Experiment.load(str(broken))
    broken.write_text("- 1")
    with pytest.raises(ValueError, match="expected a mapping"):
        Experiment.load(str(broken))


def test_a_notebooks_namespace_gives_its_parameters_and_no_more():
    import os

    names = {"scale": "smoke", "shots": 4, "draws": None, "settings": {}, "_hidden": 1, "In": [], "Out": {}, "os": os,
             "Experiment": Experiment, "exit": print}  # fmt: skip
    misspelt = {**names, "shot": 4}
    assert Experiment.from_notebook(names).shots == 4
    with pytest.raises(ValueError, match="shot: Extra"):
        Experiment.from_notebook(misspelt)
    names |= {"defined_later": [1, 2], "shots": 5}  # the set-up cell run again in a live notebook
    assert Experiment.from_notebook(names).shots == 5


def test_results_are_published_under_the_scale_only_where_nothing_differs(tmp_path):
    cfg = Experiment.load("smoke")
    assert cfg.edition == "smoke"
    other = Experiment.load("smoke", source=str(tmp_path / "somewhere"), shots=1)
    assert other.edition.startswith("smoke.") and other.edition != Experiment.load("smoke", shots=1).edition
    assert other.record()["source"] == "somewhere" and str(tmp_path) not in str(other.record())


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_valid_experiment_that_differs(name):
    cfg = Experiment.load("smoke")
    changed = ablation(cfg, name)
    assert (changed == cfg) == (name == "kinemic")
    assert changed.override(adapt={k: getattr(cfg.adapt, k) for k in ABLATIONS[name]}) == cfg


def test_the_reference_is_one_name_on_any_scale_and_keeps_its_sizes():
    ours, theirs = (Experiment.load("embedded", settings={"behaviour": b}) for b in ("corrected", "reference"))
    assert ours == Experiment.load("embedded")
    a, h = theirs.adapt, theirs.har
    assert (a.time_map, a.num_timesteps, a.condition_dropout, a.teacher_mode) == ("ceil", 100, "independent", "train")
    assert (a.short_source, a.window_features, a.action_init, a.action_lr) == ("repeat", "sliced", "normal", 0)
    assert (h.scheme, h.augment, h.budget, h.report) == ("reference", "none", "epochs", "best")
    assert not theirs.data.retarget and not theirs.synthesis.reconcile
    assert (a.steps, a.rank, theirs.denoiser, h.updates) == (
        ours.adapt.steps, ours.adapt.rank, ours.denoiser, ours.har.updates)  # fmt: skip
    assert theirs.edition.startswith("embedded.") and ours.edition == "embedded"


def test_fields_given_beside_a_behaviour_win(tmp_path):
    mixed = {"behaviour": "reference", "adapt": {"teacher_mode": "eval"}, "har": {"updates": 7}}
    cfg = Experiment.load("embedded", settings=mixed)
    assert (cfg.adapt.teacher_mode, cfg.adapt.time_map, cfg.har.updates) == ("eval", "ceil", 7)
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"settings": mixed}))
    cfg = Experiment.load(str(own), settings={"adapt": {"time_map": "nearest"}})
    assert (cfg.adapt.teacher_mode, cfg.adapt.time_map, cfg.har.report) == ("eval", "nearest", "best")


@pytest.mark.parametrize("name", DEVIATIONS)
def test_every_deviation_changes_a_valid_experiment_and_is_part_of_the_reference(name):
    cfg = Experiment.load("paper")
    changed = cfg.override(**DEVIATIONS[name])
    assert changed != cfg
    for section, fields in DEVIATIONS[name].items():
        assert fields.items() <= BEHAVIOURS["reference"][section].items()


def test_unknown_ablation_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        ablation(Experiment(), "no luck")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Experiment().shots = 3
