"""Concepts as others read and write them, by diffusers' own loader; and files that are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiller.concepts.drawing import draw
from tiller.concepts.files import write_concept
from tiller.core.errors import InvalidInput, TillerNotice
from tiller.models import load_model
from tiller.models.concept_files import read_concept, read_named
from tiller.models.concepts import Concept, Vocabulary
from tiller.testing.fake_pipeline import fake_pipeline


def concept(k: int = 1, *widths: int, token: str = "<duck>") -> Concept:
    generator = torch.Generator().manual_seed(k)
    vectors = tuple(0.02 * torch.randn(k, w, generator=generator) for w in widths or (16,))
    return Concept(token, vectors, {"method": "gfti"})


def same(a: Concept, b: Concept) -> bool:
    pairs = zip(a.vectors, b.vectors, strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("to", ["diffusers", "a1111", "comfyui"])
@pytest.mark.parametrize("widths", [(16,), (16, 24)])
def test_what_is_written_is_read_back(
    k: int, to: str, widths: tuple[int, ...], tmp_path: Path
) -> None:
    given = concept(k, *widths)
    files = write_concept(given, tmp_path, to)
    found = read_concept(tmp_path if to == "diffusers" else files[0])
    assert same(found, given)
    assert (found.token, found.about["method"]) == ("<duck>", "gfti")
    assert read_named(f"{files[0]}=<goose>").token == "<goose>"


@pytest.mark.parametrize("k", [1, 3])
def test_a_plain_pipeline_loads_it_and_draws_the_same_bit_for_bit(k: int, tmp_path: Path) -> None:
    given = concept(k)
    write_concept(given, tmp_path)
    from tiller.concepts.drawing import draw

    ours = draw(
        load_model(fake_pipeline()), "a <duck> b", concepts=[tmp_path], seeds=[7],
        num_inference_steps=3,
    )[0]  # fmt: skip
    pipeline = fake_pipeline()
    pipeline.load_textual_inversion(str(tmp_path / "learned_embeds.safetensors"))
    theirs = pipeline(
        "a <duck> b", num_inference_steps=3, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert ours.tobytes() == theirs.tobytes()
    plain = pipeline("a b", num_inference_steps=3, generator=torch.Generator().manual_seed(7))
    assert ours.tobytes() != plain.images[0].tobytes()


def test_a_token_of_several_vectors_that_a_plain_pipeline_misreads_is_refused(
    tmp_path: Path,
) -> None:
    """diffusers asks the tokenizer for the prompt's tokens, and that answers in small letters."""
    given = concept(2, token="<Duck>")
    (a1111,) = write_concept(given, tmp_path, "a1111")
    with pytest.raises(InvalidInput, match=r"small letters only, got '<Duck>'; take --token '<du"):
        write_concept(given, tmp_path)
    assert same(read_concept(a1111), given)
    write_concept(concept(1, token="<Duck>"), tmp_path)
    pipeline = fake_pipeline()
    pipeline.load_textual_inversion({"<Duck>": given.vectors[0]})
    assert pipeline.maybe_convert_prompt("a <Duck>", pipeline.tokenizer) == "a <Duck>"


@pytest.mark.parametrize("k", [1, 2])
def test_two_encoders_load_from_two_files(k: int, tmp_path: Path) -> None:
    given = concept(k, 16, 16)
    first, second = write_concept(given, tmp_path)
    assert second.name == "learned_embeds_2.safetensors"
    for path, vectors in zip((first, second), given.vectors, strict=True):
        pipeline = fake_pipeline()
        pipeline.load_textual_inversion(str(path))
        table = pipeline.text_encoder.get_input_embeddings().weight
        assert torch.equal(table[-k:], vectors)
    (together,) = write_concept(given, tmp_path / "sdxl", "a1111")
    assert sorted(load_file(together)) == ["clip_g", "clip_l"]
    pipeline = fake_pipeline()
    pipeline.load_textual_inversion(load_file(together)["clip_g"], token="<duck>")
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[-k:], given.vectors[1])


def test_a1111s_file_has_its_keys_and_the_tokens_name(tmp_path: Path) -> None:
    (file,) = write_concept(concept(2, token="<my/duck>"), tmp_path, "a1111")
    assert file.name == "my-duck.safetensors"
    assert {name: list(v.shape) for name, v in load_file(file).items()} == {"emb_params": [2, 16]}


