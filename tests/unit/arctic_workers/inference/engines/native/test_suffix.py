"""What is proposed to follow, and when."""

from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.budget import StepTimes
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.suffix import MOST, RUN, Drafter, History, Past
from arctic_workers.inference.engines.native.window import Window

texts = st.lists(st.integers(0, 3), max_size=60)


@given(texts, texts)
def test_what_followed_the_same_tokens_is_found_wherever_they_were(text: list[int], latest: list[int]) -> None:
    history = History()
    history.extend(text)
    agreed, draft = history.follow(latest)
    places = [
        place for place in range(RUN, len(text)) if len(latest) >= RUN and text[place - RUN : place] == latest[-RUN:]
    ]
    if not draft:
        # The run was nowhere, or at the very end alone.
        assert not places
        return
    assert any(
        text[place - agreed : place] == latest[-agreed:] and text[place : place + len(draft)] == draft
        for place in places
    )
    assert agreed >= RUN
    assert len(draft) <= min(agreed, MOST)


def sequence(tokens: list[int], most: int = 50, salt: bytes = b"") -> Sequence:
    return Sequence(Request(tuple(tokens), Sampling(most)), salt=salt)


def times_of(each: float, fixed: float = 1.0) -> StepTimes:
    times = StepTimes()
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
        times.observe(tokens, fixed + each * tokens)
    return times


WORDS = [5, 6, 7, 8, 9, 10, 11, 12]


def test_a_text_that_repeats_itself_goes_on() -> None:
    drafter, asked = Drafter(times_of(0.0)), sequence([*WORDS, 1, 2, *WORDS[:5]])
    assert drafter.propose([asked], 64) == {asked: [10, 11, 12, 1, 2]}
    assert drafter.propose([asked], 2) == {asked: [10, 11]}
    short = sequence([*WORDS, 1, 2, *WORDS[:5]], most=3)
    assert drafter.propose([short], 64) == {short: [10, 11]}


def test_earlier_answers_count_for_their_own_salt_alone() -> None:
    drafter = Drafter(times_of(0.0))
    earlier = sequence([1], salt=b"one")
    earlier.tokens += WORDS
    drafter.end(earlier)
    same, other = sequence(WORDS[:4], salt=b"one"), sequence(WORDS[:4], salt=b"other")
    assert drafter.propose([same, other], 64) == {same: [9, 10, 11, 12]}


def test_no_more_is_proposed_than_a_step_is_worth() -> None:
    asked = sequence([*WORDS, 1, 2, *WORDS])
    lengths = [len(Drafter(times_of(each)).propose([asked], 64).get(asked, [])) for each in (0.0, 0.05, 0.2, 3.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


def test_who_is_wrong_proposes_less_and_then_rarely() -> None:
    drafter, asked = Drafter(times_of(0.01)), sequence(WORDS * 3, most=4000)
    proposals = 0
    for _ in range(500):
        proposed = drafter.propose([asked], 64).get(asked, [])
        asked.tokens.append(WORDS[len(asked.tokens) % len(WORDS)])
        drafter.learn(asked, len(proposed), 0)
        proposals += bool(proposed)
    assert 2 < proposals < 10


def test_a_size_of_step_that_is_not_known_is_tried_once() -> None:
    times = StepTimes()
    times.observe(1, 1.0)
    drafter, asked = Drafter(times), sequence(WORDS * 3)
    assert len(drafter.propose([asked], 64)[asked]) == 1
    times.observe(2, 3.0)
    assert drafter.propose([asked], 64) == {}


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), texts), max_size=40))
def test_the_past_stays_within_bounds(answers: list[tuple[bytes, list[int]]]) -> None:
    past = Past(most=80)
    for salt, answer in answers:
        past.add(salt, answer)
        kept = [past.of(salt) for salt in (b"a", b"b", b"c")]
        assert sum(len(history.tokens) for histories in kept for history in histories) <= 80 + 61
        assert past.of(salt)[-1].tokens[-1] == -1


def test_nothing_is_proposed_where_counts_or_a_window_decide() -> None:
    drafter = Drafter(times_of(0.0))
    counting = Sequence(Request(tuple(WORDS * 3), Sampling(50, presence_penalty=0.5)))
    outgrowing = sequence(WORDS * 3)
    outgrowing.outgrows = Window(8, 0)
    assert drafter.propose([counting, outgrowing], 64) == {}
    drafter.end(outgrowing)
    assert drafter.propose([sequence(WORDS[:4])], 64) == {}
