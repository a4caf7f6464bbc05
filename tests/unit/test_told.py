"""What a service tells of its tokens: read, kept, planned with, and made a student's targets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asking import collect, way
from limbeck.collect.packing import unpacked
from limbeck.collect.store import AnswerStore
from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.collect.told import ToldTeacher, check_section, pieces_of, plan
from limbeck.errors import InputError
from limbeck.models.dialects import gemini, openai
from limbeck.models.exchange import judge
from limbeck.models.routes import route
from limbeck.models.served import ServedModel
from limbeck.models.tokenizer import ChatTokenizer, byte_vocabulary
from limbeck.recipe import TeacherSection, TrainSection
from limbeck.records import Answer, Sampling, TopLogprobs, Usage
from provider import Behaviour, Provider
from small import prompts
from tiny import make_tokenizer, sums

HERE = route(TeacherSection(model="teacher", url="http://127.0.0.1:1/v1"))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("student")
    make_tokenizer().save_pretrained(folder)
    return ChatTokenizer(folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    with AnswerStore(tmp_path / "answers.sqlite") as opened:
        yield opened


def tokens_of(tokenizer: ChatTokenizer, text: str) -> list[bytes]:
    found = pieces_of(tokenizer)
    assert found is not None
    return [found.vocabulary[i] or b"" for i in tokenizer.answer_ids(text)]


def rows_of(tokens: list[bytes], others: list[bytes]) -> tuple[TopLogprobs, ...]:
    """Each token at 0.7, and 0.1 for the first two others that it is not."""
    share = [float(np.log(p)) for p in (0.7, 0.1, 0.1)]
    made: list[TopLogprobs] = []
    for token in tokens:
        beside = [token, *(o for o in others if o != token)][:3]
        made.append(TopLogprobs(token, share[0], tuple(zip(beside, share, strict=True))))
    return tuple(made)


def answer(
    number: int, text: str, told: tuple[TopLogprobs, ...], tokenizer: ChatTokenizer
) -> Answer:
    asked = prompts()[number]
    sampling, ids = Sampling(64, 1.0), tuple(tokenizer.answer_ids(text))
    id_ = Answer.identify(asked.id, "teacher", "here", sampling)
    return Answer(
        id_, asked.id, "teacher", "here", sampling, text, "", (), ids, "stop", Usage(1, 1), "kept",
        "", told,
    )  # fmt: skip


def letters(text: str) -> list[bytes]:
    return [*(c.encode() for c in text), b""]


TEXTS = [text for _, text in sums()[:12]]


def filled(
    store: AnswerStore, tokenizer: ChatTokenizer, *, alike: bool, silent: int = 0
) -> list[Answer]:
    """Answers of a teacher with the student's tokens, or one that writes letters."""
    others = tokens_of(tokenizer, TEXTS[0])[:3] if alike else [b"x", b"y", b"zz"]
    made: list[Answer] = []
    for n, text in enumerate(TEXTS):
        tokens = tokens_of(tokenizer, text) if alike else letters(text)
        made.append(answer(n, text, () if n < silent else rows_of(tokens, others), tokenizer))
    store.add(made)
    return store.get([a.id for a in made])


# -- told and kept --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=5), st.floats(-1e4, 0)), max_size=4))
def test_any_bytes_come_back_from_the_store(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[bytes, float]]
):
    told = tuple(TopLogprobs(token, p, tuple(pairs)) for token, p in pairs)
    with AnswerStore(tmp_path_factory.mktemp("store") / "answers.sqlite") as store:
        usage, sampling = Usage(1, 1), Sampling()
        one = Answer("a", "p", "m", "r", sampling, "t", "", (), (), "stop", usage, "kept", "", told)
        store.add([one])
        assert store.logprobs(["a", "b"]) == ({"a": told} if told else {})
        assert store.get(["a"])[0].logprobs == ()


def test_bytes_of_the_dialects():
    row = {"token": "�", "logprob": -0.5, "bytes": [226, 130]}
    tops = [row, {"token": " é", "logprob": -1, "bytes": None}, {"token": "", "logprob": -9999.0}]
    told = openai.read_logprobs(
        {"choices": [{"logprobs": {"content": [row | {"top_logprobs": tops}]}}]}
    )
    pairs = ((b"\xe2\x82", -0.5), (" é".encode(), -1.0), (b"", -9999.0))
    assert told == [TopLogprobs(b"\xe2\x82", -0.5, pairs)]
    result = {
        "chosenCandidates": [{"token": "a", "logProbability": -0.1}],
        "topCandidates": [{"candidates": [{"token": "a", "logProbability": -0.1}]}],
    }
    told = gemini.read_logprobs({"candidates": [{"logprobsResult": result}]})
    assert told == [TopLogprobs(b"a", -0.1, ((b"a", -0.1),))]


@pytest.mark.parametrize("damage", [{"content": [{"token": "a"}]}, {"content": 7}, [], {}])
def test_an_answer_is_good_without_its_logprobs(damage: Any):
    choice = {"message": {"content": "Yes."}, "finish_reason": "stop", "logprobs": damage}
    found = judge(HERE, "", 200, {}, json.dumps({"choices": [choice]}).encode())
    assert found.kind == "good" and found.reply is not None
    assert (found.reply.text, found.reply.logprobs) == ("Yes.", ())


