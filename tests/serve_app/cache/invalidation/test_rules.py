"""Rules without any I/O: what they cover, in whatever order and however often they come."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.invalidation.rules import Labels, RuleBook, SharedClock, begun_at, provenance
from serve_app.core import EVERYTHING, Entry, Rule

LABELS = Labels(b"a test's secret")
KINDS: dict[str, Any] = {"a": "prompt", "b": "model", "c": "tag", EVERYTHING: "everything"}
NAMES = tuple(KINDS)

rules = st.lists(
    st.builds(
        lambda label, before, age: Rule(KINDS[label], label, before, before + age),
        st.sampled_from(NAMES), st.integers(1, 9), st.integers(0, 3),
    )
)  # fmt: skip
labels = st.frozensets(st.sampled_from(NAMES[:3]))


def book(*given: Rule) -> RuleBook:
    made = RuleBook(LABELS)
    made.learn(given)
    return made


def an_entry(begun: int, chosen_by: frozenset[str] = frozenset(), key: str = "f" * 64) -> Entry:
    return Entry.of(key, b"v", provenance(begun, sorted(chosen_by)))


@given(rules, labels, st.integers(0, 10))
def test_covered_is_begun_before_a_rule_about_it(given: list[Rule], chosen_by: frozenset[str], begun: int) -> None:
    """A value is covered exactly if some rule has one of its labels, or all labels, and is younger than its making."""
    expected = any(begun < rule.before and rule.label in (EVERYTHING, *chosen_by) for rule in given)
    made = book(*given)
    assert made.covers("video", an_entry(begun, chosen_by)) == expected
    assert made.covers("latents", an_entry(begun, chosen_by)) == expected
    wanted = chosen_by - {"c"}  # who asks with a tag may have what was made without it
    assert (begun < made.not_before(chosen_by)) == book(*given).covers("video", an_entry(begun, wanted))


@given(rules, st.randoms())
def test_order_and_repetition_do_not_matter(given: list[Rule], random: object) -> None:
    """Two books that learn the same rules, in any order and more than once, say the same of everything."""
    shuffled = given * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = book(*given), book()
    for rule in shuffled:
        other.learn([rule])
    for label in NAMES[:3]:
        assert one.not_before([label]) == other.not_before([label])


@given(rules, labels)
def test_what_concerns_a_request_is_all_that_can_decide_it(given: list[Rule], own: frozenset[str]) -> None:
    """A book that learned only what concerns some labels judges values with those labels as the whole book does."""
    whole = book(*given)
    part = book(*whole.concerning(own))
    for begun in range(11):
        assert part.covers("video", an_entry(begun, own)) == whole.covers("video", an_entry(begun, own))


def test_a_keys_label_is_its_name() -> None:
    """A rule by key covers the video of that key, whatever its metadata says, and nothing else."""
    made = book(Rule("key", LABELS.of("key", "e" * 64), 5, 5))
    assert made.covers("video", an_entry(1, key="e" * 64))
    assert not made.covers("latents", an_entry(1, key="e" * 64))
    assert not made.covers("video", an_entry(1))


def test_values_of_an_older_release() -> None:
    """Without labels a value is known by its key alone, without a beginning by when it was made, else it is old."""
    made = Entry.of("a" * 64, b"v", {"created_at": 0.000007})
    assert begun_at(made) == 7
    assert book(Rule("key", LABELS.of("key", "a" * 64), 8, 8)).covers("video", made)
    assert not book(Rule("key", LABELS.of("key", "a" * 64), 7, 7)).covers("video", made)
    assert book(Rule("everything", EVERYTHING, 1, 1)).covers("embedding", Entry.of("a" * 64, b"v"))


def test_labels_of_different_things_differ() -> None:
    """The same word as a prompt, a model, a tag or a fingerprint, and under another secret, has other labels."""
    made = {LABELS.of(kind, "x") for kind in ("prompt", "model", "tag", "fingerprint")}
    assert len(made | {LABELS.of("prompt", "x", "y"), Labels(b"other").of("tag", "x")}) == 6


def test_listeners_hear_what_is_new_once() -> None:
    """A rule that was known, or says less than a known one of its label, is no news."""
    made, heard = book(), []
    made.listen(heard.append)
    made.learn([Rule("tag", "a", 5, 5)])
    made.learn([Rule("tag", "a", 5, 5), Rule("tag", "a", 4, 4)])
    made.learn([Rule("tag", "a", 6, 6), Rule("tag", "b", 1, 1)])
    assert [len(each) for each in heard] == [1, 2]


def test_retiring_spares_a_newer_rule() -> None:
    """Only the very rule that was swept for is forgotten."""
    made = book(Rule("prompt", "a", 6, 6))
    made.retire([Rule("prompt", "a", 5, 5)])
    assert made.not_before(["a"]) == 6
    made.retire([Rule("prompt", "a", 6, 6)])
    assert made.not_before(["a"]) == 0


def test_the_shared_clock_is_never_ahead() -> None:
    """Until something is heard it is this process' own; then it goes on from what was heard, whatever the wall says."""
    now = [100.0]
    clock = SharedClock(wall=lambda: 5.0, monotonic=lambda: now[0])
    assert clock.now() == 5_000_000
    clock.heard(7_000_000)
    now[0] += 1.5
    assert clock.now() == 8_500_000


@given(st.lists(rules, max_size=4))
def test_one_of_everything_is_instead_of_all_it_covers(batches: list[list[Rule]]) -> None:
    """In whatever order rules come, none is kept that the one of everything covers, and the same is covered."""
    made = RuleBook(LABELS)
    for batch in batches:
        made.learn(batch)
    given_rules = [rule for batch in batches for rule in batch]
    everything = made.now.by_label.get(EVERYTHING)
    assert everything is None or all(rule is everything or rule.before > everything.before for rule in made)
    for label in (*NAMES, "d"):
        wanted = max((rule.before for rule in given_rules if rule.label in (label, EVERYTHING)), default=0)
        kept = [made.now.by_label[each].before for each in (label, EVERYTHING) if each in made.now.by_label]
        assert max(kept, default=0) == wanted
