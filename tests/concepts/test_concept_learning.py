"""Learning a concept in step with its folder: what is kept, how it goes on, what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tiller.concepts.base import ConceptMethod
from tiller.concepts.learn import (
    ConceptResult,
    learn_concept,
    make,
    methods,
    open_concept,
    resume_concept,
)
from tiller.concepts.objective import DenoisingLoss
from tiller.concepts.pictures import load_pictures
from tiller.concepts.run import Progress
from tiller.concepts.vocabulary import words_of
from tiller.concepts.watch import Watch
from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput, RewardError, RunError
from tiller.models import FrozenModel, load_model
from tiller.runs.concept_report import concept_page
from tiller.runs.record import read_run
from tiller.testing.conformance import check_resume
from tiller.testing.fake_pipeline import fake_sdxl_pipeline

SMALL: dict[str, dict[str, Any]] = {
    "gfti": {"popsize": 4, "check_every": 2, "preview_every": 3, "held_out_draws": 6, "init": "x"},
    "ti": {"check_every": 2, "preview_every": 3, "held_out_draws": 6, "init": "x"},
}

PAPERS = (Path(__file__).parents[2] / "docs" / "papers.md").read_text(encoding="utf-8")


def learn(
    model: FrozenModel, photos: list[Image.Image], out: Path, method: str = "gfti", **settings: Any
) -> ConceptResult:
    common = {"budget": "steps=6", "out": out} | SMALL[method]
    return learn_concept(model, photos, "<duck>", method=method, **(common | settings))


def journal(run: Path) -> list[dict[str, Any]]:
    """The journal without what no two runs share."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    drop = ("time", "cost", "forwards")
    kept = [line for line in lines if line["kind"] != "resumed"]
    return [{k: v for k, v in line.items() if k not in drop} for line in kept]


def files(run: Path) -> dict[str, bytes]:
    """What was learned, and every picture."""
    found = [*run.glob("learned_embeds*"), *run.glob("images/*.png"), run / "README.md"]
    return {path.name: path.read_bytes() for path in sorted(found)}