def test_they_are_asked_for_and_kept_with_the_answer(tmp_path: Path):
    with Provider(Behaviour(logprobs="real", most_logprobs=3)) as provider:
        model = ServedModel(way(provider), logprobs=3)
        answers = collect(model, 5, tmp_path)
        assert {asked.logprobs for asked in provider.seen} == {3}
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        told = store.logprobs([a.id for a in answers])
    assert len(told) == 5
    for one in answers:
        assert b"".join(row.token for row in told[one.id]).decode() == one.text
        assert {len(row.top) for row in told[one.id]} == {3}


# -- the plan -------------------------------------------------------------------------------------


def probed(tokens: list[bytes], logprobs: int = 5, **more: Any) -> dict[str, Any]:
    written = [t.hex() for t in tokens]
    return {"logprobs": logprobs, "tokens": [written, written], **more}


def test_the_plan_follows_from_the_probe(student: ChatTokenizer):
    same = tokens_of(student, TEXTS[0])
    assert plan(probed(same), student)[0] == "token by token"
    assert plan(probed(letters(TEXTS[0])), student)[0] == "by bytes"  # its tokens, cut otherwise
    assert plan(probed([b"Wholly", b" other", b""]), student)[0] == "by bytes"
    assert plan({"logprobs": 5}, student)[0] == "by bytes"  # found by an older version
    for told, who, why in (
        (probed([], 0), student, "no log-probabilities"),
        (probed([], 0, fake="fake: every one is 0"), student, "every one is 0"),
        (probed(same), None, r"student\.base"),
    ):
        way_, reason = plan(told, who)
        assert way_ == "text alone"
        assert re.search(why, reason)


def test_a_tokenizer_that_is_not_byte_level_learns_from_text(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    spaced = Tokenizer(models.BPE({"a": 0}, []))
    spaced.decoder = decoders.Metaspace()
    assert byte_vocabulary(spaced) is None
    lower = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    assert byte_vocabulary(lower) is not None
    lower.normalizer = normalizers.NFD()  # é is no longer the bytes that it was
    assert byte_vocabulary(lower) is None
    prefixed = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert byte_vocabulary(prefixed) is None


def test_what_an_answer_says_is_no_special_token(student: ChatTokenizer):
    ids = student.answer_ids("a<|im_end|>b")
    assert ids.count(student.inner.eos_token_id) == 1 and ids[-1] == student.inner.eos_token_id
    assert b"".join(tokens_of(student, "a<|im_end|>b")) == b"a<|im_end|>b"


@pytest.mark.parametrize("keys", [{"divergence": "jsd"}, {"temperature": 2.0}])
def test_what_told_logprobs_cannot_serve_is_refused(keys: dict[str, Any]):
    check_section(TrainSection(steps=1))
    with pytest.raises(InputError, match=f"train.{next(iter(keys))}"):
        check_section(TrainSection(steps=1, **keys))


# -- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alike", [True, False])
def test_targets_of_a_store_come_back_from_disk(
    store: AnswerStore, student: ChatTokenizer, tmp_path: Path, alike: bool
):
    answers = filled(store, student, alike=alike, silent=2)
    asked = list(zip(prompts()[: len(answers)], answers, strict=True))
    teacher = ToldTeacher(store, answers, student)
    assert (teacher.way, teacher.told) == ("token by token" if alike else "by bytes", 10)
    bound = Binding("teacher", student.hash, "", len(student.inner), 4, 0, 1.0)
    folder = TargetsFolder(tmp_path / "targets", bound)
    facts = folder.write(teacher, asked)
    assert facts["tokens"] == teacher.tokens == sum(len(a.token_ids) for a in answers)
    silent = sum(len(a.token_ids) for a in answers[:2])
    assert 0 < teacher.known <= teacher.tokens - silent
    if alike:
        assert teacher.known == teacher.tokens - silent
    found = {id_: unpacked(t) for id_, t in folder.read(asked).items()}
    for one in answers[:2]:  # of these only the text is known
        told = found[one.id]
        assert told.top_ids[:, 0].tolist() == list(one.token_ids)
        np.testing.assert_allclose(told.logprobs[:, 0], 0, atol=1e-6)
    whole = found[answers[5].id]
    np.testing.assert_allclose(np.exp(whole.logprobs).sum(-1) + whole.tail, 1, atol=1e-5)
    if alike:
        assert whole.top_ids[:, 0].tolist() == list(answers[5].token_ids)
        rows = [[0.7, 0.1, 0.1]] * len(whole.token_ids)
        np.testing.assert_allclose(np.exp(whole.logprobs[:, :3]), rows, rtol=0.02)
        np.testing.assert_allclose(whole.tail, 0.1, rtol=0.02)


def test_answers_without_logprobs_are_learnt_as_text(store: AnswerStore, student: ChatTokenizer):
    answers = filled(store, student, alike=True, silent=len(TEXTS))
    assert ToldTeacher(store, answers, student).way == "text alone"
