"""A run that is sent to the Hugging Face Hub: what goes there, and what its card says."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from proxygml import evaluate_run, push
from proxygml.errors import UserError
from proxygml.hub.card import model_card, read_run
from proxygml.training.recipe import Recipe
from tests.helpers.commands import refused, run
from tests.helpers.hub_server import TOKEN, Hub
from tests.helpers.models import untrained
from tests.helpers.runs import train

pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")


@pytest.fixture(scope="module")
def finished(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = train(replace(small_recipe, epochs=1), tmp_path_factory.mktemp("hub") / "gratings")
    evaluate_run(trained.path, before=True, report=False)
    return trained.path


def card(hub: Hub, repo: str) -> tuple[dict, str]:
    _, metadata, text = hub.repos[repo]["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_run_is_sent_whole_in_one_commit_and_without_anybodys_paths(finished: Path, hub: Hub) -> None:
    address = push(finished, "owner/gratings", license="apache-2.0")
    sent = hub.repos["owner/gratings"]
    assert address.startswith(f"{hub.address}/owner/gratings/commit/") and hub.commits == {"owner/gratings": 1}
    assert sorted(sent) == ["README.md", "evaluation.json", "model.json", "model.safetensors"]
    for name in ("model.json", "model.safetensors"):
        assert sent[name] == (finished / name).read_bytes()
    assert not any(str(finished.parent.parent).encode() in data for data in sent.values())
    assert "owner/gratings" not in hub.private


def test_the_card_says_what_is_known(finished: Path, hub: Hub) -> None:
    push(finished, "owner/gratings", license="apache-2.0", private=True)
    metadata, text = card(hub, "owner/gratings")
    assert hub.private == {"owner/gratings"}
    assert metadata["library_name"] == "proxygml" and metadata["license"] == "apache-2.0"
    metrics = {metric["type"]: metric["value"] for metric in metadata["model-index"][0]["results"][0]["metrics"]}
    figures = evaluate_run(finished, report=False)
    assert figures is not None and metrics["map_at_r"] == round(100 * figures.map_at_r.value, 2)
    recall = figures.recall[1]
    assert f"| Recall@1 | {100 * recall.value:.1f} ({100 * recall.low:.1f} to {100 * recall.high:.1f})" in text
    for words in (
        'Embedder.load("hf://owner/gratings")', "12 classes", "6 test classes", "before training", "0 of these classes",
        "ProxyGMLLoss", "## Intended use and limits", "Recall@K: the share",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("start", "weights", "words"),
    [("", "none", "none (random)"), ("", "pretrained", "pretrained"), ("/runs/old", "none", "earlier run")],
)
def test_the_card_says_what_training_started_from(
    small_recipe: Recipe, tmp_path: Path, start: str, weights: str, words: str
) -> None:
    recipe = replace(small_recipe, start_from=start, embedder=replace(small_recipe.embedder, weights=weights))
    recipe.write(untrained(tmp_path / "run") / "recipe.yaml")
    text = model_card(read_run(tmp_path / "run"), "owner/new")
    assert words in next(line for line in text.splitlines() if "weights that training started from" in line)
    assert str(start or "/runs") not in text  # nobody's paths


def test_a_run_without_figures_claims_none(hub: Hub, small_recipe: Recipe, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "run")
    small_recipe.write(folder / "recipe.yaml")
    push(folder, "owner/new")
    metadata, text = card(hub, "owner/new")
    assert "model-index" not in metadata and "license" not in metadata and "was not evaluated" in text
    assert "evaluation.json" not in hub.repos["owner/new"]


def test_names_of_classes_are_text_in_the_card(finished: Path, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model.safetensors", "recipe.yaml"):
        (folder / name).write_bytes((finished / name).read_bytes())
    described = (finished / "model.json").read_text().replace('"class 00"', '"<img src=x>\\n## [a](http://b)"')
    (folder / "model.json").write_text(described)
    push(folder, "owner/hostile")
    _, text = card(hub, "owner/hostile")
    assert "<img" not in text.replace("\\<", "") and "\n## [a]" not in text


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("gratings", TOKEN, "repo is 'gratings', but must be USER/NAME"),
        ("../owner/gratings", TOKEN, "but must be USER/NAME"),
        ("owner/gratings", "hf_wrong", "log in by"),
        ("other/gratings", TOKEN, "refuses other/gratings"),
    ],
)
def test_what_the_hub_refuses_is_said(
    finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        push(finished, repo)
    assert not hub.commits


def test_a_hub_that_does_not_answer_is_named(finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="could not be reached"):
        push(finished, "owner/gratings")


def test_by_command(finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("push", str(finished), "owner/gratings", "--private", "--license", "mit")
    assert f"sent: {hub.address}/owner/gratings/commit/" in capsys.readouterr().out
    assert card(hub, "owner/gratings")[0]["license"] == "mit"
    assert "holds no model.json" in refused(capsys, "push", str(tmp_path), "owner/gratings")