def test_another_word_in_the_same_folder_is_not_overwritten(tmp_path: Path) -> None:
    write_concept(concept(1), tmp_path)
    write_concept(concept(2), tmp_path)  # learned on: the same word
    assert len(read_concept(tmp_path)) == 2
    with pytest.raises(InvalidInput, match=r"embeds.safetensors holds <duck> already, and <goose>"):
        write_concept(concept(token="<goose>"), tmp_path)
    save_file({"a": torch.ones(1, 4), "b": torch.ones(1, 4)}, tmp_path / "goose.safetensors")
    with pytest.raises(InvalidInput, match=r"goose.safetensors holds something else already"):
        write_concept(concept(token="<goose>"), tmp_path, "a1111")
    assert read_concept(tmp_path).token == "<duck>"


@pytest.mark.parametrize("kind", ["a1111", "diffusers .bin", "a1111 of another program"])
def test_older_files_are_read_weights_only(kind: str, tmp_path: Path) -> None:
    vectors = concept(2).vectors[0]
    a1111: dict[str, Any] = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors)},
        "name": "duck",
        "step": 3000,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    data: Any = {
        "a1111": a1111,
        "diffusers .bin": {"<duck>": vectors[0]},
        "a1111 of another program": {"string_to_param": {"*": vectors}, "step": 0},
    }[kind]
    path = tmp_path / ("learned_embeds.bin" if "bin" in kind else "duck.pt")
    torch.save(data, path)
    found = read_concept(path)
    assert found.token == "<duck>"
    assert torch.equal(found.vectors[0], vectors[:1] if "bin" in kind else vectors)


