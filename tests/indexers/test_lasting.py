"""What is made once for many calls lasts as long as somebody holds it."""

from __future__ import annotations

import gc
import threading
import weakref

from topkit.indexers.lasting import held, lasting


class Made:
    """A result that can be seen to be let go of."""


@lasting(2)
def made(number: int) -> Made:
    return Made()


def test_the_last_results_are_given_again_and_older_ones_made_anew() -> None:
    first, second = made(1), made(2)
    assert made(1) is first and made(2) is second
    made(3)
    assert made(1) is not first


def test_what_is_held_outlives_its_place_and_no_longer() -> None:
    with held() as mine:
        seen = weakref.ref(made(10))
        made(10)
    loose = weakref.ref(made(11))
    for number in range(12, 16):
        made(number)
    gc.collect()
    assert seen() is not None and loose() is None
    assert len(mine) == 1
    mine.clear()
    gc.collect()
    assert seen() is None


def test_a_thread_holds_what_it_asks_for_itself() -> None:
    with held() as mine:
        other = threading.Thread(target=made, args=(20,))
        other.start()
        other.join()
        with held() as inner:
            made(21)
        made(22)
    assert len(mine) == len(inner) == 1