@pytest.mark.parametrize("method", SMALL)
def test_a_run_leaves_the_word_its_pictures_and_its_card(
    method: str, model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    seen: list[Progress] = []
    found = learn(model, photos, tmp_path, method, on_step=seen.append)
    assert found.stopped == "budget: steps=6"
    about = (found.concept.token, found.method, found.prompt, found.began)
    assert about == ("<duck>", method, "a photo of <duck>", ("x",))
    assert found.concept.vectors[0].shape == (1, 16)
    rows = 6 * 4 * (4 if method == "gfti" else 1)
    assert found.cost.forwards == rows
    assert found.cost.backwards == (0 if method == "gfti" else rows)
    names = {path.name for path in (found.run_dir / "images").iterdir()}
    assert {"input-01.png", "input-04.png", "final-4.png", "best.png"} <= names
    assert {f"sample-{i:04d}-{j}.png" for i in (0, 3, 6) for j in (1, 2)} <= names
    assert [path.name for path in found.pictures] == [f"final-{i}.png" for i in (1, 2, 3, 4)]
    looks = [e for e in journal(found.run_dir) if e.get("held_out") is not None]
    assert [e.get("step", 0) for e in looks] == [0, 2, 4, 6]
    best = min(e["held_out"] for e in looks)
    assert [p.best for p in seen][-1] == best
    assert seen[0].start == looks[0]["held_out"]
    card = (found.run_dir / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert 'instance_prompt: "a photo of <duck>"' in card
    assert found.loss is not None
    again = open_concept(found.run_dir)
    assert torch.equal(again.concept.vectors[0], found.concept.vectors[0])
    assert (again.loss, again.cost, again.stopped) == (found.loss, found.cost, found.stopped)


@pytest.mark.parametrize("method", SMALL)
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(
    method: str, model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    whole = learn(model, photos, tmp_path / "whole", method)
    for cut in (1, 3, 4):

        def stop(progress: Progress, cut: int = cut) -> None:
            if progress.step.index == cut:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learn(model, photos, tmp_path / f"cut {cut}", method, on_step=stop)
        (run,) = (tmp_path / f"cut {cut}").iterdir()
        found = resume_concept(run, model=model)
        assert journal(run) == journal(whole.run_dir)
        assert files(run) == files(whole.run_dir)
        assert found.loss == whole.loss


def test_a_crash_between_the_files_and_the_state_is_healed(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    """The vectors of round 4 are written, its state is not: the round is made again."""
    whole = learn(model, photos, tmp_path / "whole", "ti")

    def stop(progress: Progress) -> None:
        if progress.step.index == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(model, photos, tmp_path / "cut", "ti", on_step=stop)
    (run,) = (tmp_path / "cut").iterdir()
    shutil.copy(run / "state.previous.safetensors", run / "state.safetensors")
    resume_concept(run, model=model)
    assert journal(run) == journal(whole.run_dir)
    assert files(run) == files(whole.run_dir)


def test_the_choice_of_the_start_keeps_to_the_rows_that_fit(
    model: FrozenModel,
    photos: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    unet: Any = model.unet
    hook = unet.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr("tiller.concepts.learn.rows_that_fit", lambda *_: 3)
    try:
        found = learn(
            model, photos, tmp_path, budget="steps=1", init="best", clip="emoji", preview_every=0
        )
    finally:
        hook.remove()
    assert read_run(found.run_dir).spec["start_forwards"] > 3
    assert max(seen[: len(seen) // 2]) == 3


def test_a_larger_budget_goes_on_and_a_finished_run_does_nothing(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    short = learn(model, photos, tmp_path / "a", budget="steps=4")
    lines = journal(short.run_dir)
    again = resume_concept(short.run_dir, model=model)
    assert journal(short.run_dir) == lines
    assert again.cost.steps == 4
    with pytest.raises(InvalidInput, match="images=9 would never end the search"):
        resume_concept(short.run_dir, model=model, budget="images=9")

    def stop(progress: Progress) -> None:
        if progress.step.index == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume_concept(short.run_dir, model=model, budget="steps=6", on_step=stop)
    between = open_concept(short.run_dir)  # the first end's losses and pictures are another word's
    assert (between.cost.steps, between.start_loss, between.loss) == (5, None, None)
    assert [path.name for path in between.pictures] == ["sample-0003-1.png", "sample-0003-2.png"]
    assert "trials that chose nothing" not in concept_page(read_run(short.run_dir))
    longer = resume_concept(short.run_dir, model=model)
    assert longer.loss is not None
    assert longer.cost.steps == 6
    assert longer.stopped == "budget: steps=6"
    assert sum(line["kind"] == "result" for line in journal(short.run_dir)) == 2


def test_a_plateau_ends_the_search(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    found = learn(
        model, photos, tmp_path, "ti", lr=1e-9, weight_decay=0.0, patience=2, budget="steps=50"
    )
    assert found.stopped == "the held-out loss has not fallen for 2 looks (patience)"
    assert found.cost.steps == 4
    assert resume_concept(found.run_dir, model=model, budget="steps=60").cost.steps == 4


def test_the_watch_keeps_the_lowest_and_knows_a_plateau_after_a_resume(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    method = make("ti", SMALL["ti"])
    table = model.token_embeddings[0]
    space, z = method.space([table[3:4].float()], words_of(model), 0)
    objective = DenoisingLoss(model, torch.zeros(1, 4, 8, 8), ["a {}"], method.held_out())

    def watch() -> Watch:
        return Watch(space, objective, 0, every=1, patience=3)

    near = torch.cat([z, z + 0.5, z - 0.5])
    one = watch()
    losses = one.losses(near)
    look = one.look(near)
    assert look.loss == min(losses)
    assert torch.equal(look.z, near[losses.index(min(losses))][None])
    assert look.kept
    assert not one.look(near).kept
    assert one.plateau() is None
    one.look(near)
    two = watch()
    two.recall([{"held_out": look.loss}] * 3 + [{"held_out": None}, {"other": 1}])
    assert (two.best, two.plateau()) == (one.best, one.plateau())
    one.look(near)
    assert one.plateau() is not None
    assert one.report(space.decode(z)) != one.losses(z)  # other trials than those that choose
    torn = DenoisingLoss(model, torch.full((1, 4, 8, 8), torch.nan), ["a {}"], method.held_out())
    with pytest.raises(RewardError, match="must be finite, got NaN"):
        Watch(space, torn, 0, every=1, patience=3).look(z)


@pytest.mark.parametrize("projection", ["pca", "prior", "random", "full"])
def test_every_projection_searches(
    projection: str, model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    found = learn(
        model, photos, tmp_path, projection=projection, d=3, tokens=2, budget="steps=2",
        preview_every=0, flip=0.5,
    )  # fmt: skip
    assert found.concept.vectors[0].shape == (2, 16)
    spec = json.loads((found.run_dir / "run.json").read_text())["spec"]
    assert spec["method"]["settings"]["projection"] == projection


@pytest.mark.parametrize("method", SMALL)
def test_two_text_encoders_learn_one_word(
    method: str, photos: list[Image.Image], tmp_path: Path
) -> None:
    model = load_model(fake_sdxl_pipeline())
    model.defaults = dataclasses.replace(model.defaults, num_inference_steps=2)
    found = learn(model, photos, tmp_path, method, budget="steps=2", preview_every=0)
    widths = tuple(table.shape[1] for table in model.token_embeddings)
    assert found.concept.widths == widths
    pipeline = fake_sdxl_pipeline()
    pipeline.load_textual_inversion(str(found.run_dir / "learned_embeds.safetensors"))
    pipeline.load_textual_inversion(
        str(found.run_dir / "learned_embeds_2.safetensors"),
        text_encoder=pipeline.text_encoder_2,
        tokenizer=pipeline.tokenizer_2,
    )
    from tiller.concepts.drawing import draw

    ours = draw(model, "a <duck>", concepts=[found.concept], seeds=[3], num_inference_steps=2)[0]
    theirs = pipeline(
        "a <duck>",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        height=model.defaults.height,
        width=model.defaults.width,
        guidance_scale=model.defaults.guidance_scale,
    ).images[0]
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_method_conforms(
    name: str, model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    kind = methods()[name]
    documented = "\n".join(inspect.getdoc(base) or "" for base in kind.__mro__)
    for field in dataclasses.fields(kind):
        assert f"{field.name}:" in documented, f"{name}.{field.name} is not under Attributes"
        assert f"`{field.name}`" in PAPERS, f"docs/papers.md has no source of {name}.{field.name}"
    assert kind.citation
    chosen: ConceptMethod = make(name, SMALL[name])
    assert type(chosen)(**dataclasses.asdict(chosen)) == chosen
    start = [table[3:4].float() for table in model.token_embeddings]
    space, z = chosen.space(start, words_of(model), 0)
    vectors = space.decode(z)
    assert all(torch.equal(a[0], b) for a, b in zip(vectors, start, strict=True))
    objective = DenoisingLoss(model, torch.ones(2, 4, 8, 8), ["a {}"], chosen.sampling())
    steps = check_resume(chosen.build(space, z, objective), Budget(steps=3))
    assert chosen.centre(steps[-1].state).shape == z.shape


def test_what_is_wrong_is_said_before_anything_is_written(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    def refused(
        message: str, *, token: str = "<duck>", given: Any = photos, **options: Any
    ) -> None:
        with pytest.raises(InvalidInput, match=message) as caught:
            learn_concept(model, given, token, out=tmp_path / "none", **options)
        assert "\n" not in str(caught.value)

    refused("'a' is a word that the model knows", token="a")
    refused("needs a token", token="")
    small = load_pictures(photos, (8, 8))
    refused(r"expected pictures of 16 x 16 pixels.*got \[\(8, 8\)\]", given=small, init="x")
    refused("reads all 2 vectors .* take --token '<duck>'", token="<Duck>", tokens=2, init="x")
    refused("got none", given=[])
    refused("object or style, got 'person'", subject="person")
    refused("unknown method of learning a concept 'gtfi'.*Did you mean 'gfti'", method="gtfi")
    refused("unknown field of method gfti 'popsizes'", popsizes=3)
    refused("gfti.popsize must be a whole number, got 'many'", popsize="many")
    refused("popsize must be at least 3", popsize=2)
    refused("popsize must be at least 3", popsize=0)
    refused("stretch must be positive and finite, got 0.0", stretch=0.0)
    refused("projection must be one of", projection="svd")
    refused("a word has at most 64 tokens, got 65", tokens=65)
    refused("init='x y' names 2 words to begin with, .* or --set tokens=2", init="x y", tokens=1)
    refused("draws must be at least 1", draws=0)
    refused("temperature must be positive", temperature=0.0)
    refused("patience must be at least 0", patience=-1)
    refused("seed must be a whole number", seed=0.5)
    refused("budget", budget="steps=0")
    refused("draws no images, so images=4 would never end the search", budget="images=4")
    refused("expected a word to begin with", init="  ")
    refused("a prompt of this model has 16 places; got tokens=20", tokens=20, init="x")
    refused("no CLIP is known for a text encoder of width 16")
    assert not (tmp_path / "none").exists()


def test_one_picture_is_enough_with_a_notice(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="3 to 5 pictures teach a word best, got 1"):
        learn(model, photos[:1], tmp_path, budget="steps=1", preview_every=0)


def test_a_run_that_is_none_of_a_concept_or_of_other_weights_is_not_continued(
    model: FrozenModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    from tiller.runs.store import RunStore
    from tiller.testing.fake_pipeline import fake_pipeline

    with RunStore.create(tmp_path, {"prompt": "a cat"}, "dno") as store:
        pass
    with pytest.raises(RunError, match="is no run that learns a concept"):
        resume_concept(store.path)
    found = learn(model, photos, tmp_path / "runs", budget="steps=1", preview_every=0)
    with pytest.raises(RunError, match="made with a pipeline object"):
        resume_concept(found.run_dir)
    with pytest.raises(RunError, match="made with other weights"):
        resume_concept(found.run_dir, model=load_model(fake_pipeline(seed=5)))
    (found.run_dir / "space.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"space.safetensors is damaged"):
        resume_concept(found.run_dir, model=model)