class Malicious:
    """What a pickle can do to who opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


def test_a_malicious_pickle_is_refused_unopened(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"string_to_param": {"*": Malicious(witness)}}, tmp_path / "bad.pt")
    with pytest.raises(InvalidInput, match=r"is a pickle that would run .*pathlib") as caught:
        read_concept(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)
    assert not witness.exists()


def test_a_pickle_that_puts_its_names_together_is_refused(tmp_path: Path) -> None:
    torch.save({"<duck>": torch.ones(1, 16)}, tmp_path / "bad.pt", pickle_protocol=4)
    with pytest.raises(InvalidInput, match="opcode STACK_GLOBAL"):
        read_concept(tmp_path / "bad.pt")


def test_files_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "legacy.pt").write_bytes(b"\x80\x02}q\x00.")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * (65 << 20))
    (tmp_path / "torn.pt").write_bytes((tmp_path / "bomb.pt").read_bytes()[:200])
    save_file({"a": torch.ones(1, 4), "b": torch.ones(1, 4)}, tmp_path / "two.safetensors")
    save_file({"<duck>": torch.ones(1, 2, 4)}, tmp_path / "deep.safetensors")
    save_file({"<duck>": torch.ones(4, dtype=torch.int64)}, tmp_path / "whole.safetensors")
    save_file({"<duck>": torch.full((4,), float("nan"))}, tmp_path / "nan.safetensors")
    save_file({"<duck>": torch.ones(99, 4)}, tmp_path / "long.safetensors")
    torch.save({"string_to_param": {"a": torch.ones(4)}}, tmp_path / "odd.pt")
    torch.save([torch.ones(4)], tmp_path / "list.pt")
    expected = {
        "text.safetensors": "is no safetensors file",
        "legacy.pt": "no file of torch.save since version 1.6",
        "zip.pt": "it has no data.pkl",
        "bomb.pt": "unpacks to more than 64 MB",
        "torn.pt": "no file of torch.save",
        "two.safetensors": r"expected one concept, got 2 tensors \(a, b\)",
        "deep.safetensors": r"expected vectors \[k, D\] or \[D\], got \[1, 2, 4\]",
        "whole.safetensors": "expected vectors",
        "nan.safetensors": "must be finite numbers",
        "long.safetensors": "must have 1 to 64 vectors",
        "odd.pt": r"expected string_to_param with '\*' alone",
        "list.pt": "expected named tensors, got list",
        "gone.pt": "expected a concept's file at",
        ".": "expected learned_embeds.safetensors in the folder",
        "photo.png": "expected a concept's file at",
        "x" * 300: "cannot look for .*: File name too long",
    }
    for name, message in expected.items():
        with pytest.raises(InvalidInput, match=message) as caught:
            read_concept(tmp_path / name)
        assert "\n" not in str(caught.value), name
    with pytest.raises(InvalidInput, match="cannot look for '~nobody-of-that-name/x"):
        read_named("~nobody-of-that-name/x=<duck>")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(InvalidInput, match="a picture is what `tiller concept learn` takes"):
        read_concept(tmp_path / "photo.png")
    with pytest.raises(InvalidInput, match="unknown format 'webui'"):
        write_concept(concept(), tmp_path, "webui")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "needs a token"),
        ("   ", "needs a token"),
        ("my duck", "no blanks"),
        ("a\nb", "no blanks"),
        ("<>", "a letter or a digit"),
        ("<|endoftext|>", "a letter or a digit"),
        ("x" * 65, "at most 64 characters"),
    ],
)
def test_a_token_that_cannot_stand_in_a_prompt_is_refused(token: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        concept(token=token)


def test_names_that_clash_are_refused() -> None:
    model = load_model(fake_pipeline())
    one = concept(token="<duck>")

    def known(*concepts: Concept) -> Vocabulary:
        return Vocabulary(concepts, model.tokenizers, [16])

    with pytest.raises(InvalidInput, match="two concepts use the token '<DUCK>'"):
        known(one, concept(token="<DUCK>"))
    with pytest.raises(InvalidInput, match="two concepts use the token '<duck>_1'"):
        known(concept(2), concept(token="<duck>_1"))
    with pytest.raises(InvalidInput, match="'a' is a word that the model knows"):
        known(concept(token="a"))
    with pytest.raises(InvalidInput, match=r"vectors of width 24, .* read 16: .* another model"):
        known(concept(1, 24))
    with pytest.raises(InvalidInput, match="vectors of width 16 and 16"):
        known(concept(1, 16, 16))
    assert len(known(one, concept(token="goose"))) == 2


def test_a_prompt_is_read_with_several_concepts_in_it() -> None:
    model = load_model(fake_pipeline())
    duck, goose = concept(token="<duck>"), concept(token="goose")
    known = Vocabulary([duck, goose], model.tokenizers, [16])
    read = known.read("a <Duck>, two gooses and a goose, GOOSE<duck>")
    names = {id(duck.vectors[0]): "D", id(goose.vectors[0]): "G"}
    plain = [p if isinstance(p, str) else names[id(p.vectors[0])] for p in read]
    assert plain == ["a", "D", ", two gooses and a", "G", ",", "G", "D"]
    assert known.read("nothing of them") == ["nothing of them"]
    assert known.read("") == [""]


def test_a_model_reads_the_concepts_it_was_loaded_with(tmp_path: Path) -> None:
    model = load_model(fake_pipeline())
    table = model.token_embeddings[0]
    own = model.tokenizers[0].get_vocab()
    write_concept(Concept("<duck>", (table[[own["x</w>"]]].clone(),)), tmp_path)
    taught = load_model(fake_pipeline(), concepts=[tmp_path])
    said, plain = taught.encode(["a <duck> b"]), model.encode(["a x b"])
    assert torch.equal(said.prompt_embeds, plain.prompt_embeds)
    assert taught.token_counts(["a <duck> b"]) == model.token_counts(["a x b"])
    assert taught.encode_pieces([["a <duck>", "b"]]).prompt_embeds.equal(plain.prompt_embeds)
    assert taught.fingerprint() != model.fingerprint()
    assert torch.equal(
        taught.encode(["b"], ["<duck>"]).negative_prompt_embeds,  # type: ignore[arg-type]
        model.encode(["b"], ["x"]).negative_prompt_embeds,  # type: ignore[arg-type]
    )


def test_a_small_file_that_claims_huge_vectors_is_refused_before_they_are_made(
    tmp_path: Path,
) -> None:
    for shape in ((64, 200_000_000), (200_000_000, 4)):
        torch.save({"<duck>": torch.zeros(1).expand(*shape)}, tmp_path / "huge.bin")
        with pytest.raises(InvalidInput, match=r"huge.bin: a concept must have 1 to 64 vectors of"):
            read_concept(tmp_path / "huge.bin")


def test_what_a_file_says_of_itself_is_read_with_care(tmp_path: Path) -> None:
    for about, message in (
        ("[" * 100_000, "is no safetensors file, or damaged"),
        ('{"token": null}', "expected a text as the token in its metadata, got NoneType"),
        ('{"token": ["a"]}', "expected a text as the token in its metadata, got list"),
    ):
        save_file({"<duck>": torch.ones(1, 4)}, tmp_path / "odd.safetensors", {"tiller": about})
        with pytest.raises(InvalidInput, match=message) as caught:
            read_concept(tmp_path / "odd.safetensors")
        assert "\n" not in str(caught.value)


def test_a_second_encoders_file_belongs_to_the_first(tmp_path: Path) -> None:
    write_concept(concept(1, 16, 24), tmp_path)
    write_concept(concept(1, 16), tmp_path)
    assert read_concept(tmp_path).widths == (16,)
    assert not (tmp_path / "learned_embeds_2.safetensors").exists()
    save_file({"<cat>": torch.ones(1, 24)}, tmp_path / "learned_embeds_2.safetensors")
    with pytest.raises(InvalidInput, match=r"_2.safetensors holds '<cat>' and .* '<duck>'"):
        read_concept(tmp_path)
    (tmp_path / "learned_embeds.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"_2.safetensors holds <cat> already, and <duck>"):
        write_concept(concept(1, 16), tmp_path)
    assert read_concept(tmp_path / "learned_embeds_2.safetensors").token == "<cat>"
    tensors = {"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 24), "t5xxl": torch.ones(1, 8)}
    save_file(tensors, tmp_path / "sd3.safetensors")
    with pytest.raises(InvalidInput, match=r"expected clip_l and clip_g alone, got t5xxl as well"):
        read_concept(tmp_path / "sd3.safetensors")


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("emoji", "emoji"),
        ("owner/some-model", "owner/some-model"),
        ("/home/anna/model", ""),
        ("C:\\models\\mine", ""),
        ("C:/models/mine", ""),
        ("../model", ""),
    ],
)
@pytest.mark.parametrize("to", ["diffusers", "a1111"])
def test_a_shared_file_names_no_folder_of_this_machine(
    model: str, kept: str, to: str, tmp_path: Path
) -> None:
    own = concept()
    (file,) = write_concept(Concept(own.token, own.vectors, {"model": model}), tmp_path, to)
    assert read_concept(file).about["model"] == kept


@pytest.mark.parametrize("token", ["zor", "<zor>_1", "dog2!"])
def test_a_token_that_diffusers_finds_inside_words_is_told(token: str, tmp_path: Path) -> None:
    with pytest.warns(TillerNotice, match=r"diffusers finds .* inside other words too"):
        write_concept(concept(token=token), tmp_path)
    write_concept(concept(token=token), tmp_path, "a1111")  # without a warning, which is an error


def test_a_file_whose_name_is_no_token_names_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "my duck.safetensors"
    save_file({"emb_params": torch.ones(1, 4)}, file)
    with pytest.raises(InvalidInput, match=r"^my duck.safetensors makes no token: .*FILE=<NAME>"):
        read_concept(file)
    assert read_named(f"{file}=<duck>").token == "<duck>"
    assert read_concept(file, "<duck>").token == "<duck>"


@pytest.mark.parametrize(("name", "token"), [("duck", "<duck>"), ("<duck>", "<duck>")])
def test_a_name_inside_an_older_file_is_a_token(name: str, token: str, tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save({"string_to_param": {"*": torch.ones(1, 4)}, "name": name}, file)
    assert read_concept(file).token == token


def test_a_name_inside_an_older_file_that_is_no_token_names_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save({"string_to_param": {"*": torch.ones(1, 4)}, "name": "my duck"}, file)
    with pytest.raises(InvalidInput, match=r"^old.pt makes no token: .*--token to convert"):
        read_concept(file)
    assert read_concept(file, "<duck>").token == "<duck>"


def test_capitals_that_a_plain_pipeline_reads_otherwise_are_told(tmp_path: Path) -> None:
    model = load_model(fake_pipeline())
    several = concept(3)
    with pytest.warns(TillerNotice, match=r"of <Duck> diffusers would read .* write <duck>"):
        draw(model, "<Duck>", concepts=[several])
    draw(model, "<duck>", concepts=[several])  # without a warning, which is an error
    draw(model, "<Duck>", concepts=[concept(1)])


def test_a_prompt_that_cuts_a_learned_word_off_says_so(tmp_path: Path) -> None:
    """The fake reads one token a letter: 14 of them."""
    write_concept(concept(3), tmp_path)
    model = load_model(fake_pipeline(), concepts=[tmp_path])
    with pytest.warns(UserWarning, match=r"are dropped: 2 of the vectors of <duck>$"):
        model.encode([f"{'a' * 13} <duck>"])
    with pytest.warns(UserWarning, match=r"are dropped: dog, 1 of the vectors of <duck>$"):
        model.encode([f"{'a' * 12} <duck> dog"])
